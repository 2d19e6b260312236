// Long rows with contiguous classes: a block, or a cluster of blocks, holds a row in its shared
// memory.
#pragma once

#include "cuda/softmax/kernels.cuh"
#include "cuda/softmax/packs.cuh"

namespace lossops::cuda {
namespace {

template <class Loss, class S, Operands operands>
__global__ void __launch_bounds__(operands == Operands::plain_labels ? kLabelThreads
                                                                     : kOtherThreads,
                                  1) rows_block(const __grid_constant__ SoftmaxProblem problem,
                                                const __grid_constant__ RowSchedule schedule) {
  LOSSOPS_DYNAMIC_SHARED(memory);
  if (nothing_to_do(problem, schedule)) return;
  using T = Compute<S>;
  using Cells = SharedCells<S, !of_label<operands>>;
  Blocks team(schedule.cluster);
  for_rows<T>(problem, schedule, team, [&](const Row<T>& row) {
    Cells cells(problem, schedule, team, row, memory);
    return row_loss<operands, Cells, Loss>(problem, row, cells, team);
  });
}

template <Operands operands>
void launch_block(const SoftmaxProblem& problem, const RowSchedule& schedule, const Grid& grid) {
  visit_type<operands>(problem, [&]<class Loss, class S>() {
    launch("kernel softmax rows_block", Loss::name, rows_block<Loss, S, operands>, grid, problem,
           schedule);
  });
}

}  // namespace
}  // namespace lossops::cuda
