// The per-row numbers, as the vector kernels of all losses access them. Compiled once per
// instruction set.
#pragma once

#include <algorithm>

#include "cpu/common/numbers.h"
#include "cpu/vectors/engine.h"

namespace lossops {
inline namespace CPU_CAPABILITY {

// Rows whose type in memory is S.
template <class S>
class RowsInMemory {
 protected:
  explicit RowsInMemory(const VectorsProblem& problem) : problem_(problem) {}

  static double number(const RowNumbers& numbers, int64_t r, double missing) {
    if (!numbers.defined()) return missing;
    return cpu::read_number(numbers.data, numbers.dtype, r * numbers.outer_stride);
  }
  static S* data(const RowVectors& vectors, int64_t r) {
    return static_cast<S*>(vectors.data) + r * vectors.row_stride;
  }

  double weight(int64_t r) const { return number(problem_.row_weight, r, 1); }
  // The factor on the derivatives of a row's loss.
  double scale(int64_t r) const {
    return problem_.scale * weight(r) * number(problem_.grad_output, r, 1);
  }
  void write_value(int64_t r, double value) const {
    if (!problem_.value.defined()) return;
    cpu::write_number(problem_.value.data, problem_.value.dtype, r, value);
  }
  // For a row that has no loss.
  void leave_out(int64_t r) const {
    write_value(r, kNaN);
    for (const RowVectors& grad : problem_.grads) {
      if (grad.defined()) std::fill_n(data(grad, r), problem_.length, static_cast<S>(0.f));
    }
  }

  const VectorsProblem& problem_;
};

}  // namespace CPU_CAPABILITY
}  // namespace lossops
