#include "cuda/softmax/thread.cuh"

namespace lossops::cuda {

void softmax_thread_double(const SoftmaxProblem& problem, const RowSchedule& schedule,
                           const Grid& grid) {
  launch_thread<double>(problem, schedule, grid);
}

}  // namespace lossops::cuda
