// Shared by the kernels of the elementwise family.
#pragma once

#include "common/elementwise_problem.h"
#include "cuda/common/groups.cuh"

namespace lossops::cuda {

// Runs the forward or backward pass of a problem in the common layout; returns false for others.
bool elementwise_dense(const ElementwiseProblem& problem, const Schedule& schedule,
                       const Grid& grid);
// Runs any problem. Order 1 is forward or backward, order 2 double backward.
void elementwise_strided(const ElementwiseProblem& problem, int order, const Schedule& schedule,
                         const Grid& grid);

}  // namespace lossops::cuda
