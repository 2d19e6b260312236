#include <torch/library.h>

#include "cpu/softmax/engine.h"
#include "ops/softmax/checks.h"

namespace lossops::ops {
namespace {

struct SoftmaxCpuEngine {
  static void check(const SoftmaxProblem& problem) {
    const auto bad = cpu::bad_label(problem);
    TORCH_CHECK_INDEX(!bad, "Target ", *bad, " is out of bounds.");
  }
  static void forward(const SoftmaxProblem& problem, const Tensor&) {
    cpu::softmax_forward(problem);
  }
  static void backward(const SoftmaxProblem& problem, const Tensor&, bool skip_if_one) {
    cpu::softmax_backward(problem, skip_if_one);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(lossops, CPU, library) {
  register_softmax_ops<SoftmaxCpuEngine>(library);
}

}  // namespace lossops::ops
