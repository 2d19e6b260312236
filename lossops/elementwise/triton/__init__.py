"""Triton kernels of the elementwise losses."""
