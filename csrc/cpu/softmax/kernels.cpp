// The softmax kernels. Compiled once per instruction set.
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/softmax/divergences.h"
#include "cpu/softmax/kernels.h"
#include "cpu/softmax/labels.h"

namespace lossops {
inline namespace CPU_CAPABILITY {
namespace {

using cpu::Threads;

template <class T, bool across>
void run_rows(const SoftmaxProblem& problem, int64_t begin, int64_t end, double* sums,
              Threads threads) {
  if (problem.divergence) {
    visit(Divergences{}, problem.loss, [&]<class Loss>() {
      DivergenceRows<Loss, T, across>(problem, threads).run(begin, end, sums);
    });
  } else {
    LabelRows<T, across>(problem, threads).run(begin, end, sums);
  }
}

void run(const SoftmaxProblem& problem, int64_t begin, int64_t end, double* sums, Threads threads) {
  const bool across = cpu::runs_along_classes(problem);
  if (problem.double_precision) {
    across ? run_rows<double, true>(problem, begin, end, sums, threads)
           : run_rows<double, false>(problem, begin, end, sums, threads);
  } else {
    across ? run_rows<float, true>(problem, begin, end, sums, threads)
           : run_rows<float, false>(problem, begin, end, sums, threads);
  }
}

}  // namespace
}  // namespace CPU_CAPABILITY

namespace cpu {

template <InstructionSet>
const SoftmaxKernels& softmax_kernels() {
  static constexpr SoftmaxKernels kernels{run};
  return kernels;
}

template const SoftmaxKernels& softmax_kernels<InstructionSet::CPU_CAPABILITY>();

}  // namespace cpu
}  // namespace lossops
