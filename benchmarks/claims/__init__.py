"""Training with each loss on real data, what is claimed of the losses, and the report."""
