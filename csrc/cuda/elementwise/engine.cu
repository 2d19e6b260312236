#include "cuda/elementwise/engine.h"

#include <algorithm>

#include "cuda/elementwise/schedule.cuh"

namespace lossops::cuda {
namespace {

constexpr int64_t kElementsPerBlock = 2048;  // at least; fewer do not justify another block
constexpr int64_t kSmallGroup = 1024;        // elements that a single warp reduces
// A multiprocessor holds 4 to 8 blocks at a time. Reductions use few blocks, so that there are few
// partial sums. Without a reduction, more blocks balance the load at the end.
constexpr int64_t kReducingBlocks = 8, kPlainBlocks = 32;  // per multiprocessor

struct Plan {
  int64_t groups_at_once;
  int64_t splits;
  int threads;
};

// Depends only on the size of the problem and the device, because the last bits of the results
// depend on the plan.
Plan plan(const ElementwiseProblem& problem) {
  const int64_t per_multiprocessor = problem.reduced.defined() ? kReducingBlocks : kPlainBlocks;
  const int64_t blocks = multiprocessors() * per_multiprocessor;
  const int64_t wanted = (blocks + problem.groups - 1) / problem.groups;
  const int64_t useful = (problem.group_size + kElementsPerBlock - 1) / kElementsPerBlock;
  Plan plan;
  plan.splits = std::min(wanted, useful);
  plan.groups_at_once = std::clamp<int64_t>(most_blocks() / plan.splits, 1, problem.groups);
  plan.threads = problem.groups > 1 && problem.group_size <= kSmallGroup ? kWarp : kThreads;
  return plan;
}

void run(const ElementwiseProblem& problem, int order, bool skip_if_one, void* workspace,
         cudaStream_t stream) {
  const Plan plan = cuda::plan(problem);
  Schedule schedule;
  schedule.splits = static_cast<int>(plan.splits);
  schedule.skip_if_one = skip_if_one;
  if (problem.reduced.defined()) place(schedule, workspace, problem.groups, stream);
  const Grid grid{plan.groups_at_once * plan.splits, plan.threads, stream};
  if (order == 1 && elementwise_dense(problem, schedule, grid)) return;
  elementwise_strided(problem, order, schedule, grid);
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    rescale(S* grad, int64_t numel, int64_t vectors, const void* grad_output,
            DType grad_output_dtype) {
  using T = Compute<S>;
  constexpr int N = 16 / sizeof(S);
  const double number = load_number<double>(grad_output, grad_output_dtype, 0);
  if (number == 1) return;
  const T factor = static_cast<T>(number);
  const int64_t start = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = start; i < vectors; i += step) {
    T numbers[N];
    Pack<S, N>::load(grad + i * N).unpack(numbers);
#pragma unroll
    for (T& each : numbers) each *= factor;
    Pack<S, N>::of(numbers).store(grad + i * N);
  }
  for (int64_t i = vectors * N + start; i < numel; i += step) {
    grad[i] = narrow<S>(factor * widen<T>(grad[i]));
  }
}

}  // namespace

int64_t elementwise_workspace_bytes(const ElementwiseProblem& problem) {
  return problem.reduced.defined() ? schedule_bytes(problem.groups, cuda::plan(problem).splits) : 0;
}

void elementwise_forward(const ElementwiseProblem& problem, void* workspace, cudaStream_t stream) {
  run(problem, 1, false, workspace, stream);
}

void elementwise_backward(const ElementwiseProblem& problem, bool skip_if_one,
                          cudaStream_t stream) {
  ElementwiseProblem whole = problem;
  if (problem.normalizer_stride == 0) {  // then groups make no difference
    whole.groups = 1;
    whole.group_size = problem.numel;
  }
  run(whole, 1, skip_if_one, nullptr, stream);
}

void elementwise_double_backward(const ElementwiseProblem& problem, void* workspace,
                                 cudaStream_t stream) {
  run(problem, 2, false, workspace, stream);
}

void elementwise_rescale(void* grad, DType dtype, int64_t numel, const void* grad_output,
                         DType grad_output_dtype, cudaStream_t stream) {
  with_dtype(dtype, [&]<class S>() {
    S* data = static_cast<S*>(grad);
    const int64_t vectors = aligned(data, 16) ? numel * sizeof(S) / 16 : 0;
    const int64_t useful = (numel + kElementsPerBlock - 1) / kElementsPerBlock;
    const Grid grid{std::min<int64_t>(useful, multiprocessors() * kReducingBlocks), kThreads,
                    stream};
    launch("kernel elementwise_rescale", "", rescale<S>, grid, data, numel, vectors, grad_output,
           grad_output_dtype);
  });
}

}  // namespace lossops::cuda
