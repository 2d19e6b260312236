"""Speed, memory and accuracy of each loss compared with torch, and the targets for them."""
