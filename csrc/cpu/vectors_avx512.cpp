// Compiled for one instruction set, which setup.py names: CPU_CAPABILITY=AVX512.
#define LOSSOPS_ISA avx512
#include "cpu/vectors_kernels.inc"
