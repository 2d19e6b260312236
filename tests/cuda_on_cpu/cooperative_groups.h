// Thread-block clusters and their distributed shared memory.
#pragma once

#include <cuda_runtime.h>

namespace cuda_on_cpu {
void meet_cluster();
unsigned cluster_rank();
unsigned cluster_size();
// What lies at `address` in this block's shared memory, in that of another block.
void* shared_memory_of(unsigned rank, const void* address);
}  // namespace cuda_on_cpu

namespace cooperative_groups {

struct cluster_group {
  __forceinline__ static void sync() { cuda_on_cpu::meet_cluster(); }
  __forceinline__ static unsigned block_rank() { return cuda_on_cpu::cluster_rank(); }
  __forceinline__ static unsigned num_blocks() { return cuda_on_cpu::cluster_size(); }
  template <class T>
  __forceinline__ static T* map_shared_rank(T* address, unsigned rank) {
    return static_cast<T*>(cuda_on_cpu::shared_memory_of(rank, address));
  }
};
__forceinline__ cluster_group this_cluster() {
  return {};
}

}  // namespace cooperative_groups
