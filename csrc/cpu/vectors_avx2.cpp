// Compiled for one instruction set, which setup.py names: CPU_CAPABILITY=AVX2.
#define LOSSOPS_ISA avx2
#include "cpu/vectors_kernels.inc"
