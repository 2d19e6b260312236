#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/vectors/engine.h"
#include "ops/vectors/checks.h"

namespace lossops::ops {
namespace {

struct VectorsCpuEngine {
  static void run(const VectorsProblem& problem, const Tensor&, bool check_labels) {
    if (check_labels) {  // the same type of error as torch raises for these losses
      const auto bad = cpu::bad_index(problem);
      TORCH_CHECK(!bad, "target out of range: ", *bad, " of ", problem.length, " classes");
    }
    cpu::vectors_run(problem);
  }
  static Tensor sum(const VectorsProblem& problem, const Tensor& values, double over,
                    at::ScalarType dtype) {
    Tensor sum = at::empty({}, values.options().dtype(dtype));
    cpu::write_sum(problem, over, sum.data_ptr(), dtype_of(sum));
    return sum;
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(lossops, CPU, library) {
  register_vector_ops<VectorsCpuEngine>(library);
}

}  // namespace lossops::ops
