#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda/vectors/engine.h"
#include "ops/vectors/checks.h"

namespace lossops::ops {
namespace {

// Runs a problem on the current stream of the tensors' device. Labels are not checked for invalid
// indices: the loss of such a row is NaN.
struct VectorsCudaEngine {
  static void run(const VectorsProblem& problem, const Tensor& first, bool /*check_labels*/) {
    const c10::cuda::CUDAGuard guard(first.device());
    cuda::vectors_run(problem, c10::cuda::getCurrentCUDAStream());
  }
  static Tensor sum(const VectorsProblem&, const Tensor& values, double over,
                    at::ScalarType dtype) {
    const Tensor sum = values.sum(at::kDouble);
    return (over == 1 ? sum : sum.div(over)).to(dtype);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(lossops, CUDA, library) {
  register_vector_ops<VectorsCudaEngine>(library);
}

}  // namespace lossops::ops
