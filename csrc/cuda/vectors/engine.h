// The vector engine on the GPU. Everything runs on the given stream of the current device; nothing
// synchronizes or allocates. A failed launch throws std::runtime_error.
#pragma once

#include <cuda_runtime_api.h>

#include "common/vectors_problem.h"

namespace lossops::cuda {

// Computes everything that the problem defines. A label that is not an index of its row makes the
// row's loss NaN and its gradients 0.
void vectors_run(const VectorsProblem& problem, cudaStream_t stream);
// The same for losses with a list of labels per row; called by vectors_run.
void label_lists_run(const VectorsProblem& problem, cudaStream_t stream);

}  // namespace lossops::cuda
