// What an instruction set provides to the softmax engine: a function over a range of rows, called
// from one thread each, or from a single thread that lets all threads share each row.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/softmax_problem.h"
#include "cpu/common/instruction_sets.h"
#include "cpu/common/labels.h"
#include "cpu/common/threads.h"

namespace lossops::cpu {

// With fewer classes, a row does not fill vectors, so several rows lie side by side in them.
constexpr int64_t kWideRow = 96;

// Whether the classes of one row fill the vectors; otherwise `rows_at_once` rows side by side do.
inline bool runs_along_classes(const SoftmaxProblem& problem) {
  return problem.input.class_stride == 1 && problem.classes >= kWideRow;
}

// As many rows as fit into the L1 cache, but at least a vector of the widest instruction set.
inline int64_t rows_at_once(const SoftmaxProblem& problem) {
  if (runs_along_classes(problem)) return 1;
  int64_t rows = 16;
  while (rows < 256 && 2 * rows * problem.classes <= 4096) rows *= 2;
  return rows;
}

struct SoftmaxKernels {
  // Computes everything that the problem asks for except its normalizer and `reduced`. [begin, end)
  // lies within one group or covers whole groups; the unscaled losses of the j-th group are added
  // to sums[j]. They are bitwise identical whether threads share a row or not.
  void (*run)(const SoftmaxProblem&, int64_t begin, int64_t end, double* sums, Threads threads);
};

template <InstructionSet>
const SoftmaxKernels& softmax_kernels();

}  // namespace lossops::cpu
