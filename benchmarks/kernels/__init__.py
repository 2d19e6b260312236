"""Analysis of the compiled GPU kernels."""
