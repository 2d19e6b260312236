"""What measures lossops, and the results. No part of the installed package."""
