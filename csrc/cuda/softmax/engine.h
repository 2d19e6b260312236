// The softmax engine on the GPU. Everything runs on the given stream of the current device; nothing
// synchronizes or allocates. A failed launch throws std::runtime_error.
#pragma once

#include <cuda_runtime_api.h>

#include "common/softmax_problem.h"

namespace lossops::cuda {

// Bytes of device memory that the forward pass of this problem needs; 0 for none.
int64_t softmax_workspace_bytes(const SoftmaxProblem& problem);

// Computes `normalizer` if that is asked for, then everything that the problem defines, with
// gradients for grad_output == 1.
void softmax_forward(const SoftmaxProblem& problem, void* workspace, cudaStream_t stream);
// Computes gradients from grad_output, grad_lse and grad_entropy. With `skip_if_one`, they are left
// unchanged if grad_output, a single number, is 1.
void softmax_backward(const SoftmaxProblem& problem, bool skip_if_one, cudaStream_t stream);

}  // namespace lossops::cuda
