#include "cuda/softmax/warp.cuh"

namespace lossops::cuda {

void softmax_warp_labels(const SoftmaxProblem& problem, const RowSchedule& schedule, int vectors,
                         const Grid& grid) {
  if (operands_of(problem) == Operands::others) {
    return vectors == 1 ? launch_warp<Operands::others, 1>(problem, schedule, grid)
                        : launch_warp<Operands::others, 8>(problem, schedule, grid);
  }
  switch (vectors) {
    case 1:
      return launch_warp<Operands::labels, 1>(problem, schedule, grid);
    case 2:
    case 4:
      return launch_warp<Operands::labels, 4>(problem, schedule, grid);
    default:
      return launch_warp<Operands::labels, 8>(problem, schedule, grid);
  }
}

}  // namespace lossops::cuda
