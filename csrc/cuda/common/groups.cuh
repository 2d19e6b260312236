// How groups are distributed over blocks, and how the sums of blocks are combined; shared by the
// families.
#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/common/memory.cuh"
#include "cuda/common/reduce.cuh"

namespace lossops::cuda {

constexpr int kThreads = 256;  // per block, at most

// A group is shared by `splits` blocks. Block b starts with group b / splits and continues with
// groups that no other block starts with.
struct Schedule {
  int splits = 1;
  bool skip_if_one = false;
  double* shares = nullptr;     // [groups, splits], if splits > 1
  unsigned* tickets = nullptr;  // arrival counters [groups], zeroed
};

// The memory through which the blocks of a schedule combine their sums: shares, then tickets.
inline int64_t schedule_bytes(int64_t groups, int64_t splits) {
  return splits > 1 ? groups * (splits * int64_t(sizeof(double)) + int64_t(sizeof(unsigned))) : 0;
}

inline void place(Schedule& schedule, void* workspace, int64_t groups, cudaStream_t stream) {
  if (schedule.splits <= 1) return;
  schedule.shares = static_cast<double*>(workspace);
  schedule.tickets = reinterpret_cast<unsigned*>(schedule.shares + groups * schedule.splits);
  check(cudaMemsetAsync(schedule.tickets, 0, groups * sizeof(unsigned), stream), "cudaMemsetAsync");
}

// Whether the existing gradients are already the ones that are asked for.
template <class Problem>
__device__ __forceinline__ bool nothing_to_do(const Problem& problem, const Schedule& schedule) {
  const auto& grad_output = problem.grad_output;
  return schedule.skip_if_one && load_number<double>(grad_output.data, grad_output.dtype, 0) == 1;
}

// The factor on a group's sum and derivatives.
template <class Problem>
__device__ __forceinline__ double scale_of(const Problem& problem, int64_t group) {
  const Operand& normalizer = problem.normalizer;
  if (!normalizer.defined()) return problem.scale;
  return problem.scale /
         load_number<double>(normalizer.data, normalizer.dtype, group * problem.normalizer_stride);
}

// Turns the sums of a group's threads into the sum over its blocks. Returns true only in thread 0
// of the last block to arrive, which gets the sum. All blocks that share the group must call it.
__device__ __forceinline__ bool sum_group(const Schedule& schedule, int64_t group, int split,
                                          double& sum) {
  sum = block_sum(sum);
  if (schedule.splits > 1) {
    double* shares = schedule.shares + group * schedule.splits;
    if (!publish(sum, shares + split, schedule.tickets + group, schedule.splits)) return false;
    sum = 0;
    for (int i = threadIdx.x; i < schedule.splits; i += blockDim.x) sum += shares[i];
    sum = block_sum(sum);
  }
  return threadIdx.x == 0;
}

// Turns the sums of a group's threads into its reduced loss.
template <class Problem>
__device__ __forceinline__ void reduce_group(const Problem& problem, const Schedule& schedule,
                                             int64_t group, int split, double sum) {
  if (sum_group(schedule, group, split, sum)) {
    store_number(problem.reduced.data, problem.reduced.dtype, group,
                 scale_of(problem, group) * sum);
  }
}

}  // namespace lossops::cuda
