// CUDA C++ for the host compiler: the language's own words and the runtime calls that kernels and
// their launches use, on the device of device.h. README.md explains.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) alignas(n)
// One stretch of memory, whose bounds the loader knows, holds all thread-local variables.
#define __shared__ static thread_local
#define LOSSOPS_DYNAMIC_SHARED(name) unsigned char* name = cuda_on_cpu::dynamic_shared_memory()

// ---- Types

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define CUDA_ON_CPU_VECTORS(T, name)                                \
  struct alignas(2 * sizeof(T)) name##2 {                           \
    T x, y;                                                         \
  };                                                                \
  struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { \
    T x, y, z, w;                                                   \
  };
CUDA_ON_CPU_VECTORS(unsigned short, ushort)
CUDA_ON_CPU_VECTORS(int, int)
CUDA_ON_CPU_VECTORS(unsigned, uint)
CUDA_ON_CPU_VECTORS(float, float)
CUDA_ON_CPU_VECTORS(double, double)
#undef CUDA_ON_CPU_VECTORS

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr {
  cudaDevAttrMaxGridDimX = 5,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 13,
};
struct cudaFuncAttributes {
  size_t sharedSizeBytes;
  int ptxVersion, binaryVersion;
};
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
using cudaStream_t = struct CUstream_st*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

// ---- What runs on the device

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace cuda_on_cpu {

enum class WarpOp : uint8_t { sync, shuffle, vote };
// What lanes give each other.
struct Word {
  unsigned char bytes[8];
};
// Waits for the lanes in `mask`; `words` are those of all 32.
void meet_warp(WarpOp op, unsigned mask, const void* word, size_t size, Word* words);
unsigned lane();
[[noreturn]] void fail_here(const char* what);
// The two halves of an atomic operation, which nothing comes between.
void atomic_load(void* address, void* value, size_t size);
void atomic_store(void* address, const void* value, size_t size);
unsigned char* dynamic_shared_memory();

template <class T>
__forceinline__ T shuffle(unsigned mask, T value, unsigned source, bool inside) {
  static_assert(sizeof(T) <= sizeof(Word));
  Word words[32];
  meet_warp(WarpOp::shuffle, mask, &value, sizeof(T), words);
  if (!inside) return value;
  if (!(mask >> source & 1)) fail_here("a shuffle reads a lane that its mask leaves out");
  memcpy(&value, words + source, sizeof(T));
  return value;
}

template <class T, class F>
__forceinline__ T update(T* address, F f) {
  T old;
  atomic_load(address, &old, sizeof(T));
  const T value = f(old);
  atomic_store(address, &value, sizeof(T));
  return old;
}

// The parameters of a launch, copied for every thread.
struct Launch {
  const void* kernel;
  dim3 grid, block, cluster;
  size_t dynamic_shared;
  void (*call)(const void* parameters);
  const void* parameters;
  size_t size;
};
void run(const Launch& launch);

}  // namespace cuda_on_cpu

void __syncthreads();
void __threadfence();
__forceinline__ void __syncwarp(unsigned mask = 0xffffffffu) {
  cuda_on_cpu::meet_warp(cuda_on_cpu::WarpOp::sync, mask, nullptr, 0, nullptr);
}

// With `width` a group of lanes is a segment of that many; a source outside of it gives the own
// value.
template <class T>
__forceinline__ T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const unsigned first = cuda_on_cpu::lane() & ~(width - 1);
  return cuda_on_cpu::shuffle(mask, value, first + (source & (width - 1)), true);
}
template <class T>
__forceinline__ T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = cuda_on_cpu::lane();
  return cuda_on_cpu::shuffle(mask, value, lane + delta,
                              (lane & (width - 1)) + delta < unsigned(width));
}
template <class T>
__forceinline__ T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = cuda_on_cpu::lane();
  return cuda_on_cpu::shuffle(mask, value, lane - delta, (lane & (width - 1)) >= delta);
}
template <class T>
__forceinline__ T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  const unsigned lane = cuda_on_cpu::lane(), source = lane ^ lanes;
  return cuda_on_cpu::shuffle(mask, value, source,
                              (source & ~(width - 1)) <= (lane & ~(width - 1)));
}
__forceinline__ unsigned __ballot_sync(unsigned mask, int predicate) {
  cuda_on_cpu::Word words[32];
  cuda_on_cpu::meet_warp(cuda_on_cpu::WarpOp::vote, mask, &predicate, sizeof(predicate), words);
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane) {
    memcpy(&predicate, words + lane, sizeof(predicate));
    if ((mask >> lane & 1) && predicate) ballot |= 1u << lane;
  }
  return ballot;
}
__forceinline__ int __popc(unsigned bits) {
  return __builtin_popcount(bits);
}
__forceinline__ int __any_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}
__forceinline__ int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}

template <class T>
__forceinline__ T atomicAdd(T* address, T value) {
  return cuda_on_cpu::update(address, [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
__forceinline__ T atomicMax(T* address, T value) {
  return cuda_on_cpu::update(address, [=](T old) { return old < value ? value : old; });
}
template <class T>
__forceinline__ T atomicOr(T* address, T value) {
  return cuda_on_cpu::update(address, [=](T old) { return static_cast<T>(old | value); });
}
template <class T>
__forceinline__ T atomicExch(T* address, T value) {
  return cuda_on_cpu::update(address, [=](T) { return value; });
}

// Caching hints.
#define CUDA_ON_CPU_LOAD(name)         \
  template <class T>                   \
  __forceinline__ T name(const T* p) { \
    return *p;                         \
  }
#define CUDA_ON_CPU_STORE(name)              \
  template <class T>                         \
  __forceinline__ void name(T* p, T value) { \
    *p = value;                              \
  }
CUDA_ON_CPU_LOAD(__ldg)
CUDA_ON_CPU_LOAD(__ldca)
CUDA_ON_CPU_LOAD(__ldcg)
CUDA_ON_CPU_LOAD(__ldcs)
CUDA_ON_CPU_LOAD(__ldcv)
CUDA_ON_CPU_STORE(__stcg)
CUDA_ON_CPU_STORE(__stcs)
CUDA_ON_CPU_STORE(__stwb)
CUDA_ON_CPU_STORE(__stwt)
#undef CUDA_ON_CPU_LOAD
#undef CUDA_ON_CPU_STORE

// ---- What runs on the host

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t);
cudaError_t cudaGetDeviceCount(int*);
cudaError_t cudaGetDevice(int*);
cudaError_t cudaSetDevice(int);  // of the calling thread
cudaError_t cudaDeviceGetAttribute(int*, cudaDeviceAttr, int device);
cudaError_t cudaMemsetAsync(void*, int value, size_t bytes, cudaStream_t);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void* kernel);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value);

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               Args&&... args) {
  using Call = std::tuple<void (*)(Params...), std::tuple<std::remove_cv_t<Params>...>>;
  const Call call{kernel, {static_cast<Params>(args)...}};
  cuda_on_cpu::Launch launch{reinterpret_cast<const void*>(kernel),
                             config->gridDim,
                             config->blockDim,
                             dim3(),
                             config->dynamicSmemBytes,
                             [](const void* p) {
                               const auto& [function, values] = *static_cast<const Call*>(p);
                               std::apply(function, values);
                             },
                             &call,
                             sizeof(call)};
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const auto& size = config->attrs[i].val.clusterDim;
    launch.cluster = dim3(size.x, size.y, size.z);
  }
  cuda_on_cpu::run(launch);
  return cudaSuccess;
}
