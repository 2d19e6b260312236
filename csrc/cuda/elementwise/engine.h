// The elementwise engine on the GPU. Everything runs on the given stream of the current device;
// nothing synchronizes or allocates. A failed launch throws std::runtime_error.
#pragma once

#include <cuda_runtime_api.h>

#include "common/elementwise_problem.h"

namespace lossops::cuda {

// Bytes of device memory that the forward or double backward pass of this problem needs; 0 for
// none.
int64_t elementwise_workspace_bytes(const ElementwiseProblem& problem);

void elementwise_forward(const ElementwiseProblem& problem, void* workspace, cudaStream_t stream);
// With `skip_if_one`, the gradients are left unchanged if grad_output, a single number, is 1.
void elementwise_backward(const ElementwiseProblem& problem, bool skip_if_one, cudaStream_t stream);
void elementwise_double_backward(const ElementwiseProblem& problem, void* workspace,
                                 cudaStream_t stream);
// Multiplies dense memory by the number at `grad_output`; does nothing if that is 1.
void elementwise_rescale(void* grad, DType dtype, int64_t numel, const void* grad_output,
                         DType grad_output_dtype, cudaStream_t stream);

}  // namespace lossops::cuda
