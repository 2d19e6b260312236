"""Triton kernels of the losses over rows of vectors."""
