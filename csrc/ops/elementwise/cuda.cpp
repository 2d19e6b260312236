#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda/elementwise/engine.h"
#include "ops/elementwise/checks.h"

namespace lossops::ops {
namespace {

// Runs a problem on the current stream of the tensors' device.
struct ElementwiseCudaEngine {
  // The caching allocator reuses memory within a stream only, so a workspace may be freed as soon
  // as the kernel is launched.
  static Tensor workspace(const ElementwiseProblem& problem, const Tensor& input) {
    const int64_t bytes = cuda::elementwise_workspace_bytes(problem);
    return bytes > 0 ? at::empty({bytes}, input.options().dtype(at::kByte)) : Tensor();
  }
  static void* data(const Tensor& workspace) {
    return workspace.defined() ? workspace.data_ptr() : nullptr;
  }

  static void forward(const ElementwiseProblem& problem, const Tensor& input) {
    const c10::cuda::CUDAGuard guard(input.device());
    const Tensor memory = workspace(problem, input);
    cuda::elementwise_forward(problem, data(memory), c10::cuda::getCurrentCUDAStream());
  }
  static void backward(const ElementwiseProblem& problem, const Tensor& input, bool skip_if_one) {
    const c10::cuda::CUDAGuard guard(input.device());
    cuda::elementwise_backward(problem, skip_if_one, c10::cuda::getCurrentCUDAStream());
  }
  static void double_backward(const ElementwiseProblem& problem, const Tensor& input) {
    const c10::cuda::CUDAGuard guard(input.device());
    const Tensor memory = workspace(problem, input);
    cuda::elementwise_double_backward(problem, data(memory), c10::cuda::getCurrentCUDAStream());
  }
  static void rescale(const Tensor& grad, const Tensor& factor) {
    const c10::cuda::CUDAGuard guard(grad.device());
    cuda::elementwise_rescale(grad.data_ptr(), dtype_of(grad), grad.numel(), factor.data_ptr(),
                              dtype_of(factor), c10::cuda::getCurrentCUDAStream());
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(lossops, CUDA, library) {
  register_elementwise_ops<ElementwiseCudaEngine>(library);
}

}  // namespace lossops::ops
