#include "cuda/softmax/block.cuh"

namespace lossops::cuda {

void softmax_block_labels(const SoftmaxProblem& problem, const RowSchedule& schedule,
                          const Grid& grid) {
  operands_of(problem) == Operands::plain_labels
      ? launch_block<Operands::plain_labels>(problem, schedule, grid)
      : launch_block<Operands::labels_with_options>(problem, schedule, grid);
}

}  // namespace lossops::cuda
