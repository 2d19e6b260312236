// How every kernel is launched, and what a failure says.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace lossops::cuda {

// Throws where a call failed: `what` names it, `which` tells it from others of that name.
inline void check(cudaError_t status, const char* what, const char* which = "") {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears it, so that no later call is blamed
  throw std::runtime_error(std::string("lossops: CUDA: ") + what + " " + which +
                           " failed: " + cudaGetErrorString(status));
}

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

// An attribute of the current device, asked for once.
template <cudaDeviceAttr attribute>
int device_attribute() {
  static const std::vector<int> values = [] {
    int devices = 0;
    check(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
    std::vector<int> result(devices);
    for (int i = 0; i < devices; ++i) {
      check(cudaDeviceGetAttribute(&result[i], attribute, i), "cudaDeviceGetAttribute");
    }
    return result;
  }();
  return values[current_device()];
}

inline int multiprocessors() {
  return device_attribute<cudaDevAttrMultiProcessorCount>();
}

// The most blocks that a launch may have.
inline int64_t most_blocks() {
  return device_attribute<cudaDevAttrMaxGridDimX>();
}

// What a kernel was compiled to for the current device, where it has leave for all of the shared
// memory from now on. Leave for what one launch needs could be taken back before that launch, by
// another thread with a smaller one.
inline const cudaFuncAttributes& prepared(const void* kernel) {
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, cudaFuncAttributes> known;
  const std::pair key(current_device(), kernel);
  const std::lock_guard lock(mutex);
  if (const auto found = known.find(key); found != known.end()) return found->second;
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
  const int all = device_attribute<cudaDevAttrMaxSharedMemoryPerBlockOptin>();
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             all - static_cast<int>(attributes.sharedSizeBytes)),
        "cudaFuncSetAttribute");
  return known.emplace(key, attributes).first->second;
}

struct Grid {
  int64_t blocks;
  int threads;
  cudaStream_t stream;
  int cluster = 1;         // blocks that share a row; more than 1 by code for 9.0 and later
  int dynamic_shared = 0;  // bytes of a block
};

constexpr int kPlainShared = 48 * 1024;  // bytes of a block that need no leave

// Every kernel of the library starts here. Its name and the loss it computes are for error
// messages.
template <class... Params, class... Args>
void launch(const char* name, const char* loss, void (*kernel)(Params...), const Grid& grid,
            Args&&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.stream = grid.stream;
  config.dynamicSmemBytes = static_cast<size_t>(grid.dynamic_shared);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(grid.cluster);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  config.attrs = &cluster;
  config.numAttrs = grid.cluster > 1 ? 1 : 0;
  // The leave is for dynamic and static memory together, so a kernel near the limit needs it too.
  if (grid.dynamic_shared > kPlainShared / 2) prepared(reinterpret_cast<const void*>(kernel));
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...), name, loss);
}

}  // namespace lossops::cuda
