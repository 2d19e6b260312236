#include "cuda/softmax/block.cuh"

namespace lossops::cuda {

void softmax_block_pairs(const SoftmaxProblem& problem, const RowSchedule& schedule,
                         const Grid& grid) {
  switch (operands_of(problem)) {
    case Operands::logits:
      return launch_block<Operands::logits>(problem, schedule, grid);
    case Operands::probs:
      return launch_block<Operands::probs>(problem, schedule, grid);
    default:
      return launch_block<Operands::soft>(problem, schedule, grid);
  }
}

}  // namespace lossops::cuda
