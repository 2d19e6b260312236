// Compiled for one instruction set, which setup.py names: CPU_CAPABILITY=DEFAULT.
#define LOSSOPS_ISA default
#include "cpu/vectors_kernels.inc"
