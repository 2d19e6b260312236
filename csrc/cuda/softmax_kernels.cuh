// The kernels of the softmax family, as the plan sees them. Each returns false where the problem is
// none of its own.
#pragma once

#include "cuda/softmax_row.cuh"

namespace lossops::cuda {

// Any problem: threads share rows as the schedule says.
void softmax_thread(const SoftmaxProblem& problem, const RowSchedule& schedule, const Grid& grid);

}  // namespace lossops::cuda
