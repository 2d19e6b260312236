// The headers of torch take longer to compile than these files, so one unit has them all.
#include "ops/elementwise/cpu.cpp"
#include "ops/checks.cpp"
#include "ops/softmax/cpu.cpp"
#include "ops/vectors/cpu.cpp"
