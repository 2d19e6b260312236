#include "cuda/softmax/block.cuh"

namespace lossops::cuda {

void softmax_block_labels(const SoftmaxProblem& problem, const RowSchedule& schedule,
                          const Grid& grid) {
  operands_of(problem) == Operands::labels
      ? launch_block<Operands::labels>(problem, schedule, grid)
      : launch_block<Operands::others>(problem, schedule, grid);
}

}  // namespace lossops::cuda
