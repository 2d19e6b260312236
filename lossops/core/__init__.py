"""What the families share; depends on none of them."""
