#include "cuda/softmax/thread.cuh"

namespace lossops::cuda {

void softmax_thread(const SoftmaxProblem& problem, const RowSchedule& schedule, const Grid& grid) {
  launch_thread<float>(problem, schedule, grid);
}

}  // namespace lossops::cuda
