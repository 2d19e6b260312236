#include "cpu/elementwise/engine.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cpu/common/numbers.h"
#include "cpu/elementwise/kernels.h"

namespace lossops::cpu {
namespace {

// Elements that a thread takes at a time. The sum of a piece does not depend on the thread that
// computes it, so results are bitwise identical for any number of threads.
constexpr int64_t kPiece = 16 * 1024;
constexpr int64_t kGrain = 32 * 1024;  // with fewer elements, one thread

const ElementwiseKernels& kernels() {
  static const ElementwiseKernels& chosen = with_instruction_set(
      []<InstructionSet set>() -> const auto& { return elementwise_kernels<set>(); });
  return chosen;
}

// Cuts the problem into pieces and calls run(begin, end, sums) for each, on all threads. A piece is
// part of one group or, if groups are small, several whole ones.
template <class F>
void for_each_piece(const ElementwiseProblem& problem, double* sums, const F& run) {
  const int64_t group = problem.group_size;
  if (group <= kPiece / 2) {
    const int64_t per_piece = kPiece / group;
    at::parallel_for(0, problem.groups, std::max<int64_t>(kGrain / group, 1),
                     [&](int64_t begin, int64_t end) {
                       for (int64_t g = begin; g < end; g += per_piece) {
                         const int64_t last = std::min(g + per_piece, end);
                         run(g * group, last * group, sums + g);
                       }
                     });
    return;
  }
  const int64_t pieces = (group + kPiece - 1) / kPiece;  // per group
  at::parallel_for(0, problem.groups * pieces, std::max<int64_t>(kGrain / kPiece, 1),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       const int64_t start = (i / pieces) * group;
                       const int64_t from = start + (i % pieces) * kPiece;
                       run(from, std::min(from + kPiece, start + group), sums + i);
                     }
                   });
}

// The number of partial sums per group that for_each_piece writes.
int64_t sums_per_group(const ElementwiseProblem& problem) {
  return problem.group_size <= kPiece / 2 ? 1 : (problem.group_size + kPiece - 1) / kPiece;
}

// Runs the pieces and, if the problem reduces, turns their sums into the losses.
template <class F>
void run_and_reduce(const ElementwiseProblem& problem, const F& run) {
  const int64_t per_group = sums_per_group(problem);
  std::vector<double> sums(problem.groups * per_group);
  for_each_piece(problem, sums.data(), run);
  if (!problem.reduced.defined()) return;
  at::parallel_for(0, problem.groups, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      double sum = pairwise_sum(sums.data() + group * per_group, per_group) * problem.scale;
      if (problem.normalizer.defined()) {
        sum /= read_number(problem.normalizer.data, problem.normalizer.dtype,
                           group * problem.normalizer_stride);
      }
      write_number(problem.reduced.data, problem.reduced.dtype, group, sum);
    }
  });
}

}  // namespace

void elementwise_forward(const ElementwiseProblem& problem) {
  run_and_reduce(problem, [&](int64_t begin, int64_t end, double* sums) {
    kernels().forward(problem, begin, end, sums);
  });
}

void elementwise_backward(const ElementwiseProblem& problem, bool skip_if_one) {
  const Operand& grad_output = problem.grad_output;
  if (skip_if_one && read_number(grad_output.data, grad_output.dtype) == 1) return;
  at::parallel_for(0, problem.numel, kGrain,
                   [&](int64_t begin, int64_t end) { kernels().backward(problem, begin, end); });
}

void elementwise_double_backward(const ElementwiseProblem& problem) {
  run_and_reduce(problem, [&](int64_t begin, int64_t end, double* sums) {
    kernels().double_backward(problem, begin, end, sums);
  });
}

void elementwise_rescale(void* data, DType dtype, int64_t numel, const void* factor,
                         DType factor_dtype) {
  const double number = read_number(factor, factor_dtype);
  if (number == 1) return;
  at::parallel_for(0, numel, kGrain, [&](int64_t begin, int64_t end) {
    auto* from = static_cast<char*>(data) + begin * size_of(dtype);
    kernels().rescale(from, dtype, end - begin, number);
  });
}

InstructionSet widest_instruction_set() {
  const std::string name = at::get_cpu_capability();
  if (name == "AVX512") return InstructionSet::AVX512;
  return name == "AVX2" ? InstructionSet::AVX2 : InstructionSet::DEFAULT;
}

const char* instruction_set() {
  return with_instruction_set([]<InstructionSet set>() {
    return set == InstructionSet::AVX512 ? "avx512"
           : set == InstructionSet::AVX2 ? "avx2"
                                         : "default";
  });
}

}  // namespace lossops::cpu
