// Kernel launches, and the messages of failures.
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

// Throws if a call failed. `what` names the call, and `which` tells it from others of that name.
inline void check(cudaError_t status, const char* what, const char* which = "") {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears the error, so that no later call is blamed
  throw std::runtime_error(std::string("lossops: CUDA: ") + what + " " + which +
                           " failed: " + cudaGetErrorString(status));
}

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  return device;
}

// An attribute of the current device, queried only once.
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

// The maximum number of blocks in a launch.
inline int64_t most_blocks() {
  return device_attribute<cudaDevAttrMaxGridDimX>();
}

// The attributes of a kernel as compiled for the current device. Also lets the kernel use all of
// the shared memory from now on. If only the amount for one launch were allowed, another thread
// with a smaller launch could lower the limit before that launch.
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
  int cluster = 1;         // blocks that share a row; more than 1 requires code for 9.0 or later
  int dynamic_shared = 0;  // bytes per block
};

constexpr int kPlainShared = 48 * 1024;  // bytes per block that need no opt-in

// Launches a kernel; every kernel of the library is launched here. The names of the kernel and of
// the loss it computes are for error messages.
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
  // The opt-in is for dynamic and static memory together, so a kernel near the limit needs it too.
  if (grid.dynamic_shared > kPlainShared / 2) prepared(reinterpret_cast<const void*>(kernel));
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...), name, loss);
}

}  // namespace lossops::cuda
