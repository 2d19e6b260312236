// The threads that share a row: some lanes of a warp, a block, or a cluster of blocks. All of them
// get the result of a reduction, bitwise identical.
#pragma once

#include "cuda/common/reduce.cuh"
#include "losses/math.h"

#if !defined(LOSSOPS_DYNAMIC_SHARED)
#define LOSSOPS_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#include <cooperative_groups.h>
#define LOSSOPS_CLUSTERS 1
#else
#define LOSSOPS_CLUSTERS 0
#endif

namespace lossops::cuda {

// Reduces numbers across threads by addition.
template <class T>
struct Sums {
  template <int n>
  __device__ __forceinline__ static void clear(T (&numbers)[n]) {
    for (int i = 0; i < n; ++i) numbers[i] = 0;
  }
  template <int n>
  __device__ __forceinline__ void reduce(T (&numbers)[n], unsigned mask, int width) const {
    for (int distance = width / 2; distance > 0; distance /= 2) {
#pragma unroll
      for (T& each : numbers) each += __shfl_xor_sync(mask, each, distance);
    }
  }
};

// Reduces pairs of a maximum m and a sum of exp((x - m) / temperature), minus 1: the sum leaves out
// one of the terms that are 1, as that of the maximum is. If a class is nearly certain,
// log-probabilities get all their digits from the others.
template <class T>
struct Exponentials {
  T inverse_temperature;

  template <int n>
  __device__ __forceinline__ static void clear(T (&numbers)[n]) {
    for (int i = 0; i < n; i += 2) {
      numbers[i] = -T(kInfinity);
      numbers[i + 1] = -1;
    }
  }
  template <int n>
  __device__ __forceinline__ void reduce(T (&numbers)[n], unsigned mask, int width) const {
#pragma unroll
    for (int i = 0; i < n; i += 2) {
      const T own = numbers[i];
      T highest = own;
      for (int distance = width / 2; distance > 0; distance /= 2) {
        const T other = __shfl_xor_sync(mask, highest, distance);
        highest = other > highest ? other : highest;
      }
      numbers[i] = highest;
      // A thread that has seen nothing above -inf has a sum of 0, or NaN.
      const bool nothing = own == -T(kInfinity), top = own == highest && !nothing;
      T& others = numbers[i + 1];
      if (!top) {
        others += T(1);
        if (!nothing) others *= exp((own - highest) * inverse_temperature);
      }
      for (int distance = width / 2; distance > 0; distance /= 2) {
        others += __shfl_xor_sync(mask, others, distance);
      }
      const int tops = width > 1 ? __popc(__ballot_sync(mask, top)) : int(top);
      others += static_cast<T>(tops - 1);
    }
  }
};

// `width` adjacent lanes of a warp; `width` is a power of 2.
class Lanes {
 public:
  __device__ __forceinline__ explicit Lanes(int width) : width_(width) {
    const int first = threadIdx.x % kWarp / width * width;
    mask_ = (width == kWarp ? 0xffffffffu : (1u << width) - 1) << first;
  }
  __device__ __forceinline__ int width() const { return width_; }
  __device__ __forceinline__ int index() const { return threadIdx.x % width_; }
  __device__ __forceinline__ int number() const { return threadIdx.x / width_; }
  __device__ __forceinline__ int per_block() const { return blockDim.x / width_; }
  __device__ __forceinline__ bool in_first_block() const { return true; }

  // The result of f, which is called by one lane only. A caller with other work in between calls
  // fetch() first and share() later, so that no lane waits for memory meanwhile.
  template <class F>
  __device__ __forceinline__ auto once(const F& f) const {
    return share(fetch(f));
  }
  template <class F>
  __device__ __forceinline__ auto fetch(const F& f) const {
    decltype(f()) result{};
    if (index() == 0) result = f();
    return result;
  }
  template <class T>
  __device__ __forceinline__ T share(T fetched) const {
    return width_ == 1 ? fetched : __shfl_sync(mask_, fetched, 0, width_);
  }
  template <class How, class T, int n>
  __device__ __forceinline__ void reduce(const How& how, T (&numbers)[n]) {
    how.reduce(numbers, mask_, width_);
  }
  // Orders earlier reads before later writes.
  __device__ __forceinline__ void sync() const {
    if (width_ > 1) __syncwarp(mask_);
  }
  __device__ __forceinline__ void leave() const {}

 private:
  int width_;
  unsigned mask_;
};

// All threads of the blocks of a cluster. A block consists of whole warps.
class Blocks {
 public:
  static constexpr int kNumbers = 4;  // at most, per reduction

  __device__ __forceinline__ explicit Blocks(int cluster) : cluster_(cluster) {
#if LOSSOPS_CLUSTERS
    if (cluster > 1) rank_ = cooperative_groups::this_cluster().block_rank();
#endif
  }
  __device__ __forceinline__ int width() const { return blockDim.x * cluster_; }
  __device__ __forceinline__ int index() const { return rank_ * blockDim.x + threadIdx.x; }
  __device__ __forceinline__ int number() const { return 0; }
  __device__ __forceinline__ int per_block() const { return 1; }
  __device__ __forceinline__ bool in_first_block() const { return rank_ == 0; }

  // Calls f in one lane per warp.
  template <class F>
  __device__ __forceinline__ auto once(const F& f) const {
    return share(fetch(f));
  }
  template <class F>
  __device__ __forceinline__ auto fetch(const F& f) const {
    decltype(f()) result{};
    if (threadIdx.x % kWarp == 0) result = f();
    return result;
  }
  template <class T>
  __device__ __forceinline__ T share(T fetched) const {
    return __shfl_sync(0xffffffffu, fetched, 0);
  }

  // Consecutive calls use alternating slots. A thread that writes to a slot again has passed the
  // barrier of the call in between. So have all other threads, which have finished reading the slot
  // by then.
  template <class How, class T, int n>
  __device__ __forceinline__ void reduce(const How& how, T (&numbers)[n]) {
    static_assert(n <= kNumbers);
    __shared__ T slots[2][kNumbers][kWarp];
    __shared__ T of_block[2][kNumbers];
    turn_ ^= 1;
    const int lane = threadIdx.x % kWarp;
    how.reduce(numbers, 0xffffffffu, kWarp);
    if (blockDim.x > kWarp) {
      for (int i = 0; i < n; ++i) {
        if (lane == 0) slots[turn_][i][threadIdx.x / kWarp] = numbers[i];
      }
      __syncthreads();
      how.clear(numbers);
      for (int i = 0; i < n; ++i) {
        if (lane < static_cast<int>(blockDim.x) / kWarp) numbers[i] = slots[turn_][i][lane];
      }
      how.reduce(numbers, 0xffffffffu, kWarp);
    }
    if (cluster_ > 1) exchange(how, numbers, of_block[turn_]);
  }
  __device__ __forceinline__ void sync() const {
#if LOSSOPS_CLUSTERS
    if (cluster_ > 1) return cooperative_groups::this_cluster().sync();
#endif
    __syncthreads();
  }
  // Required before a block exits: others may still read its shared memory.
  __device__ __forceinline__ void leave() const {
    if (cluster_ > 1) sync();
  }

 private:
  template <class How, class T, int n>
  __device__ __forceinline__ void exchange(const How& how, T (&numbers)[n], T* of_block) {
#if LOSSOPS_CLUSTERS
    auto cluster = cooperative_groups::this_cluster();
    if (threadIdx.x == 0) {
      for (int i = 0; i < n; ++i) of_block[i] = numbers[i];
    }
    cluster.sync();
    const int lane = threadIdx.x % kWarp;
    how.clear(numbers);
    if (lane < cluster_) {
      const T* other = cluster.map_shared_rank(of_block, lane);
      for (int i = 0; i < n; ++i) numbers[i] = other[i];
    }
    how.reduce(numbers, 0xffffffffu, kWarp);
#endif
  }

  int cluster_, rank_ = 0, turn_ = 0;
};

// Lanes or a block, selected at run time.
class LanesOrBlock {
 public:
  __device__ __forceinline__ explicit LanesOrBlock(int width)
      : one_warp_(width <= kWarp), lanes_(one_warp_ ? width : kWarp), block_(1) {}
  __device__ __forceinline__ int width() const {
    return one_warp_ ? lanes_.width() : block_.width();
  }
  __device__ __forceinline__ int index() const {
    return one_warp_ ? lanes_.index() : block_.index();
  }
  __device__ __forceinline__ int number() const { return one_warp_ ? lanes_.number() : 0; }
  __device__ __forceinline__ int per_block() const { return one_warp_ ? lanes_.per_block() : 1; }
  __device__ __forceinline__ bool in_first_block() const { return true; }
  template <class F>
  __device__ __forceinline__ auto once(const F& f) const {
    return lanes_.once(f);
  }
  template <class F>
  __device__ __forceinline__ auto fetch(const F& f) const {
    return lanes_.fetch(f);
  }
  template <class T>
  __device__ __forceinline__ T share(T fetched) const {
    return lanes_.share(fetched);
  }
  template <class How, class T, int n>
  __device__ __forceinline__ void reduce(const How& how, T (&numbers)[n]) {
    if (one_warp_) return lanes_.reduce(how, numbers);
    block_.reduce(how, numbers);
  }
  __device__ __forceinline__ void sync() const {
    if (one_warp_) return lanes_.sync();
    block_.sync();
  }
  __device__ __forceinline__ void leave() const {}

 private:
  bool one_warp_;
  Lanes lanes_;
  Blocks block_;
};

}  // namespace lossops::cuda
