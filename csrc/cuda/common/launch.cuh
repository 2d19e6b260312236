// How every kernel is launched, and what a failure says.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
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

struct Grid {
  int64_t blocks;
  int threads;
  cudaStream_t stream;
};

// Every kernel of the library starts here. Its name and the loss it computes are for error
// messages.
template <class... Params, class... Args>
void launch(const char* name, const char* loss, void (*kernel)(Params...), const Grid& grid,
            Args&&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.stream = grid.stream;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...), name, loss);
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
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  return values[device];
}

inline int multiprocessors() {
  return device_attribute<cudaDevAttrMultiProcessorCount>();
}

// The most blocks that a launch may have.
inline int64_t most_blocks() {
  return device_attribute<cudaDevAttrMaxGridDimX>();
}

}  // namespace lossops::cuda
