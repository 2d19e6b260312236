"""A linear layer and a loss over rows of its outputs, computed in chunks."""
