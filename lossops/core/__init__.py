"""Code shared by the loss families. Does not depend on any of them."""
