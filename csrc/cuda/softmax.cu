#include "cuda/softmax.h"

#include <algorithm>

#include "cuda/softmax_kernels.cuh"

namespace lossops::cuda {
namespace {

constexpr int64_t kReducingBlocks = 8, kPlainBlocks = 32;  // per multiprocessor
constexpr int64_t kRowsPerBlock = 2048;  // labels to count: fewer are not worth another block
constexpr int kTile = 40 * 1024;         // bytes of shared memory to keep numbers in

int64_t quotient(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// ---- Counting: the denominator of a mean over labels

__global__ void __launch_bounds__(kThreads)
    count_labels(const __grid_constant__ SoftmaxProblem problem,
                 const __grid_constant__ Schedule schedule) {
  const int split = blockIdx.x % schedule.splits;
  const int64_t step = int64_t(schedule.splits) * blockDim.x;
  for (int64_t group = blockIdx.x / schedule.splits; group < problem.groups;
       group += gridDim.x / schedule.splits) {
    const int64_t end = (group + 1) * problem.group_size;
    double sum = 0;
    for (int64_t r = group * problem.group_size + int64_t(split) * blockDim.x + threadIdx.x;
         r < end; r += step) {
      const int64_t outer = problem.inner == 1 ? r : r / problem.inner;
      const RowLabels& labels = problem.labels;
      const int64_t label = load_label(labels, outer * labels.outer_stride +
                                                   (r - outer * problem.inner) * labels.inner_stride);
      if (label == problem.ignore_index || label < 0 || label >= problem.classes) continue;
      const Operand& weight = problem.class_weight;
      sum += problem.count_weights
                 ? load_number<double>(weight.data, weight.dtype, label * weight.stride[0])
                 : 1;
    }
    if (sum_group(schedule, group, split, sum)) {
      const Operand& normalizer = problem.normalizer;
      store_number(normalizer.data, normalizer.dtype, group,
                   problem.one_if_none && sum == 0 ? 1 : sum);
    }
  }
}

struct Plan {
  int64_t splits = 1, groups_at_once = 1;
  int threads = kThreads;
};

Plan plan_count(const SoftmaxProblem& problem) {
  Plan plan;
  plan.threads = problem.groups > 1 && problem.group_size <= kThreads ? kWarp : kThreads;
  const int64_t blocks = quotient(multiprocessors() * kReducingBlocks, problem.groups);
  plan.splits = std::min(blocks, quotient(problem.group_size, kRowsPerBlock));
  plan.groups_at_once = std::clamp<int64_t>(most_blocks() / plan.splits, 1, problem.groups);
  return plan;
}

// ---- Rows

// Threads that share a row of a layout that only the general kernel takes.
int general_width(const SoftmaxProblem& problem) {
  const bool beside = problem.inner > 1 && problem.input.inner_stride == 1;
  const bool many = problem.rows() >= int64_t(multiprocessors()) * kThreads;
  if (beside && (many || problem.classes < 256)) return 1;
  if (problem.classes > 1024) return kThreads;
  int width = 1;
  while (width < kWarp && width * 4 < problem.classes) width *= 2;
  return width;
}

struct RowPlan : Plan {
  RowSchedule schedule;
  int dynamic_shared = 0;
};

// Depends on the problem's size and the device alone, as results do in their last bits.
RowPlan plan_rows(const SoftmaxProblem& problem) {
  RowPlan plan;
  RowSchedule& schedule = plan.schedule;
  schedule.width = general_width(problem);
  const bool small = problem.groups > 1 && problem.group_size * schedule.width <= kThreads;
  if (small && schedule.width <= kWarp) plan.threads = kWarp;
  const int64_t numbers = problem.target_form == Form::labels && !problem.divergence ? 1 : 2;
  const int64_t bytes = numbers * plan.threads * (problem.double_precision ? 8 : 4);
  schedule.kept = static_cast<int>(
      std::min(quotient(problem.classes, schedule.width), kTile / bytes));
  plan.dynamic_shared = static_cast<int>(schedule.kept * bytes);
  const int64_t rows_at_once = std::max(1, plan.threads / schedule.width);
  const int64_t blocks =
      multiprocessors() * (problem.reduced.defined() ? kReducingBlocks : kPlainBlocks);
  plan.splits = std::min(quotient(blocks, problem.groups),
                         quotient(problem.group_size, rows_at_once));
  plan.groups_at_once = std::clamp<int64_t>(most_blocks() / plan.splits, 1, problem.groups);
  schedule.splits = static_cast<int>(plan.splits);
  return plan;
}

// Groups make no difference where nothing is reduced and one number normalizes all of them.
SoftmaxProblem with_few_groups(const SoftmaxProblem& problem) {
  SoftmaxProblem whole = problem;
  if (!problem.reduced.defined() && problem.normalizer_stride == 0 && !problem.count) {
    whole.groups = 1;
    whole.group_size = problem.rows();
  }
  return whole;
}

int64_t count_bytes(const SoftmaxProblem& problem) {
  if (!problem.count) return 0;
  return quotient(schedule_bytes(problem.groups, plan_count(problem).splits), 16) * 16;
}

void run(const SoftmaxProblem& problem, RowPlan& plan, cudaStream_t stream) {
  const Grid grid{plan.groups_at_once * plan.splits, plan.threads, stream, 1, plan.dynamic_shared};
  softmax_thread(problem, plan.schedule, grid);
}

}  // namespace

int64_t softmax_workspace_bytes(const SoftmaxProblem& given) {
  const SoftmaxProblem problem = with_few_groups(given);
  const int64_t reducing =
      problem.reduced.defined() ? schedule_bytes(problem.groups, plan_rows(problem).splits) : 0;
  return count_bytes(problem) + reducing;
}

void softmax_forward(const SoftmaxProblem& given, void* workspace, cudaStream_t stream) {
  const SoftmaxProblem problem = with_few_groups(given);
  auto* memory = static_cast<unsigned char*>(workspace);
  if (problem.count) {
    const Plan plan = plan_count(problem);
    Schedule schedule;
    schedule.splits = static_cast<int>(plan.splits);
    place(schedule, memory, problem.groups, stream);
    launch("kernel softmax count_labels", "", count_labels,
           Grid{plan.groups_at_once * plan.splits, plan.threads, stream}, problem, schedule);
    memory += count_bytes(problem);
  }
  RowPlan plan = plan_rows(problem);
  plan.schedule.forward = true;
  if (problem.reduced.defined()) place(plan.schedule, memory, problem.groups, stream);
  run(problem, plan, stream);
}

void softmax_backward(const SoftmaxProblem& given, bool skip_if_one, cudaStream_t stream) {
  const SoftmaxProblem problem = with_few_groups(given);
  RowPlan plan = plan_rows(problem);
  plan.schedule.skip_if_one = skip_if_one;
  run(problem, plan, stream);
}

}  // namespace lossops::cuda
