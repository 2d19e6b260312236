#include "cuda/softmax/warp.cuh"

namespace lossops::cuda {

void softmax_warp_labels(const SoftmaxProblem& problem, const RowSchedule& schedule, int vectors,
                         const Grid& grid) {
  if (operands_of(problem) == Operands::labels_with_options) {
    return vectors == 1 ? launch_warp<Operands::labels_with_options, 1>(problem, schedule, grid)
                        : launch_warp<Operands::labels_with_options, 8>(problem, schedule, grid);
  }
  switch (vectors) {
    case 1:
      return launch_warp<Operands::plain_labels, 1>(problem, schedule, grid);
    case 2:
    case 4:
      return launch_warp<Operands::plain_labels, 4>(problem, schedule, grid);
    default:
      return launch_warp<Operands::plain_labels, 8>(problem, schedule, grid);
  }
}

}  // namespace lossops::cuda
