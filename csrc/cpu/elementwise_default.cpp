// Compiled for one instruction set, which setup.py names: CPU_CAPABILITY=DEFAULT.
#define LOSSOPS_ISA default
#define LOSSOPS_ISA_NAME "default"
#include "cpu/elementwise_kernels.inc"
