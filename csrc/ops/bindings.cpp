// The headers of torch take longer to compile than these files, so one unit has them all.
#include "ops/autograd.cpp"
#include "ops/elementwise/fused.cpp"
#include "ops/module.cpp"
#include "ops/softmax/fused.cpp"
#include "ops/vectors/fused.cpp"
