// The device: its threads and its memory. Internal, but for the C functions at the end, which are
// how a test drives it.
#pragma once

#include <cuda_runtime.h>
#include <setjmp.h>
#include <ucontext.h>

#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace cuda_on_cpu {

// A stretch of one thread's life between two points of synchronization. Memory remembers its last
// accesses by the moments they happened in.
struct Moment {
  uint32_t block, thread;
  uint32_t interval;          // how many barriers the block has passed
  uint32_t warp_interval;     // how many __syncwarp the thread has passed
  uint32_t cluster_interval;  // how many barriers of the cluster
};
using MomentId = uint32_t;  // 0: before this launch

// What is known of one byte.
struct Byte {
  enum : uint8_t {
    exists = 1,
    written = 2,
    constant = 4,
    atomic = 8,
    readers = 16,
    warps = 32,
    cluster = 64,
    blocks = 128
  };
  MomentId writer, reader;            // the last ones
  uint32_t writer_code, reader_code;  // where
  uint32_t launch;                    // of the last access
  uint8_t flags;  // `readers`: several threads read it; of several warps, or blocks of one cluster
                  // or not
};

enum class Status : uint8_t { ready, warp, barrier, cluster, done };

struct Block;

struct Thread {
  Block* block;
  unsigned index;
  uint3 id;
  Status status = Status::ready;
  const void* where = nullptr;  // it waits
  MomentId moment = 0;
  WarpOp op = WarpOp::sync;
  unsigned mask = 0;
  Word word{}, *words = nullptr;  // for the other lanes, and from them
  MomentId fenced = 0;            // the moment that its last __threadfence ended
  std::vector<MomentId> seen;  // releases that an atomic operation has read, before the next fence
  bool started = false;
  jmp_buf context;
};

struct Block {
  // A moment of another block, before which everything there is known here, from a moment here on.
  struct Acquired {
    MomentId release, since;
  };
  uint32_t number;
  uint3 index;
  unsigned rank;  // in its cluster
  std::vector<Thread> threads;
  std::vector<unsigned char> shared, dynamic;  // memory; `shared` while another block runs
  std::vector<Byte> shared_bytes, dynamic_bytes;
  std::map<uint32_t, std::vector<Acquired>> acquired;
  // How many barriers of the cluster had passed when another block last asked for its shared
  // memory, and where that was.
  int64_t lent = -1;
  const void* lent_at = nullptr;
};

struct Device {
  std::mt19937_64 random{1};
  uint32_t launches = 0;
  Launch launch{};
  std::vector<Moment> moments;
  std::vector<std::unique_ptr<Block>> cluster;  // the blocks that run at a time
  Block* block = nullptr;                       // the one whose shared memory is in place
  Thread* thread = nullptr;                     // the one that runs
  char* stack = nullptr;                        // its stack
  int64_t steps = 0;                            // its accesses since it took over
  jmp_buf scheduler;
  std::string failure;
  int64_t bytes_read = 0, bytes_written = 0;  // in global memory
};
extern Device device;

constexpr size_t kStack = 1 << 17;

// Ends the launch. `code` is the address after a call.
[[noreturn]] void fail(const std::string& what, const void* code);
// File and line of a return address, and of the calls that were inlined around it.
std::string place(const void* code);
std::string name(const Thread& thread);

void new_moment(Thread& thread, bool barrier = false, bool warp = false, bool cluster = false);
void fence(Thread& thread);
void start_shared_memory(Block& block);
void enter(Block& block);  // puts the block's shared memory in place
// After its threads have ended: others had its shared memory, with no barrier since.
bool ended_too_early(const Block& block);

}  // namespace cuda_on_cpu

extern "C" {
void cuda_on_cpu_seed(uint64_t seed);
// Global memory: forget all of it; let bytes exist, written already or not, constant or not.
void cuda_on_cpu_forget();
void cuda_on_cpu_memory(void* data, int64_t bytes, int written, int constant);
// The first of these bytes that nothing has written, or -1.
int64_t cuda_on_cpu_unwritten(const void* data, int64_t bytes);
// Bytes of global memory that kernels have read and written since the last call.
void cuda_on_cpu_traffic(int64_t* read, int64_t* written);
}
