// What the device of this folder must do, and what it must object to. The second line of an
// objection names the line that is marked `fault` here.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <exception>
#include <string>

namespace {

namespace cg = cooperative_groups;
constexpr unsigned kAll = 0xffffffffu;

// ---- Right

__global__ void shuffles(int* out) {
  const int lane = threadIdx.x % 32;
  int* row = out + threadIdx.x * 8;
  row[0] = __shfl_down_sync(kAll, lane, 3);
  row[1] = __shfl_up_sync(kAll, lane, 3);
  row[2] = __shfl_xor_sync(kAll, lane, 5);
  row[3] = __shfl_sync(kAll, lane, 7);
  row[4] = __shfl_down_sync(kAll, lane, 3, 8);
  row[5] = __shfl_sync(kAll, lane, 9, 8);
  row[6] = __ballot_sync(kAll, lane % 3 == 0);
  row[7] = __any_sync(kAll, lane == 40) + 2 * __all_sync(kAll, lane < 32);
}

__global__ void half_warps(int* out) {  // each with its own mask and its own course
  const int lane = threadIdx.x % 32;
  if (lane < 16) {
    out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, lane, 1);
  } else {
    out[threadIdx.x] = __shfl_xor_sync(0xffff0000u, lane, 2);
  }
}

__global__ void reverse(int* data) {
  LOSSOPS_DYNAMIC_SHARED(memory);
  int* copy = reinterpret_cast<int*>(memory);
  copy[threadIdx.x] = data[threadIdx.x];
  __syncthreads();
  data[threadIdx.x] = copy[blockDim.x - 1 - threadIdx.x];
}

__global__ void neighbours(int* out) {  // through the shared memory of the cluster's next block
  __shared__ int mine[64];
  auto cluster = cg::this_cluster();
  mine[threadIdx.x] = 100 * blockIdx.x + threadIdx.x;
  cluster.sync();
  const unsigned next = (cluster.block_rank() + 1) % cluster.num_blocks();
  out[blockIdx.x * blockDim.x + threadIdx.x] = cluster.map_shared_rank(mine, next)[threadIdx.x];
  cluster.sync();
}

__global__ void count(unsigned* total, int* is_last) {
  if (threadIdx.x == 0) is_last[blockIdx.x] = atomicAdd(total, 1u) == gridDim.x - 1;
}

__global__ void read_by_a_warp(int* data) {  // and written by one of its lanes
  const int sum = data[threadIdx.x / 32 * 32] + static_cast<int>(threadIdx.x);
  __syncwarp();
  data[threadIdx.x] = sum;
}

// ---- Wrong

__global__ void read_by_a_warp_only(int* data) {
  const int sum = data[threadIdx.x / 32 * 32] + static_cast<int>(threadIdx.x);
  data[threadIdx.x] = __shfl_sync(kAll, sum, threadIdx.x % 32);  // fault: read_by_a_warp_only
}

__global__ void read_by_two_warps(int* data) {
  const int sum = data[0] + static_cast<int>(threadIdx.x);
  __syncwarp();
  data[threadIdx.x] = sum;  // fault: read_by_two_warps
}

__global__ void no_barrier(int* data) {
  __shared__ int copy[64];
  copy[threadIdx.x] = data[threadIdx.x];
  data[threadIdx.x] = copy[63 - threadIdx.x];  // fault: no_barrier
}

__global__ void no_second_barrier(int* data) {
  __shared__ int copy[64];
  for (int i = 0; i < 2; ++i) {
    copy[threadIdx.x] = data[threadIdx.x];
    __syncthreads();
    data[threadIdx.x] = copy[63 - threadIdx.x];  // fault: no_second_barrier
  }
}

__global__ void no_warp_barrier(int* data) {
  __shared__ int copy[32];
  if (threadIdx.x >= 32) return;
  copy[threadIdx.x] = data[threadIdx.x];
  data[threadIdx.x] = __shfl_sync(kAll, copy[31 - threadIdx.x], 0);  // fault: no_warp_barrier
}

__global__ void barrier_of_some(int* data) {
  if (threadIdx.x < 40) __syncthreads();  // fault: barrier_of_some
  data[threadIdx.x] = 1;
}

__global__ void two_barriers(int* data) {
  if (threadIdx.x < 32) {
    __syncthreads();  // fault: two_barriers
  } else {
    __syncthreads();
  }
}

__global__ void shuffle_of_some(int* data) {
  if (threadIdx.x % 2) return;
  data[threadIdx.x] = __shfl_down_sync(kAll, 1, 2);  // fault: shuffle_of_some
}

__global__ void shuffle_from_outside(int* data) {
  if (threadIdx.x >= 8) return;
  data[threadIdx.x] = __shfl_down_sync(0xffu, 1, 4);  // fault: shuffle_from_outside
}

__global__ void shuffle_without_me(int* data) {
  data[threadIdx.x] = __shfl_sync(0xffffu, 1, 0);  // fault: shuffle_without_me
}

__global__ void read_beyond(int* data) {
  if (threadIdx.x == 63) data[0] = data[64];  // fault: read_beyond
}

__global__ void write_before(int* data) {
  if (threadIdx.x == 63) data[-1] = 1;  // fault: write_before
}

__global__ void write_input(const int* data) {
  const_cast<int*>(data)[threadIdx.x] = 1;  // fault: write_input
}

__global__ void shared_beyond(int* data) {
  LOSSOPS_DYNAMIC_SHARED(memory);
  memory[blockDim.x * 4 + threadIdx.x] = 1;  // fault: shared_beyond
}

__global__ void shared_unwritten(int* data) {
  __shared__ int numbers[64];
  if (threadIdx.x != 5) numbers[threadIdx.x] = 1;
  __syncthreads();
  data[threadIdx.x] = numbers[threadIdx.x];  // fault: shared_unwritten
}

__global__ void output_unwritten(int* out) {
  out[threadIdx.x] += 1;  // fault: output_unwritten
}

__global__ void misaligned(int* data) {
  if (threadIdx.x > 0) return;
  int4* vectors = reinterpret_cast<int4*>(data + 1);
  vectors[1] = vectors[0];  // fault: misaligned
}

__global__ void local_beyond(int* data) {
  int numbers[4] = {1, 2, 3, 4};
  for (int i = 0; i < 4; ++i) numbers[i] *= blockDim.x;
  data[threadIdx.x] = numbers[threadIdx.x % 8];  // fault: local_beyond
}

__global__ void same_place(int* data) {
  data[0] = threadIdx.x;  // fault: same_place
}

// The last block adds up what the others wrote; the fences say that it may.
template <bool release, bool acquire>
__global__ void last_block(int* data, unsigned* ticket) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    data[blockIdx.x] = blockIdx.x;
    if (release) __threadfence();
    last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    if (acquire) __threadfence();
  }
  __syncthreads();
  if (last && threadIdx.x < gridDim.x) {
    const int share = data[threadIdx.x];  // fault: last_block
    data[threadIdx.x] = share + 1;
  }
}

__global__ void order_of_blocks(int* data, unsigned* ticket) {
  if (threadIdx.x == 0) data[blockIdx.x] = atomicAdd(ticket, 1u);
}

__global__ void cluster_without_barrier(int* out) {
  __shared__ int mine[64];
  auto cluster = cg::this_cluster();
  mine[threadIdx.x] = threadIdx.x;
  cluster.sync();
  const unsigned next = (cluster.block_rank() + 1) % cluster.num_blocks();
  cluster.map_shared_rank(mine, next)[threadIdx.x] = 1;
  __syncthreads();                                                 // of this block alone
  out[blockIdx.x * blockDim.x + threadIdx.x] = mine[threadIdx.x];  // fault: cluster_without_barrier
}

// All blocks read what the first has written; it may write again when all have read.
template <bool all_have_read>
__global__ void cluster_turns(int* out) {
  __shared__ int mine;
  auto cluster = cg::this_cluster();
  int sum = 0;
  for (int i = 0; i < 3; ++i) {
    if (threadIdx.x == 0) mine = i + 1;  // fault: cluster_turns
    cluster.sync();
    sum += *cluster.map_shared_rank(&mine, 0);
    if (all_have_read || i == 2) cluster.sync();
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

__global__ void cluster_left(int* out) {
  __shared__ int mine[64];
  auto cluster = cg::this_cluster();
  mine[threadIdx.x] = threadIdx.x;
  cluster.sync();
  if (cluster.block_rank() == 0) return;
  __syncthreads();
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] =
      cluster.map_shared_rank(mine, 0)[threadIdx.x];  // fault: cluster_left
}

}  // namespace

// Runs a kernel on a grid of 4 blocks of 64 threads, or one of `threads`, and returns what the
// device objects to.
extern "C" const char* run(const char* kernel, int* data, unsigned* ticket, int blocks, int threads,
                           int cluster) {
  static std::string objection;
  objection.clear();
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = threads * sizeof(int);
  config.attrs = &attribute;
  config.numAttrs = cluster > 1;
  const std::string name(kernel);
  try {
#define RUN(kernel) \
  if (name == #kernel) cudaLaunchKernelEx(&config, kernel, data)
    RUN(shuffles);
    RUN(half_warps);
    RUN(reverse);
    RUN(neighbours);
    RUN(read_by_a_warp);
    RUN(read_by_a_warp_only);
    RUN(read_by_two_warps);
    RUN(no_barrier);
    RUN(no_second_barrier);
    RUN(no_warp_barrier);
    RUN(barrier_of_some);
    RUN(two_barriers);
    RUN(shuffle_of_some);
    RUN(shuffle_from_outside);
    RUN(shuffle_without_me);
    RUN(read_beyond);
    RUN(write_before);
    RUN(write_input);
    RUN(shared_beyond);
    RUN(shared_unwritten);
    RUN(output_unwritten);
    RUN(misaligned);
    RUN(local_beyond);
    RUN(same_place);
    RUN(cluster_without_barrier);
    RUN(cluster_left);
    if (name == "cluster_turns") cudaLaunchKernelEx(&config, cluster_turns<true>, data);
    if (name == "cluster_turns_no_barrier") {
      cudaLaunchKernelEx(&config, cluster_turns<false>, data);
    }
    if (name == "count") cudaLaunchKernelEx(&config, count, ticket, data);
    if (name == "order_of_blocks") cudaLaunchKernelEx(&config, order_of_blocks, data, ticket);
    if (name == "last_block") cudaLaunchKernelEx(&config, last_block<true, true>, data, ticket);
    if (name == "last_block_no_release") {
      cudaLaunchKernelEx(&config, last_block<false, true>, data, ticket);
    }
    if (name == "last_block_no_acquire") {
      cudaLaunchKernelEx(&config, last_block<true, false>, data, ticket);
    }
  } catch (const std::exception& error) {
    objection = error.what();
  }
  return objection.c_str();
}
