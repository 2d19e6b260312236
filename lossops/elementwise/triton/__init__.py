"""The kernels of this family in Triton."""
