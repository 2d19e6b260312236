// The headers of torch take longer to compile than these files, so one unit has them all.
#include "ops/elementwise/checks.cpp"
#include "ops/contract.cpp"
#include "ops/large.cpp"
#include "ops/softmax/checks.cpp"
#include "ops/vectors/checks.cpp"
