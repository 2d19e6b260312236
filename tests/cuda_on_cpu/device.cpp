// The threads of the device: fibers, which run from one point of synchronization to the next.
#include "device.h"

#include <cooperative_groups.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <unordered_map>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_on_cpu {

Device device;

// ---- Words about places

std::string place(const void* code) {
  static std::unordered_map<const void*, std::string> known;
  if (const auto found = known.find(code); found != known.end()) return found->second;
  Dl_info library{};
  if (!dladdr(code, &library)) return "somewhere";
  char command[1024];
  snprintf(command, sizeof(command), "addr2line -i -e '%s' %#zx", library.dli_fname,
           static_cast<size_t>(static_cast<const char*>(code) - 1 -
                               static_cast<const char*>(library.dli_fbase)));
  std::string chain;
  FILE* pipe = popen(command, "r");
  for (char line[1024]; pipe && fgets(line, sizeof(line), pipe);) {
    std::string frame(line);
    frame.erase(frame.find_last_not_of("\n ") + 1);
    frame.erase(std::min(frame.find(" ("), frame.size()));           // a discriminator
    if (frame.find("cuda_on_cpu/c") != std::string::npos) continue;  // the language
    const size_t folder = std::min(frame.rfind("/csrc/"), frame.rfind("/tests/"));
    if (folder == std::string::npos) continue;
    chain += (chain.empty() ? "" : ", in ") + frame.substr(folder + 1);
  }
  if (pipe) pclose(pipe);
  return known[code] = chain.empty() ? "somewhere" : chain;
}

std::string name(const Thread& thread) {
  return "thread " + std::to_string(thread.index) + " of block " +
         std::to_string(thread.block->number);
}

void fail(const std::string& what, const void* code) {
  device.failure = what + "\n  at " + place(code) + "\n  by " + name(*device.thread);
  _longjmp(device.scheduler, 1);
}

void fail_here(const char* what) {
  fail(what, __builtin_return_address(0));
}

namespace {

std::string describe(const Thread& thread) {
  if (thread.status == Status::done) return name(thread) + " has ended";
  const char* what = thread.status == Status::barrier   ? "__syncthreads"
                     : thread.status == Status::cluster ? "the cluster's barrier"
                     : thread.op == WarpOp::sync        ? "__syncwarp"
                     : thread.op == WarpOp::vote        ? "a vote"
                                                        : "a shuffle";
  return name(thread) + " waits in " + what + " at " + place(thread.where);
}

// ---- Fibers

char* stack_of(size_t fiber) {
  static std::vector<char*> stacks;
  while (stacks.size() <= fiber) {
    void* memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("cuda_on_cpu: no memory for stacks");
    mprotect(memory, 4096, PROT_NONE);
    stacks.push_back(static_cast<char*>(memory));
  }
  return stacks[fiber];
}

void entry() {
  device.launch.call(device.launch.parameters);
  device.thread->status = Status::done;
  _longjmp(device.scheduler, 1);
}

void resume(Thread& thread) {
  device.thread = &thread;
  device.steps = 0;
  device.stack = stack_of(thread.block->rank * thread.block->threads.size() + thread.index);
  threadIdx = thread.id;
  blockIdx = thread.block->index;
  if (_setjmp(device.scheduler) == 0) {
    if (thread.started) _longjmp(thread.context, 1);
    thread.started = true;
    ucontext_t start;
    getcontext(&start);
    start.uc_stack.ss_sp = device.stack;
    start.uc_stack.ss_size = kStack;
    start.uc_link = nullptr;
    makecontext(&start, entry, 0);
    setcontext(&start);
  }
  device.thread = nullptr;
}

void wait(Status status, const void* where) {
  Thread& thread = *device.thread;
  thread.status = status;
  thread.where = where;
  if (_setjmp(thread.context) == 0) _longjmp(device.scheduler, 1);
}

// ---- Synchronization: once nobody can run, whoever waits for nobody but waiting threads goes on

bool all_at(const Block& block, Status status) {
  return std::all_of(block.threads.begin(), block.threads.end(),
                     [&](const Thread& thread) { return thread.status == status; });
}

// The sources of the threads' waiting differ: a barrier that some threads reach elsewhere.
const Thread* elsewhere(const Block& block) {
  const Thread& first = block.threads[0];
  for (const Thread& thread : block.threads) {
    if (thread.where != first.where && place(thread.where) != place(first.where)) return &thread;
  }
  return nullptr;
}

void pass_barrier(Block& block, bool of_cluster = false) {
  if (const Thread* other = elsewhere(block)) {
    device.failure = "threads of a block meet at different barriers\n  " +
                     describe(block.threads[0]) + "\n  " + describe(*other);
    return;
  }
  for (Thread& thread : block.threads) {
    thread.status = Status::ready;
    new_moment(thread, true, false, of_cluster);
  }
}

bool release_warps(Block& block) {
  bool any = false;
  for (Thread& thread : block.threads) {
    if (thread.status != Status::warp) continue;
    Thread* const lanes = &block.threads[thread.index & ~31u];
    const unsigned existing = std::min<unsigned>(32, block.threads.size() - (thread.index & ~31u));
    const Thread* missing = nullptr;
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (!(thread.mask >> lane & 1)) continue;
      if (lane >= existing) {
        device.failure = "the mask names lanes that the block does not have\n  " + describe(thread);
        return false;
      }
      const Thread& other = lanes[lane];
      const bool here = other.status == Status::warp && other.op == thread.op &&
                        other.mask == thread.mask &&
                        (other.where == thread.where || place(other.where) == place(thread.where));
      if (!here) missing = &other;
    }
    if (missing) continue;
    Word words[32];
    for (unsigned lane = 0; lane < existing; ++lane) words[lane] = lanes[lane].word;
    for (unsigned lane = 0; lane < existing; ++lane) {
      if (!(thread.mask >> lane & 1)) continue;
      if (lanes[lane].words) memcpy(lanes[lane].words, words, sizeof(words));
      if (thread.op == WarpOp::sync) new_moment(lanes[lane], false, true);
      if (&lanes[lane] != &thread) lanes[lane].status = Status::ready;
    }
    thread.status = Status::ready;
    any = true;
  }
  return any;
}

bool release_cluster() {
  auto& blocks = device.cluster;
  if (!std::all_of(blocks.begin(), blocks.end(),
                   [](const auto& block) { return all_at(*block, Status::cluster); })) {
    return false;
  }
  std::vector<MomentId> before, after;
  for (auto& block : blocks) {
    before.push_back(block->threads[0].moment);
    pass_barrier(*block, true);
    after.push_back(block->threads[0].moment);
    new_moment(block->threads[0]);  // so that nothing happens in the moment that is released
  }
  for (auto& to : blocks) {
    for (auto& from : blocks) {
      if (to == from) continue;
      to->acquired[from->number].push_back({after[from->rank], before[to->rank]});
    }
  }
  return true;
}

bool release() {
  bool any = false;
  for (auto& block : device.cluster) any |= release_warps(*block);
  if (any || !device.failure.empty()) return true;
  for (auto& block : device.cluster) {
    if (!all_at(*block, Status::barrier)) continue;
    pass_barrier(*block);
    any = true;
  }
  return any || release_cluster();
}

// Nobody can go on: who waits for whom?
std::string stuck() {
  std::string text = "not all threads reach a point of synchronization";
  for (auto& block : device.cluster) {
    const Thread* shown[2] = {};
    for (const Thread& thread : block->threads) {
      if (!shown[0] && thread.status != Status::done) shown[0] = &thread;
    }
    if (!shown[0]) continue;
    for (const Thread& thread : block->threads) {
      const bool in_mask =
          shown[0]->status != Status::warp ||
          (thread.index / 32 == shown[0]->index / 32 && (shown[0]->mask >> thread.index % 32 & 1));
      const bool same = thread.status == shown[0]->status && thread.where == shown[0]->where;
      if (!same && in_mask && !shown[1]) shown[1] = &thread;
    }
    text += "\n  " + describe(*shown[0]);
    if (shown[1]) text += "\n  " + describe(*shown[1]);
  }
  return text;
}

uint3 unflatten(uint32_t i, const dim3& size) {
  return {i % size.x, i / size.x % size.y, i / size.x / size.y};
}

void start_cluster(uint32_t number) {
  const Launch& launch = device.launch;
  const dim3 clusters(launch.grid.x / launch.cluster.x, launch.grid.y / launch.cluster.y,
                      launch.grid.z / launch.cluster.z);
  const uint3 at = unflatten(number, clusters);
  const unsigned size = launch.cluster.x * launch.cluster.y * launch.cluster.z;
  device.block = nullptr;
  device.cluster.clear();
  for (unsigned rank = 0; rank < size; ++rank) {
    const uint3 in = unflatten(rank, launch.cluster);
    auto block = std::make_unique<Block>();
    block->index = {at.x * launch.cluster.x + in.x, at.y * launch.cluster.y + in.y,
                    at.z * launch.cluster.z + in.z};
    block->number =
        block->index.x + launch.grid.x * (block->index.y + launch.grid.y * block->index.z);
    block->rank = rank;
    block->threads.resize(launch.block.x * launch.block.y * launch.block.z);
    for (unsigned t = 0; t < block->threads.size(); ++t) {
      Thread& thread = block->threads[t];
      thread.block = block.get();
      thread.index = t;
      thread.id = unflatten(t, launch.block);
      new_moment(thread);
    }
    start_shared_memory(*block);
    device.cluster.push_back(std::move(block));
  }
}

void check_ends() {
  for (const auto& block : device.cluster) {
    if (!ended_too_early(*block)) continue;
    device.failure = "shared memory of a block that may have ended: block " +
                     std::to_string(block->number) +
                     " passes no barrier of the cluster afterwards\n  at " + place(block->lent_at);
  }
}

void run_cluster() {
  std::vector<unsigned> blocks(device.cluster.size()), order;
  std::iota(blocks.begin(), blocks.end(), 0);
  for (;;) {
    bool ran = false, done = true;
    std::shuffle(blocks.begin(), blocks.end(), device.random);
    for (const unsigned rank : blocks) {
      Block& block = *device.cluster[rank];
      order.clear();
      for (const Thread& thread : block.threads) {
        if (thread.status == Status::ready) order.push_back(thread.index);
      }
      if (order.empty()) {
        done = done && all_at(block, Status::done);
        continue;
      }
      std::shuffle(order.begin(), order.end(), device.random);
      enter(block);
      for (const unsigned t : order) {
        resume(block.threads[t]);
        if (!device.failure.empty()) return;
      }
      ran = true;
    }
    if (ran) continue;
    if (done) return check_ends();
    if (!release()) device.failure = stuck();
    if (!device.failure.empty()) return;
  }
}

int chosen(const char* name, int otherwise) {
  const char* const text = getenv(name);
  return text ? atoi(text) : otherwise;
}

// ---- What the device knows of kernels

constexpr int kShared = 227 * 1024;       // bytes, all that there is
constexpr int kStaticShared = 1024;       // of them, as if every kernel declared so many
constexpr int kWithoutLeave = 47 * 1024;  // dynamic ones that any kernel may have

std::mutex mutex;                        // of what threads share
std::map<std::thread::id, int> current;  // device; what is thread-local would be shared memory
std::map<std::pair<int, const void*>, int> leaves;  // for bytes of dynamic shared memory

size_t leave(const void* kernel) {
  const std::lock_guard lock(mutex);
  return std::max(leaves[{current[std::this_thread::get_id()], kernel}], kWithoutLeave);
}

// Ten times the compute capability.
int compiled_for() {
  return chosen("LOSSOPS_TEST_COMPILED", 90);
}

void check_limits(const Launch& launch) {
  const auto count = [](const dim3& size) { return uint64_t(size.x) * size.y * size.z; };
  const char* wrong = nullptr;
  if (count(launch.grid) == 0 || launch.grid.x > INT32_MAX)
    wrong = "a grid of no or too many blocks";
  if (launch.grid.y > 65535 || launch.grid.z > 65535) wrong = "a grid beyond 65535 in y or z";
  if (count(launch.block) == 0 || count(launch.block) > 1024)
    wrong = "a block of 0 or over 1024 threads";
  if (count(launch.cluster) > 16) wrong = "a cluster of over 16 blocks";
  if (launch.grid.x % launch.cluster.x || launch.grid.y % launch.cluster.y ||
      launch.grid.z % launch.cluster.z) {
    wrong = "a grid that clusters do not divide";
  }
  if (count(launch.cluster) > 1 && compiled_for() < 90) {
    wrong = "a cluster, by code for devices that have none";
  }
  if (launch.dynamic_shared > leave(launch.kernel)) wrong = "shared memory without leave";
  if (wrong) throw std::runtime_error(std::string("cuda_on_cpu: the launch asks for ") + wrong);
}

}  // namespace

void run(const Launch& launch) {
  check_limits(launch);
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  device.launch = launch;
  device.launches += 1;
  device.failure.clear();
  device.moments.assign(1, Moment{});
  gridDim = launch.grid;
  blockDim = launch.block;
  const unsigned size = launch.cluster.x * launch.cluster.y * launch.cluster.z;
  std::vector<uint32_t> order(uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z / size);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), device.random);
  for (const uint32_t number : order) {
    start_cluster(number);
    run_cluster();
    device.block = nullptr;
    if (!device.failure.empty()) throw std::runtime_error("cuda_on_cpu: " + device.failure);
  }
}

unsigned lane() {
  return device.thread->index % 32;
}

void meet_warp(WarpOp op, unsigned mask, const void* word, size_t size, Word* words) {
  Thread& thread = *device.thread;
  const void* const code = __builtin_return_address(0);
  if (!(mask >> lane() & 1)) fail("a lane that its own mask leaves out", code);
  thread.op = op;
  thread.mask = mask;
  thread.words = words;
  if (size) memcpy(&thread.word, word, size);
  wait(Status::warp, code);
}

void meet_cluster() {
  wait(Status::cluster, __builtin_return_address(0));
}
unsigned cluster_rank() {
  return device.block->rank;
}
unsigned cluster_size() {
  return device.cluster.size();
}

}  // namespace cuda_on_cpu

using cuda_on_cpu::device;

void __syncthreads() {
  cuda_on_cpu::wait(cuda_on_cpu::Status::barrier, __builtin_return_address(0));
}
void __threadfence() {
  cuda_on_cpu::fence(*device.thread);
}

cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) {
  return "an error of cuda_on_cpu";
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 2;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* number) {
  const std::lock_guard lock(cuda_on_cpu::mutex);
  *number = cuda_on_cpu::current[std::this_thread::get_id()];
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int number) {
  const std::lock_guard lock(cuda_on_cpu::mutex);
  cuda_on_cpu::current[std::this_thread::get_id()] = number;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  using cuda_on_cpu::chosen;
  *value = attribute == cudaDevAttrMultiProcessorCount ? chosen("LOSSOPS_TEST_MULTIPROCESSORS", 2)
           : attribute == cudaDevAttrMaxGridDimX       ? 24  // few: many groups take turns
           : attribute == cudaDevAttrComputeCapabilityMajor ? 9
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin
               ? chosen("LOSSOPS_TEST_SHARED", cuda_on_cpu::kShared)
               : 0;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {cuda_on_cpu::kStaticShared, cuda_on_cpu::compiled_for(), 90};
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  using namespace cuda_on_cpu;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value > kShared - kStaticShared) return cudaErrorInvalidValue;
  std::this_thread::sleep_for(std::chrono::microseconds(50));  // others find out what they can,
  {
    const std::lock_guard lock(mutex);
    leaves[{current[std::this_thread::get_id()], kernel}] = value;
  }
  std::this_thread::sleep_for(std::chrono::microseconds(50));  // and come before the launch
  return cudaSuccess;
}

extern "C" void cuda_on_cpu_seed(uint64_t seed) {
  device.random.seed(seed);
}
