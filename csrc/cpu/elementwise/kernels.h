// What an instruction set provides to the elementwise engine: functions over a range of elements,
// each called from a single thread.
#pragma once

#include <cstdint>

#include "common/elementwise_problem.h"
#include "cpu/common/instruction_sets.h"

namespace lossops::cpu {

struct ElementwiseKernels {
  // [begin, end) lies within one group or covers whole groups. sums[j] becomes the unscaled sum
  // over the part of the j-th group that lies in the range.
  void (*forward)(const ElementwiseProblem&, int64_t begin, int64_t end, double* sums);
  void (*backward)(const ElementwiseProblem&, int64_t begin, int64_t end);
  void (*double_backward)(const ElementwiseProblem&, int64_t begin, int64_t end, double* sums);

  // Multiplies n elements of dense memory by `factor`.
  void (*rescale)(void* data, DType, int64_t n, double factor);
};

template <InstructionSet>
const ElementwiseKernels& elementwise_kernels();

}  // namespace lossops::cpu
