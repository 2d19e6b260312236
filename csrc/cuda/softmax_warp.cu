// Short rows whose classes lie side by side: a warp, or a part of one, has a row in its registers.
#include "cuda/softmax_kernels.cuh"
#include "cuda/softmax_packs.cuh"

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

template <Operands operands>
void run(const SoftmaxProblem& problem, const RowSchedule& schedule, int vectors,
         const Grid& grid) {
  visit_type<operands>(problem, [&]<class Loss, class S>() {
    auto kernel = rows_warp<Loss, S, operands, 1>;
    if (vectors == 2) kernel = rows_warp<Loss, S, operands, 2>;
    if (vectors == 4) kernel = rows_warp<Loss, S, operands, 4>;
    if constexpr (of_label<operands>) {
      if (vectors == 8) kernel = rows_warp<Loss, S, operands, 8>;
    }
    launch("kernel softmax rows_warp", Loss::name, kernel, grid, problem, schedule);
  });
}

}  // namespace

void softmax_warp(const SoftmaxProblem& problem, const RowSchedule& schedule, int vectors,
                  const Grid& grid) {
  switch (operands_of(problem)) {
    case Operands::labels:
      return run<Operands::labels>(problem, schedule, vectors, grid);
    case Operands::others:
      return run<Operands::others>(problem, schedule, vectors, grid);
    case Operands::logits:
      return run<Operands::logits>(problem, schedule, vectors, grid);
    case Operands::probs:
      return run<Operands::probs>(problem, schedule, vectors, grid);
    case Operands::soft:
      return run<Operands::soft>(problem, schedule, vectors, grid);
    case Operands::none:
      return;
  }
}

}  // namespace lossops::cuda
