#include "cuda/softmax/block.cuh"

namespace lossops::cuda {

void softmax_block_pairs(const SoftmaxProblem& problem, const RowSchedule& schedule,
                         const Grid& grid) {
  switch (operands_of(problem)) {
    case Operands::two_logits:
      return launch_block<Operands::two_logits>(problem, schedule, grid);
    case Operands::log_probs_and_probs:
      return launch_block<Operands::log_probs_and_probs>(problem, schedule, grid);
    default:
      return launch_block<Operands::logits_and_probs>(problem, schedule, grid);
  }
}

}  // namespace lossops::cuda
