// The headers of torch take longer to compile than these files, so one unit has them all.
#include "ops/elementwise/cuda.cpp"
#include "ops/softmax/cuda.cpp"
#include "ops/vectors/cuda.cpp"
