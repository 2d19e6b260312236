// Launches from several threads, on both devices, of kernels that need much shared memory.
#include <cuda_runtime.h>

#include <atomic>
#include <exception>
#include <latch>
#include <string>
#include <thread>
#include <vector>

#include "cuda/common/launch.cuh"

namespace {

template <int>
__global__ void first_and_last(int bytes) {
  LOSSOPS_DYNAMIC_SHARED(memory);
  memory[0] = memory[bytes - 1] = 1;
}

}  // namespace

// Each thread launches a kernel, which it shares with others, with an amount of its own. Returns
// what went wrong first.
extern "C" const char* launch_in_threads(const int* bytes, int threads, int times) {
  static std::string wrong;
  wrong.clear();
  std::atomic<bool> failed = false;
  std::latch start(threads);
  std::vector<std::thread> running;
  for (int i = 0; i < threads; ++i) {
    running.emplace_back([&, i] {
      try {
        cudaSetDevice(i % 2);
        start.arrive_and_wait();
        for (int n = 0; n < times && !failed; ++n) {
          const lossops::cuda::Grid grid{1, 32, nullptr, 1, bytes[i]};
          const auto kernel = i % 4 < 2 ? first_and_last<0> : first_and_last<1>;
          lossops::cuda::launch("first_and_last", "", kernel, grid, bytes[i]);
        }
      } catch (const std::exception& error) {
        if (!failed.exchange(true)) wrong = error.what();
      }
    });
  }
  for (std::thread& thread : running) thread.join();
  return wrong.c_str();
}
