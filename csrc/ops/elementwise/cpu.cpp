#include <torch/library.h>

#include "cpu/elementwise/engine.h"
#include "ops/elementwise/checks.h"

namespace lossops::ops {
namespace {

struct ElementwiseCpuEngine {
  static void forward(const ElementwiseProblem& problem, const Tensor&) {
    cpu::elementwise_forward(problem);
  }
  static void backward(const ElementwiseProblem& problem, const Tensor&, bool skip_if_one) {
    cpu::elementwise_backward(problem, skip_if_one);
  }
  static void double_backward(const ElementwiseProblem& problem, const Tensor&) {
    cpu::elementwise_double_backward(problem);
  }
  static void rescale(const Tensor& grad, const Tensor& factor) {
    cpu::elementwise_rescale(grad.data_ptr(), dtype_of(grad), grad.numel(), factor.data_ptr(),
                             dtype_of(factor));
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(lossops, CPU, library) {
  register_elementwise_ops<ElementwiseCpuEngine>(library);
}

}  // namespace lossops::ops
