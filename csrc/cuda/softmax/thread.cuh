// Any layout and dtype: every operand has strides of its own, known at run time. Where rows lie
// side by side, a thread has one to itself and its neighbours read the numbers beside its own; else
// some lanes of a warp or a block share it. What was read is kept in shared memory, as far as that
// goes.
#pragma once

#include "cuda/softmax/cells.cuh"
#include "cuda/softmax/kernels.cuh"

namespace lossops::cuda {
namespace {

// How many blocks a multiprocessor should hold: what their registers are for.
template <class Loss, class T>
constexpr int kBlocksAtOnce = std::is_same_v<Loss, JensenShannon> && sizeof(T) == 8 ? 1 : 2;

template <class Loss, class T>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<Loss, T>)
    rows_thread(const __grid_constant__ SoftmaxProblem problem,
                const __grid_constant__ RowSchedule schedule) {
  LOSSOPS_DYNAMIC_SHARED(memory);
  if (nothing_to_do(problem, schedule)) return;
  // CrossEntropy stands for all losses of a label.
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
