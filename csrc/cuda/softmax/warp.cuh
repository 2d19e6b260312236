// Short rows with contiguous classes: a warp, or part of one, holds a row in its registers.
#pragma once

#include "cuda/softmax/kernels.cuh"
#include "cuda/softmax/packs.cuh"

namespace lossops::cuda {
namespace {

template <class Loss, class S, Operands operands, int vectors>
__global__ void __launch_bounds__(kThreads, 2)
    rows_warp(const __grid_constant__ SoftmaxProblem problem,
              const __grid_constant__ RowSchedule schedule) {
  if (nothing_to_do(problem, schedule)) return;
  using T = Compute<S>;
  using Cells = RegisterCells<S, !of_label<operands>, vectors>;
  Lanes team(schedule.width);
  for_rows<T>(problem, schedule, team, [&](const Row<T>& row) {
    Cells cells(problem, team, row);
    return row_loss<operands, Cells, Loss>(problem, row, cells, team);
  });
}

template <Operands operands, int vectors>
void launch_warp(const SoftmaxProblem& problem, const RowSchedule& schedule, const Grid& grid) {
  visit_type<operands>(problem, [&]<class Loss, class S>() {
    launch("kernel softmax rows_warp", Loss::name, rows_warp<Loss, S, operands, vectors>, grid,
           problem, schedule);
  });
}

}  // namespace
}  // namespace lossops::cuda
