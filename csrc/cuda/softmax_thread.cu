// Any layout and dtype: every operand has strides of its own, known at run time. Where rows lie side
// by side, a thread has one to itself and its neighbours read the numbers beside its own; else some
// lanes of a warp or a block share it. What was read is kept in shared memory, as far as that goes.
#include "cuda/softmax_cells.cuh"
#include "cuda/softmax_divergences.cuh"
#include "cuda/softmax_kernels.cuh"

namespace lossops::cuda {
namespace {

template <class Loss, class T>
__global__ void __launch_bounds__(kThreads, 2)
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

template <class Loss>
void run(const SoftmaxProblem& problem, const RowSchedule& schedule, const Grid& grid) {
  const auto kernel = problem.double_precision ? rows_thread<Loss, double> : rows_thread<Loss, float>;
  launch("kernel softmax rows_thread", Loss::name, kernel, grid, problem, schedule);
}

}  // namespace

void softmax_thread(const SoftmaxProblem& problem, const RowSchedule& schedule, const Grid& grid) {
  if (!problem.divergence && problem.target_form == Form::labels) {
    return run<CrossEntropy>(problem, schedule, grid);
  }
  if (!problem.divergence) return run<SoftCrossEntropy>(problem, schedule, grid);
  visit(Divergences{}, problem.loss,
        [&]<class Loss>() { run<Loss>(problem, schedule, grid); });
}

}  // namespace lossops::cuda
