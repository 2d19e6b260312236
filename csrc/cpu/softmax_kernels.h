// What one instruction set offers to the softmax engine: a function over a range of rows, to be
// called from one thread each, or from one that lets all share each row.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/softmax_problem.h"
#include "cpu/instruction_sets.h"

namespace lossops::cpu {

// Fewer classes than these do not fill vectors: rows then lie side by side in them.
constexpr int64_t kWideRow = 96;

// Whether the classes of one row fill the vectors; otherwise `rows_at_once` rows side by side do.
inline bool runs_along_classes(const SoftmaxProblem& problem) {
  return problem.input.class_stride == 1 && problem.classes >= kWideRow;
}

// As many rows as fit into the L1 cache, at least a vector of the widest instruction set.
inline int64_t rows_at_once(const SoftmaxProblem& problem) {
  if (runs_along_classes(problem)) return 1;
  int64_t rows = 16;
  while (rows < 256 && 2 * rows * problem.classes <= 4096) rows *= 2;
  return rows;
}

inline int64_t read_label(const RowLabels& labels, int64_t outer, int64_t inner) {
  const int64_t i = outer * labels.outer_stride + inner * labels.inner_stride;
  switch (labels.bytes) {
    case 8:
      return static_cast<const int64_t*>(labels.data)[i];
    case 4:
      return static_cast<const int32_t*>(labels.data)[i];
    default:
      return static_cast<const uint8_t*>(labels.data)[i];
  }
}

// The threads that share the blocks of a row, where rows are too few to share: all of them, or the
// one that asks.
struct Threads {
  using Part = void (*)(const void* loop, int64_t begin, int64_t end);
  void (*run)(int64_t n, const void* loop, Part part) = nullptr;

  bool share() const { return run != nullptr; }
  template <class F>
  void each(int64_t n, const F& f) const {
    const auto part = [](const void* loop, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) (*static_cast<const F*>(loop))(i);
    };
    if (run) return run(n, &f, part);
    part(&f, 0, n);
  }
};

struct SoftmaxKernels {
  // Computes everything that the problem asks for, but its normalizer and `reduced`. [begin, end)
  // lies within one group, or covers whole groups; the unscaled losses of the j-th of them are
  // added to sums[j]. They are the same bits whether threads share a row or not.
  void (*run)(const SoftmaxProblem&, int64_t begin, int64_t end, double* sums, Threads threads);
};

template <InstructionSet>
const SoftmaxKernels& softmax_kernels();

}  // namespace lossops::cpu
