// How every kernel is launched, and what a failure says.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace lossops::cuda {

inline void check(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears it, so that no later call is blamed
  throw std::runtime_error("lossops: " + what + " failed: " + cudaGetErrorString(status));
}

struct Grid {
  int64_t blocks;
  int threads;
  cudaStream_t stream;
};

// Every kernel of the library starts here, under a name for error messages ("huber, dense").
template <class... Params, class... Args>
void launch(const char* loss, const char* kind, void (*kernel)(Params...), const Grid& grid,
            Args&&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.stream = grid.stream;
  cudaError_t status = cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
  if (status == cudaSuccess) status = cudaGetLastError();
  check(status, std::string("CUDA kernel ") + loss + ", " + kind);
}

// Multiprocessors of the current device.
inline int multiprocessors() {
  static const std::vector<int> counts = [] {
    int devices = 0;
    check(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
    std::vector<int> result(devices);
    for (int i = 0; i < devices; ++i) {
      check(cudaDeviceGetAttribute(&result[i], cudaDevAttrMultiProcessorCount, i),
            "cudaDeviceGetAttribute");
    }
    return result;
  }();
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  return counts[device];
}

}  // namespace lossops::cuda
