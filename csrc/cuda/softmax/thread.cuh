// Any layout and dtype: the strides of every operand are known at run time only. If adjacent rows
// are contiguous, a thread has a row to itself, and adjacent threads read adjacent numbers.
// Otherwise some lanes of a warp or a block share a row. What was read is kept in shared memory, as
// far as there is room.
#pragma once

#include "cuda/softmax/cells.cuh"
#include "cuda/softmax/kernels.cuh"

namespace lossops::cuda {
namespace {

// The number of blocks that a multiprocessor should hold, which limits their registers.
template <class Loss, class T>
constexpr int kBlocksAtOnce = std::is_same_v<Loss, JensenShannon> && sizeof(T) == 8 ? 1 : 2;

template <class Loss, class T>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<Loss, T>)
    rows_thread(const __grid_constant__ SoftmaxProblem problem,
                const __grid_constant__ RowSchedule schedule) {
  LOSSOPS_DYNAMIC_SHARED(memory);
  if (nothing_to_do(problem, schedule)) return;
  // CrossEntropy stands for all label losses.
  using Cells = StridedCells<T, !std::is_same_v<Loss, CrossEntropy>>;
  LanesOrBlock team(schedule.width);
  for_rows<T>(problem, schedule, team, [&](const Row<T>& row) {
    Cells cells(problem, schedule, team, row, reinterpret_cast<T*>(memory));
    if constexpr (!Cells::kHasTarget) {
      return label_row<Forms<-1, -1>>(problem, row, cells, team);
    } else {
      return divergence_row<Loss, Forms<-1, -1>>(problem, row, cells, team);
    }
  });
}

template <class T>
void launch_thread(const SoftmaxProblem& problem, const RowSchedule& schedule, const Grid& grid) {
  const auto run = [&]<class Loss>() {
    launch("kernel softmax rows_thread", Loss::name, rows_thread<Loss, T>, grid, problem, schedule);
  };
  if (problem.divergence) return visit(Divergences{}, problem.loss, run);
  problem.target_form == Form::labels ? run.template operator()<CrossEntropy>()
                                      : run.template operator()<SoftCrossEntropy>();
}

}  // namespace
}  // namespace lossops::cuda
