#include "cpu/softmax/engine.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/common/numbers.h"
#include "cpu/softmax/kernels.h"

namespace lossops::cpu {
namespace {

// Elements that a thread takes at a time. The sum of a piece does not depend on the thread that
// computes it, so results are bitwise identical for any number of threads.
constexpr int64_t kPiece = 32 * 1024;

const SoftmaxKernels& kernels() {
  static const SoftmaxKernels& chosen = with_instruction_set(
      []<InstructionSet set>() -> const auto& { return softmax_kernels<set>(); });
  return chosen;
}

void on_all_threads(int64_t n, const void* loop, Threads::Part part) {
  at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) { part(loop, begin, end); });
}

// Whether all threads share each row, one row after another.
bool shares_rows(const SoftmaxProblem& problem) {
  return runs_along_classes(problem) && problem.classes >= kPiece &&
         problem.rows() < at::get_num_threads();
}

// The number of rows that a thread takes at a time.
int64_t rows_per_piece(const SoftmaxProblem& problem) {
  const int64_t at_once = rows_at_once(problem);
  return at_once * std::max<int64_t>(1, kPiece / (at_once * problem.classes));
}

// Cuts the rows into pieces and calls run(begin, end, sums) for each, on all threads unless these
// share rows. A piece is part of one group or, if groups are small, several whole ones. Returns one
// sum per group.
template <class F>
std::vector<double> sum_over_pieces(const SoftmaxProblem& problem, int64_t piece, bool share_rows,
                                    const F& run) {
  const auto each = [&](int64_t pieces, const auto& f) {
    if (share_rows) return f(0, pieces);
    at::parallel_for(0, pieces, 1, f);
  };
  const int64_t group = problem.group_size;
  if (group <= piece / 2) {
    const int64_t groups_per_piece = piece / group;
    const int64_t pieces = (problem.groups + groups_per_piece - 1) / groups_per_piece;
    std::vector<double> sums(problem.groups);
    each(pieces, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i * groups_per_piece;
        const int64_t last = std::min(first + groups_per_piece, problem.groups);
        run(first * group, last * group, sums.data() + first);
      }
    });
    return sums;
  }
  const int64_t pieces = (group + piece - 1) / piece;  // per group
  std::vector<double> shares(problem.groups * pieces), sums(problem.groups);
  each(problem.groups * pieces, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t start = (i / pieces) * group;
      const int64_t from = start + (i % pieces) * piece;
      run(from, std::min(from + piece, start + group), shares.data() + i);
    }
  });
  for (int64_t g = 0; g < problem.groups; ++g) {
    sums[g] = pairwise_sum(shares.data() + g * pieces, pieces);
  }
  return sums;
}

// Calls f(row, label) for the rows [begin, end), without a division per row, until f returns false.
template <class F>
void each_label(const SoftmaxProblem& problem, int64_t begin, int64_t end, const F& f) {
  const RowLabels& labels = problem.labels;
  const auto walk = [&](const auto* data) {
    int64_t inner = begin % problem.inner;
    int64_t at = begin / problem.inner * labels.outer_stride + inner * labels.inner_stride;
    const int64_t to_next = labels.outer_stride - problem.inner * labels.inner_stride;
    for (int64_t r = begin; r < end; inner = 0, at += to_next) {
      const int64_t stop = std::min(end, r + problem.inner - inner);
      for (; r < stop; ++r, at += labels.inner_stride) {
        if (!f(r, int64_t(data[at]))) return;
      }
    }
  };
  if (labels.bytes == 8) return walk(static_cast<const int64_t*>(labels.data));
  if (labels.bytes == 4) return walk(static_cast<const int32_t*>(labels.data));
  walk(static_cast<const uint8_t*>(labels.data));
}

bool is_class(const SoftmaxProblem& problem, int64_t label) {
  return static_cast<uint64_t>(label) < static_cast<uint64_t>(problem.classes);
}

// Computes the denominator of the mean, per group.
void count(const SoftmaxProblem& problem) {
  const Operand& weight = problem.class_weight;
  const auto sums =
      sum_over_pieces(problem, kPiece, false, [&](int64_t begin, int64_t end, double* sum) {
        if (!problem.count_weights && end - begin <= problem.group_size) {
          int64_t counted = 0;
          each_label(problem, begin, end, [&](int64_t, int64_t label) {
            counted += is_class(problem, label) & (label != problem.ignore_index);
            return true;
          });
          *sum += static_cast<double>(counted);
          return;
        }
        int64_t in_group = begin % problem.group_size;
        each_label(problem, begin, end, [&](int64_t, int64_t label) {
          if (is_class(problem, label) && label != problem.ignore_index) {
            *sum += problem.count_weights
                        ? read_number(weight.data, weight.dtype, label * weight.stride[0])
                        : 1;
          }
          if (++in_group == problem.group_size) in_group = 0, ++sum;
          return true;
        });
      });
  for (int64_t g = 0; g < problem.groups; ++g) {
    const double sum = sums[g] == 0 && problem.one_if_none ? 1 : sums[g];
    write_number(problem.normalizer.data, problem.normalizer.dtype, g, sum);
  }
}

// Computes everything except the denominator of the mean and the reduction. Returns the unscaled
// sums per group.
std::vector<double> run(const SoftmaxProblem& problem) {
  const bool share_rows = shares_rows(problem);
  const Threads threads{share_rows ? on_all_threads : nullptr};
  return sum_over_pieces(problem, rows_per_piece(problem), share_rows,
                         [&](int64_t begin, int64_t end, double* sums) {
                           kernels().run(problem, begin, end, sums, threads);
                         });
}

}  // namespace

void softmax_forward(const SoftmaxProblem& problem) {
  if (problem.count) count(problem);
  const auto sums = run(problem);
  if (!problem.reduced.defined()) return;
  for (int64_t g = 0; g < problem.groups; ++g) {
    double sum = sums[g] * problem.scale;
    if (problem.normalizer.defined()) {
      sum /= read_number(problem.normalizer.data, problem.normalizer.dtype,
                         g * problem.normalizer_stride);
    }
    write_number(problem.reduced.data, problem.reduced.dtype, g, sum);
  }
}

void softmax_backward(const SoftmaxProblem& problem, bool skip_if_one) {
  const RowNumbers& grad_output = problem.grad_output;
  if (skip_if_one && read_number(grad_output.data, grad_output.dtype) == 1) return;
  run(problem);
}

std::optional<int64_t> bad_label(const SoftmaxProblem& problem) {
  if (!problem.labels.defined()) return std::nullopt;
  // The first one, so that the message is the same for any number of threads.
  std::atomic<int64_t> first{problem.rows()};
  at::parallel_for(0, problem.rows(), kPiece, [&](int64_t begin, int64_t end) {
    each_label(problem, begin, end, [&](int64_t r, int64_t label) {
      if (is_class(problem, label) || label == problem.ignore_index) return true;
      for (int64_t seen = first; r < seen && !first.compare_exchange_weak(seen, r);) {
      }
      return false;
    });
  });
  if (first == problem.rows()) return std::nullopt;
  return read_label(problem.labels, first / problem.inner, first % problem.inner);
}

}  // namespace lossops::cpu
