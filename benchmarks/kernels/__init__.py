"""What compilers make of the GPU kernels."""
