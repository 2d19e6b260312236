#include "cuda/softmax/engine.h"

#include <algorithm>

#include "cuda/softmax/kernels.cuh"

namespace lossops::cuda {
namespace {

constexpr int64_t kCountingBlocks = 8;   // per multiprocessor
constexpr int64_t kRowsPerBlock = 2048;  // labels to count; fewer do not justify another block
constexpr int kTile = 40 * 1024;         // bytes of shared memory for the numbers that are kept

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
      const int64_t label = load_label(
          labels, outer * labels.outer_stride + (r - outer * problem.inner) * labels.inner_stride);
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
  const int64_t blocks = quotient(multiprocessors() * kCountingBlocks, problem.groups);
  plan.splits = std::min(blocks, quotient(problem.group_size, kRowsPerBlock));
  plan.groups_at_once = std::clamp<int64_t>(most_blocks() / plan.splits, 1, problem.groups);
  return plan;
}

// ---- Rows

struct RowPlan : Plan {
  enum { thread, warp, block } kernel = thread;
  RowSchedule schedule;
  int vectors = 0;  // per lane
  int dynamic_shared = 0;
};

// Distributes rows over blocks. A block handles `rows_at_once` rows, and a multiprocessor holds
// `resident` blocks at a time. A reduction uses no more blocks than that, so that there are few
// partial sums. Without a reduction, more blocks balance the load at the end.
void spread(const SoftmaxProblem& problem, RowPlan& plan, int64_t rows_at_once, int64_t resident) {
  const int64_t cluster = plan.schedule.cluster;
  const int64_t rounds = problem.reduced.defined() ? 1 : 4;
  const int64_t blocks = quotient(multiprocessors() * resident * rounds, cluster);
  plan.splits =
      std::min(quotient(blocks, problem.groups), quotient(problem.group_size, rows_at_once));
  plan.groups_at_once =
      std::clamp<int64_t>(most_blocks() / cluster / plan.splits, 1, problem.groups);
  plan.schedule.splits = static_cast<int>(plan.splits);
}

// The number of threads that share a row, for layouts that only the general kernel supports.
int general_width(const SoftmaxProblem& problem) {
  const bool beside = problem.inner > 1 && problem.input.inner_stride == 1;
  const bool many = problem.rows() >= int64_t(multiprocessors()) * kThreads;
  if (beside && (many || problem.classes < 256)) return 1;
  if (problem.classes > 1024) return kThreads;
  int width = 1;
  while (width < kWarp && width * 4 < problem.classes) width *= 2;
  return width;
}

// Blocks of a single warp if groups are too small for more.
int threads_for(const SoftmaxProblem& problem, int width) {
  const bool small = problem.groups > 1 && problem.group_size * width <= kThreads;
  return small && width <= kWarp ? kWarp : kThreads;
}

void plan_thread(const SoftmaxProblem& problem, RowPlan& plan) {
  const int width = plan.schedule.width = general_width(problem);
  plan.threads = threads_for(problem, width);
  const int64_t numbers = problem.target_form == Form::labels && !problem.divergence ? 1 : 2;
  const int64_t bytes = numbers * plan.threads * (problem.double_precision ? 8 : 4);
  plan.schedule.kept = static_cast<int>(std::min(quotient(problem.classes, width), kTile / bytes));
  plan.dynamic_shared = static_cast<int>(plan.schedule.kept * bytes);
  spread(problem, plan, std::max(1, plan.threads / width), kThreads * 4 / plan.threads);
}

void plan_warp(const SoftmaxProblem& problem, RowPlan& plan, int64_t packs) {
  plan.kernel = RowPlan::warp;
  int& width = plan.schedule.width;
  while (width < kWarp && width < packs) width *= 2;
  plan.vectors = 1;
  while (plan.vectors * kWarp < packs) plan.vectors *= 2;
  plan.threads = threads_for(problem, width);
  spread(problem, plan, plan.threads / width, kThreads * 4 / plan.threads);
}

// Whether the kernels of this library were compiled with LOSSOPS_CLUSTERS. The device does not
// tell: one of capability 9.0 also runs code that was compiled for an older one. If the driver
// compiled that code from PTX, its binary version is 9.0 as well.
bool clusters_exist() {
  return prepared(reinterpret_cast<const void*>(count_labels)).ptxVersion >= 90;
}

void plan_block(const SoftmaxProblem& problem, RowPlan& plan, int64_t packs) {
  constexpr int64_t pack = 16, own = 4096, few = 512;  // bytes; what a kernel declares; packs
  plan.kernel = RowPlan::block;
  const Operands operands = operands_of(problem);
  const int64_t tensors = has_label(operands) ? 1 : 2;
  const int64_t capacity = device_attribute<cudaDevAttrMaxSharedMemoryPerBlockOptin>() - own;
  // Aim for two blocks per multiprocessor, so that one reads while the other writes, and for work
  // on every multiprocessor if rows are few and long.
  int& cluster = plan.schedule.cluster;
  const int most = clusters_exist() ? 8 : 1;
  const auto share = [&] { return quotient(packs, cluster); };
  while (cluster < most &&
         (share() * pack * tensors > capacity / 2 - own ||
          (share() >= 2 * few && problem.rows() * cluster * 2 <= multiprocessors()))) {
    cluster *= 2;
  }
  const bool alone = share() * pack * tensors > capacity / 2 - own;
  const int most_threads =
      (operands == Operands::plain_labels ? kLabelThreads : kOtherThreads) / (alone ? 1 : 2);
  plan.threads = most_threads / 4;
  while (plan.threads < most_threads && plan.threads * 4 < share()) plan.threads *= 2;
  plan.schedule.width = plan.threads * cluster;
  const int64_t step = plan.threads * pack * tensors;
  plan.schedule.kept =
      static_cast<int>(std::min(quotient(packs, plan.schedule.width), capacity / step));
  plan.dynamic_shared = static_cast<int>(plan.schedule.kept * step);
  const int64_t fitting = capacity / (plan.dynamic_shared + own);
  spread(problem, plan, 1,
         std::clamp<int64_t>(fitting, 1, most_threads / plan.threads * (alone ? 1 : 2)));
}

// Depends only on the problem and the device, because the last bits of the results depend on the
// plan.
RowPlan plan_rows(const SoftmaxProblem& problem) {
  RowPlan plan;
  const Operands operands = operands_of(problem);
  if (operands == Operands::general) {
    plan_thread(problem, plan);
    return plan;
  }
  const int64_t in_pack = 16 / size_of(problem.input.dtype);
  const bool whole = aligned(problem.input.data, 16) && problem.input.outer_stride % in_pack == 0 &&
                     problem.input.inner_stride % in_pack == 0;
  const int64_t packs = quotient(problem.classes, in_pack) + (whole ? 0 : 1);
  const int most = has_label(operands) ? kMostVectors : kMostPairs;
  packs <= most* kWarp ? plan_warp(problem, plan, packs) : plan_block(problem, plan, packs);
  return plan;
}

// Without a reduction, groups make no difference.
SoftmaxProblem with_few_groups(const SoftmaxProblem& problem) {
  SoftmaxProblem whole = problem;
  if (!problem.reduced.defined()) {
    whole.groups = 1;
    whole.group_size = problem.rows();
  }
  return whole;
}

int64_t count_bytes(const SoftmaxProblem& problem) {
  if (!problem.count) return 0;
  return quotient(schedule_bytes(problem.groups, plan_count(problem).splits), 16) * 16;
}

// Counts labels if that is asked for; returns the remaining workspace.
void* count(const SoftmaxProblem& problem, void* workspace, cudaStream_t stream) {
  if (!problem.count) return workspace;
  const Plan plan = plan_count(problem);
  Schedule schedule;
  schedule.splits = static_cast<int>(plan.splits);
  place(schedule, workspace, problem.groups, stream);
  launch("kernel softmax count_labels", "", count_labels,
         Grid{plan.groups_at_once * plan.splits, plan.threads, stream}, problem, schedule);
  return static_cast<unsigned char*>(workspace) + count_bytes(problem);
}

void run(const SoftmaxProblem& given, bool forward, bool skip_if_one, void* workspace,
         cudaStream_t stream) {
  if (forward) workspace = count(given, workspace, stream);
  const SoftmaxProblem problem = with_few_groups(given);
  RowPlan plan = plan_rows(problem);
  plan.schedule.forward = forward;
  plan.schedule.skip_if_one = skip_if_one;
  plan.schedule.rows_per_scale = given.group_size;
  if (problem.reduced.defined()) place(plan.schedule, workspace, problem.groups, stream);
  const int cluster = plan.schedule.cluster;
  const Grid grid{plan.groups_at_once * plan.splits * cluster, plan.threads, stream, cluster,
                  plan.dynamic_shared};
  const bool label = has_label(operands_of(problem));
  switch (plan.kernel) {
    case RowPlan::thread:
      return problem.double_precision ? softmax_thread_double(problem, plan.schedule, grid)
                                      : softmax_thread(problem, plan.schedule, grid);
    case RowPlan::warp:
      return label ? softmax_warp_labels(problem, plan.schedule, plan.vectors, grid)
                   : softmax_warp_pairs(problem, plan.schedule, plan.vectors, grid);
    case RowPlan::block:
      return label ? softmax_block_labels(problem, plan.schedule, grid)
                   : softmax_block_pairs(problem, plan.schedule, grid);
  }
}

}  // namespace

Operands operands_of(const SoftmaxProblem& problem) {
  const auto fits = [&](const RowsOperand& rows) {
    return !rows.defined() ||
           (rows.dtype == problem.input.dtype && (rows.class_stride == 1 || problem.classes == 1));
  };
  if (problem.double_precision || problem.classes > kMostClasses || !fits(problem.input) ||
      !fits(problem.target) || !fits(problem.grad_input) || !fits(problem.grad_target)) {
    return Operands::general;
  }
  const Form input = problem.form, target = problem.target_form;
  const bool logits = input == Form::logits;
  if (!problem.divergence) {
    if (!logits) return Operands::general;
    if (target != Form::labels) return Operands::logits_and_probs;
    const bool plain = problem.softcap == 0 && problem.label_smoothing == 0 &&
                       !problem.entropy.defined() && !problem.grad_lse.defined() &&
                       !problem.grad_entropy.defined();
    return plain ? Operands::plain_labels : Operands::labels_with_options;
  }
  const bool kl = problem.loss == position<Kl>(Divergences{});
  const bool jensen_shannon = problem.loss == position<JensenShannon>(Divergences{});
  if ((kl || jensen_shannon) && logits && target == Form::logits) return Operands::two_logits;
  if (kl && input == Form::log_probs && target == Form::probs) return Operands::log_probs_and_probs;
  return Operands::general;
}

int64_t softmax_workspace_bytes(const SoftmaxProblem& given) {
  const SoftmaxProblem problem = with_few_groups(given);
  const int64_t reducing =
      problem.reduced.defined() ? schedule_bytes(problem.groups, plan_rows(problem).splits) : 0;
  return count_bytes(given) + reducing;
}

void softmax_forward(const SoftmaxProblem& problem, void* workspace, cudaStream_t stream) {
  run(problem, /*forward=*/true, /*skip_if_one=*/false, workspace, stream);
}

void softmax_backward(const SoftmaxProblem& problem, bool skip_if_one, cudaStream_t stream) {
  run(problem, /*forward=*/false, skip_if_one, nullptr, stream);
}

}  // namespace lossops::cuda
