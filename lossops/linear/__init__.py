"""A linear layer and a loss over rows of its outputs, in chunks."""
