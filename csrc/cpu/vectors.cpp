#include "cpu/vectors.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cpu/numbers.h"
#include "cpu/softmax_kernels.h"

namespace lossops::cpu {
namespace {

constexpr int64_t kPiece = 32 * 1024;  // elements that a thread takes at a time

const VectorsKernels& choose_kernels() {
#if defined(LOSSOPS_X86_64)
  const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return vectors_kernels_avx512();
  if (capability == "AVX2") return vectors_kernels_avx2();
#endif
  return vectors_kernels_default();
}

}  // namespace

void vectors_run(const VectorsProblem& problem) {
  static const VectorsKernels& kernels = choose_kernels();
  const int64_t rows = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, problem.length));
  at::parallel_for(0, problem.rows, rows,
                   [&](int64_t begin, int64_t end) { kernels.run(problem, begin, end); });
}

double sum_of_values(const VectorsProblem& problem) {
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
  return pairwise_sum(sums.data(), static_cast<int64_t>(sums.size()));
}

std::optional<int64_t> bad_index(const VectorsProblem& problem) {
  if (!problem.labels.defined()) return std::nullopt;
  for (int64_t r = 0; r < problem.rows; ++r) {
    const int64_t label = read_label(problem.labels, r, 0);
    if (label < 0 || label >= problem.length) return label;
  }
  return std::nullopt;
}

}  // namespace lossops::cpu
