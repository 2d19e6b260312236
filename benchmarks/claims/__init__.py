"""Training with each loss on real data, the claims about the losses, and the report."""
