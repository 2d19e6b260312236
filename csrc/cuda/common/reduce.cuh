// Sums over a block and across blocks, always in the same order, so that results are bitwise
// reproducible.
#pragma once

#include <cuda_runtime.h>

namespace lossops::cuda {

constexpr int kWarp = 32;

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    x += __shfl_down_sync(0xffffffffu, x, distance);
  }
  return x;
}

// Thread 0 gets the sum over the block. The block size must be a multiple of the warp size.
__device__ __forceinline__ double block_sum(double x) {
  __shared__ double sums[kWarp];
  x = warp_sum(x);
  if (blockDim.x == kWarp) return x;
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = x;
  __syncthreads();
  if (threadIdx.x < kWarp) x = warp_sum(threadIdx.x < blockDim.x / kWarp ? sums[threadIdx.x] : 0);
  __syncthreads();  // `sums` may be written again
  return x;
}

// Thread 0 publishes `share`. Returns true in the last of `arrivals` blocks to do so, which may
// then read the shares of all others. The ticket must start at 0.
__device__ __forceinline__ bool publish(double share, double* slot, unsigned* ticket,
                                        unsigned arrivals) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    *slot = share;
    __threadfence();  // the share before the ticket,
    last = atomicAdd(ticket, 1u) == arrivals - 1;
    __threadfence();  // and the others' tickets before their shares
  }
  __syncthreads();
  const bool result = last;
  __syncthreads();  // `last` may be written again
  return result;
}

}  // namespace lossops::cuda
