// How an elementwise problem is spread over blocks, and how their sums meet: shared by the kernels
// of the family.
#pragma once

#include "common/problem.h"
#include "cuda/common/launch.cuh"
#include "cuda/common/memory.cuh"
#include "cuda/common/reduce.cuh"

namespace lossops::cuda {

constexpr int kThreads = 256;  // per block, at most

// A group is shared by `splits` blocks; block b starts with group b / splits and goes on to the
// groups that no other block starts with.
struct Schedule {
  int splits = 1;
  bool skip_if_one = false;
  double* shares = nullptr;     // [groups, splits], where splits > 1
  unsigned* tickets = nullptr;  // [groups], zeroed
};

// Runs forward and backward on a problem of the common layout; false where it is none.
bool elementwise_dense(const ElementwiseProblem& problem, const Schedule& schedule,
                       const Grid& grid);
// Runs any problem. Order 1 is forward or backward, order 2 double backward.
void elementwise_strided(const ElementwiseProblem& problem, int order, const Schedule& schedule,
                         const Grid& grid);

// True where the gradients that are there already are the ones asked for.
__device__ __forceinline__ bool nothing_to_do(const ElementwiseProblem& problem,
                                              const Schedule& schedule) {
  const Operand& grad_output = problem.grad_output;
  return schedule.skip_if_one && load_number<double>(grad_output.data, grad_output.dtype, 0) == 1;
}

// What a group's sum and derivatives are multiplied by.
__device__ __forceinline__ double scale_of(const ElementwiseProblem& problem, int64_t group) {
  const Operand& normalizer = problem.normalizer;
  if (!normalizer.defined()) return problem.scale;
  return problem.scale /
         load_number<double>(normalizer.data, normalizer.dtype, group * problem.normalizer_stride);
}

// Turns the sums of a group's threads into its reduced loss.
__device__ __forceinline__ void reduce_group(const ElementwiseProblem& problem,
                                             const Schedule& schedule, int64_t group, double sum) {
  sum = block_sum(sum);
  if (schedule.splits > 1) {
    double* shares = schedule.shares + group * schedule.splits;
    const int split = blockIdx.x % schedule.splits;
    if (!publish(sum, shares + split, schedule.tickets + group, schedule.splits)) return;
    sum = 0;
    for (int i = threadIdx.x; i < schedule.splits; i += blockDim.x) sum += shares[i];
    sum = block_sum(sum);
  }
  if (threadIdx.x == 0) {
    store_number(problem.reduced.data, problem.reduced.dtype, group,
                 scale_of(problem, group) * sum);
  }
}

}  // namespace lossops::cuda
