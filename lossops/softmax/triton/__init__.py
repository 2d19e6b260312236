"""Triton kernels of the softmax losses."""
