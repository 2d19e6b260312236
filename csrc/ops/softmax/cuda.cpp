#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda/softmax/engine.h"
#include "ops/softmax/checks.h"

namespace lossops::ops {
namespace {

// Runs a problem on the current stream of the tensors' device.
struct SoftmaxCudaEngine {
  static void check(const SoftmaxProblem&) {
  }  // would wait for the device; such a row's loss is NaN
  static void forward(const SoftmaxProblem& problem, const Tensor& input) {
    const c10::cuda::CUDAGuard guard(input.device());
    const int64_t bytes = cuda::softmax_workspace_bytes(problem);
    // The caching allocator reuses memory within a stream only, so the workspace may be freed as
    // soon as the kernels are launched.
    Tensor memory;
    if (bytes > 0) memory = at::empty({bytes}, input.options().dtype(at::kByte));
    cuda::softmax_forward(problem, bytes > 0 ? memory.data_ptr() : nullptr,
                          c10::cuda::getCurrentCUDAStream());
  }
  static void backward(const SoftmaxProblem& problem, const Tensor& input, bool skip_if_one) {
    const c10::cuda::CUDAGuard guard(input.device());
    cuda::softmax_backward(problem, skip_if_one, c10::cuda::getCurrentCUDAStream());
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(lossops, CUDA, library) {
  register_softmax_ops<SoftmaxCudaEngine>(library);
}

}  // namespace lossops::ops
