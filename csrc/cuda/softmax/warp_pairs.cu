#include "cuda/softmax/warp.cuh"

namespace lossops::cuda {
namespace {

template <Operands operands>
void run(const SoftmaxProblem& problem, const RowSchedule& schedule, int vectors,
         const Grid& grid) {
  vectors == 1 ? launch_warp<operands, 1>(problem, schedule, grid)
               : launch_warp<operands, 4>(problem, schedule, grid);
}

}  // namespace

void softmax_warp_pairs(const SoftmaxProblem& problem, const RowSchedule& schedule, int vectors,
                        const Grid& grid) {
  switch (operands_of(problem)) {
    case Operands::two_logits:
      return run<Operands::two_logits>(problem, schedule, vectors, grid);
    case Operands::log_probs_and_probs:
      return run<Operands::log_probs_and_probs>(problem, schedule, vectors, grid);
    default:
      return run<Operands::logits_and_probs>(problem, schedule, vectors, grid);
  }
}

}  // namespace lossops::cuda
