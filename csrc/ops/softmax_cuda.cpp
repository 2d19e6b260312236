#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda/softmax.h"
#include "ops/softmax.h"

namespace lossops::ops {
namespace {

// Runs a problem on the current stream of the tensors' device.
struct CudaEngine {
  // Calls f with the workspace and the stream. The caching allocator hands memory out per stream,
  // so a workspace may be freed as soon as the kernel is launched.
  template <class F>
  static void run(const SoftmaxProblem& problem, const Tensor& input, const F& f) {
    const c10::cuda::CUDAGuard guard(input.device());
    const int64_t bytes = cuda::softmax_workspace_bytes(problem);
    const Tensor memory =
        bytes > 0 ? at::empty({bytes}, input.options().dtype(at::kByte)) : Tensor();
    f(bytes > 0 ? memory.data_ptr() : nullptr, c10::cuda::getCurrentCUDAStream());
  }

  static void forward(const SoftmaxProblem& problem, const Tensor& input) {
    run(problem, input, [&](void* workspace, cudaStream_t stream) {
      cuda::softmax_forward(problem, workspace, stream);
    });
  }
  static void backward(const SoftmaxProblem& problem, const Tensor& input, bool skip_if_one) {
    run(problem, input, [&](void* workspace, cudaStream_t stream) {
      cuda::softmax_backward(problem, skip_if_one, workspace, stream);
    });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(lossops, CUDA, library) {
  register_softmax_ops<CudaEngine>(library);
}

}  // namespace lossops::ops
