#include "cpu/vectors/engine.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/common/labels.h"
#include "cpu/common/numbers.h"

namespace lossops::cpu {
namespace {

constexpr int64_t kPiece = 32 * 1024;  // elements that a thread takes at a time

// Whether f is true for any label of a row. Evaluates f for all labels, without a branch.
template <class F>
bool any_label(const RowLabels& labels, int64_t r, int64_t n, const F& f) {
  const auto any = [&]<class Label>(const Label* row) {
    bool found = false;
    if (labels.inner_stride == 1) {
      for (int64_t i = 0; i < n; ++i) found |= f(static_cast<int64_t>(row[i]));
    } else {
      for (int64_t i = 0; i < n; ++i)
        found |= f(static_cast<int64_t>(row[i * labels.inner_stride]));
    }
    return found;
  };
  const int64_t first = r * labels.outer_stride;
  if (labels.bytes == 8) return any(static_cast<const int64_t*>(labels.data) + first);
  if (labels.bytes == 4) return any(static_cast<const int32_t*>(labels.data) + first);
  return any(static_cast<const uint8_t*>(labels.data) + first);
}

}  // namespace

void vectors_run(const VectorsProblem& problem) {
  static const VectorsKernels& kernels = with_instruction_set(
      []<InstructionSet set>() -> const auto& { return vectors_kernels<set>(); });
  const int64_t rows = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, problem.length));
  at::parallel_for(0, problem.rows, rows,
                   [&](int64_t begin, int64_t end) { kernels.run(problem, begin, end); });
}

void write_sum(const VectorsProblem& problem, double over, void* result, DType dtype) {
  constexpr int64_t piece = 4096;
  std::vector<double> sums((problem.rows + piece - 1) / piece);
  at::parallel_for(0, static_cast<int64_t>(sums.size()), 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t stop = std::min(problem.rows, (i + 1) * piece);
      double sum = 0;
      for (int64_t r = i * piece; r < stop; ++r) {
        sum += read_number(problem.value.data, problem.value.dtype, r);
      }
      sums[i] = sum;
    }
  });
  const double sum = pairwise_sum(sums.data(), static_cast<int64_t>(sums.size()));
  write_number(result, dtype, 0, sum / over);
}

std::optional<int64_t> bad_index(const VectorsProblem& problem) {
  if (!problem.labels.defined()) return std::nullopt;
  const bool lists = problem.has_lists();
  const int64_t per_row = lists ? problem.length : 1, lowest = lists ? -1 : 0;  // -1 ends a list
  const auto outside = [&](int64_t label) { return (label < lowest) | (label >= problem.length); };
  const int64_t rows = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, per_row));
  std::atomic<bool> any = false;
  at::parallel_for(0, problem.rows, rows, [&](int64_t begin, int64_t end) {
    bool found = false;
    for (int64_t r = begin; r < end; ++r) found |= any_label(problem.labels, r, per_row, outside);
    if (found) any = true;
  });
  for (int64_t i = 0; any; ++i) {
    const int64_t label = read_label(problem.labels, i / per_row, i % per_row);
    if (outside(label)) return label;
  }
  return std::nullopt;
}

}  // namespace lossops::cpu
