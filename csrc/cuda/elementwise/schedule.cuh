// What the kernels of the elementwise family share.
#pragma once

#include "common/elementwise_problem.h"
#include "cuda/common/groups.cuh"

namespace lossops::cuda {

// Runs forward and backward on a problem of the common layout; false where it is none.
bool elementwise_dense(const ElementwiseProblem& problem, const Schedule& schedule,
                       const Grid& grid);
// Runs any problem. Order 1 is forward or backward, order 2 double backward.
void elementwise_strided(const ElementwiseProblem& problem, int order, const Schedule& schedule,
                         const Grid& grid);

}  // namespace lossops::cuda
