// Every access of a kernel to memory: does it exist, has it been written, is it ordered after the
// accesses of others? The compiler calls the hooks at the end, as it does for ThreadSanitizer.
#include <link.h>

#include <algorithm>
#include <array>
#include <unordered_map>

#include "device.h"

// The bounds of this library, set by the linker.
extern "C" const char __ehdr_start[] __attribute__((visibility("hidden")));
extern "C" const char _end[] __attribute__((visibility("hidden")));

namespace cuda_on_cpu {
namespace {

constexpr int64_t kMostSteps = 10'000'000;
constexpr size_t kPage = 4096;
using Page = std::array<Byte, kPage>;
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;

uintptr_t last_page = 0;
Page* last = nullptr;

// The releases that stand at an address that atomic operations meet at.
std::unordered_map<const void*, std::vector<MomentId>> releases;
uint32_t releases_of = 0;  // the launch

// All static shared memory of this library: its thread-local variables.
struct Range {
  char* begin = nullptr;
  size_t size = 0;
} shared;
thread_local volatile char touched;  // to have the loader set the memory up

void find_shared_memory() {
  touched = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void*) {
        if (info->dlpi_addr != reinterpret_cast<uintptr_t>(__ehdr_start)) return 0;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          if (info->dlpi_phdr[i].p_type != PT_TLS) continue;
          shared = {static_cast<char*>(info->dlpi_tls_data), info->dlpi_phdr[i].p_memsz};
        }
        return 1;
      },
      nullptr);
}

Byte* byte_of(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (!last || address / kPage != last_page) {
    const auto found = pages.find(address / kPage);
    if (found == pages.end()) return nullptr;
    last_page = address / kPage;
    last = found->second.get();
  }
  return &(*last)[address % kPage];
}

const Moment& at(MomentId id) {
  return device.moments[id];
}

bool ordered_in_block(MomentId earlier, MomentId later) {
  const Moment &a = at(earlier), &b = at(later);
  return a.thread == b.thread || a.interval < b.interval ||
         (a.thread / 32 == b.thread / 32 && a.warp_interval < b.warp_interval);
}

// Whether all that happened in a moment is visible to the running thread.
bool ordered(MomentId earlier) {
  const MomentId now = device.thread->moment;
  if (earlier == 0 || earlier == now) return true;
  const Moment& then = at(earlier);
  if (then.block == at(now).block) return ordered_in_block(earlier, now);
  const auto known = device.thread->block->acquired.find(then.block);
  if (known == device.thread->block->acquired.end()) return false;
  return std::any_of(known->second.begin(), known->second.end(), [&](const Block::Acquired& a) {
    const Moment& release = at(a.release);
    const bool covered =
        then.thread == release.thread ? earlier <= a.release : ordered_in_block(earlier, a.release);
    return covered && ordered_in_block(a.since, now);
  });
}

// Whether a block belongs to the cluster that runs.
bool in_cluster(uint32_t number) {
  return std::any_of(device.cluster.begin(), device.cluster.end(),
                     [&](const auto& block) { return block->number == number; });
}

std::string size_text(size_t size) {
  return std::to_string(size) + (size == 1 ? " byte" : " bytes");
}

enum class Kind { read, write, atomic };

constexpr uint8_t kSeveral = Byte::readers | Byte::warps | Byte::cluster | Byte::blocks;

[[noreturn]] void race(const char* earlier, MomentId moment, uint32_t code, Kind kind,
                       const void* now) {
  fail(std::string("a race: this ") + (kind == Kind::read ? "read" : "write") + " and an earlier " +
           earlier + " of the same byte by thread " + std::to_string(at(moment).thread) +
           " of block " + std::to_string(at(moment).block) + " (" + place(__ehdr_start + code) +
           ") are not ordered",
       now);
}

void touch(Byte& byte, Kind kind, size_t size, const void* code) {
  const auto fail_with = [&](const char* what) {
    fail(std::string("a ") + (kind == Kind::read ? "read" : "write") + " of " + size_text(size) +
             what,
         code);
  };
  if (!(byte.flags & Byte::exists)) fail_with(" outside of every tensor");
  if (kind != Kind::read && (byte.flags & Byte::constant)) fail_with(" to an input");
  if (kind != Kind::write && !(byte.flags & Byte::written)) {
    fail_with(" where nothing has been written yet");
  }
  if (byte.launch != device.launches) {
    byte.launch = device.launches;
    byte.writer = byte.reader = 0;
    byte.flags &= ~(Byte::atomic | kSeveral);
  }
  const bool both_atomic = kind == Kind::atomic && (byte.flags & Byte::atomic);
  if (!both_atomic && !ordered(byte.writer))
    race("write", byte.writer, byte.writer_code, kind, code);
  const MomentId now = device.thread->moment;
  const auto offset = static_cast<uint32_t>(static_cast<const char*>(code) - __ehdr_start);
  if (kind == Kind::read) {
    const Moment &before = at(byte.reader), &here = at(now);
    if (!ordered(byte.reader)) {
      byte.flags |= before.block == here.block ? Byte::readers
                    : in_cluster(before.block) ? Byte::cluster
                                               : Byte::blocks;
      if (before.thread / 32 != here.thread / 32) byte.flags |= Byte::warps;
    } else if (before.cluster_interval < here.cluster_interval) {
      byte.flags &= ~(Byte::readers | Byte::warps | Byte::cluster);
    } else if (before.interval < here.interval) {
      byte.flags &= ~(Byte::readers | Byte::warps);
    }
    byte.reader = now;
    byte.reader_code = offset;
    return;
  }
  if (byte.reader) {
    // Of several readers the last one stands for all: a barrier that all of them share has passed
    // since, if any has. Of one warp, that can be a __syncwarp.
    const Moment &before = at(byte.reader), &here = at(now);
    const bool shared_interval =
        (byte.flags & Byte::readers) && before.interval == here.interval &&
        ((byte.flags & Byte::warps) || before.warp_interval >= here.warp_interval);
    const bool shared_in_cluster =
        (byte.flags & Byte::cluster) && before.cluster_interval >= here.cluster_interval;
    if (!ordered(byte.reader) || shared_interval || shared_in_cluster ||
        (byte.flags & Byte::blocks)) {
      race("read", byte.reader, byte.reader_code, kind, code);
    }
  }
  byte.writer = now;
  byte.writer_code = offset;
  byte.reader = 0;
  byte.flags = (byte.flags & ~(Byte::atomic | kSeveral)) | Byte::written |
               (kind == Kind::atomic ? Byte::atomic : 0);
}

bool inside(const void* address, const void* begin, size_t size) {
  return static_cast<size_t>(static_cast<const char*>(address) - static_cast<const char*>(begin)) <
         size;
}

// The shadow of an address in some block's shared memory.
Byte* shared_byte(const void* address) {
  const auto offset = [&](const void* begin) {
    return static_cast<const char*>(address) - static_cast<const char*>(begin);
  };
  if (inside(address, shared.begin, shared.size)) {
    return &device.block->shared_bytes[offset(shared.begin)];
  }
  for (const auto& block : device.cluster) {
    const bool other = block.get() != device.block;
    if (other && inside(address, block->shared.data(), block->shared.size())) {
      return &block->shared_bytes[offset(block->shared.data())];
    }
    if (inside(address, block->dynamic.data(), block->dynamic.size())) {
      return &block->dynamic_bytes[offset(block->dynamic.data())];
    }
  }
  return nullptr;
}

void access(const void* address, size_t size, Kind kind, const void* code) {
  if (!device.thread || inside(address, device.stack, kStack)) return;
  if (++device.steps > kMostSteps) fail("a thread that does not end", code);
  const char* const p = static_cast<const char*>(address);
  if (Byte* first = shared_byte(address)) {
    for (size_t i = 0; i < size; ++i) {
      Byte* byte = i == 0 ? first : shared_byte(p + i);
      if (!byte) fail("an access beyond the end of shared memory", code);
      touch(*byte, kind, size, code);
    }
    return;
  }
  // Parameters, built-in variables and constants may be read.
  if (kind == Kind::read && (inside(p, device.launch.parameters, device.launch.size) ||
                             inside(p, __ehdr_start, _end - __ehdr_start))) {
    return;
  }
  for (size_t i = 0; i < size; ++i) {
    Byte* byte = byte_of(p + i);
    Byte nothing{};
    touch(byte ? *byte : nothing, kind, size, code);
  }
  if (kind != Kind::write) device.bytes_read += size;
  if (kind != Kind::read) device.bytes_written += size;
}

}  // namespace

// ---- Synchronization, as far as memory knows of it

void new_moment(Thread& thread, bool barrier, bool warp, bool cluster) {
  Moment next{thread.block->number, thread.index, 0, 0, 0};
  if (thread.moment) next = at(thread.moment);
  next.interval += barrier;
  next.warp_interval += warp;
  next.cluster_interval += cluster;
  thread.moment = static_cast<MomentId>(device.moments.size());
  device.moments.push_back(next);
}

// Releases what the thread has done and seen, and acquires what its atomic operations have read.
void fence(Thread& thread) {
  thread.fenced = thread.moment;
  new_moment(thread);
  for (const MomentId release : thread.seen) {
    thread.block->acquired[at(release).block].push_back({release, thread.moment});
  }
  thread.seen.clear();
}

void atomic_load(void* address, void* value, size_t size) {
  access(address, size, Kind::atomic, __builtin_return_address(0));
  if (releases_of != device.launches) releases.clear();
  releases_of = device.launches;
  auto& here = releases[address];
  device.thread->seen.insert(device.thread->seen.end(), here.begin(), here.end());
  if (device.thread->fenced) here.push_back(device.thread->fenced);
  memcpy(value, address, size);
}

void atomic_store(void* address, const void* value, size_t size) {
  memcpy(address, value, size);
}

// ---- Shared memory

void start_shared_memory(Block& block) {
  const auto start = [](std::vector<unsigned char>& memory, std::vector<Byte>& bytes, size_t size) {
    memory.assign(size, 0xff);  // NaN, should it ever be read
    Byte byte{};
    byte.flags = Byte::exists;
    bytes.assign(size, byte);
  };
  find_shared_memory();
  start(block.shared, block.shared_bytes, shared.size);
  start(block.dynamic, block.dynamic_bytes, device.launch.dynamic_shared);
}

bool ended_too_early(const Block& block) {
  return block.lent >= int64_t(at(block.threads[0].moment).cluster_interval);
}

void enter(Block& block) {
  if (device.block == &block) return;
  if (device.block) memcpy(device.block->shared.data(), shared.begin, shared.size);
  memcpy(shared.begin, block.shared.data(), shared.size);
  device.block = &block;
}

unsigned char* dynamic_shared_memory() {
  return device.block->dynamic.data();
}

void* shared_memory_of(unsigned rank, const void* address) {
  const void* const code = __builtin_return_address(0);
  if (rank >= device.cluster.size()) fail("a block rank beyond the cluster", code);
  Block &own = *device.block, &other = *device.cluster[rank];
  if (&own == &other) return const_cast<void*>(address);
  const auto done = [](const Thread& thread) { return thread.status == Status::done; };
  if (std::all_of(other.threads.begin(), other.threads.end(), done)) {
    fail("shared memory of a block that has ended", code);
  }
  const int64_t now = at(device.thread->moment).cluster_interval;
  if (now > other.lent) other.lent = now, other.lent_at = code;
  const char* const p = static_cast<const char*>(address);
  if (inside(p, shared.begin, shared.size)) {
    return other.shared.data() + (p - shared.begin);
  }
  if (inside(p, own.dynamic.data(), own.dynamic.size())) {
    return other.dynamic.data() + (p - reinterpret_cast<char*>(own.dynamic.data()));
  }
  fail("an address that is not in this block's shared memory", code);
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  for (size_t i = 0; i < bytes; ++i) {
    Byte* byte = byte_of(static_cast<char*>(data) + i);
    if (!byte || !(byte->flags & Byte::exists)) {
      throw std::runtime_error("cuda_on_cpu: a memset outside of every tensor");
    }
    byte->flags |= Byte::written;
  }
  memset(data, value, bytes);
  return cudaSuccess;
}

extern "C" {

void cuda_on_cpu_forget() {
  pages.clear();
  last = nullptr;
}

void cuda_on_cpu_memory(void* data, int64_t bytes, int written, int constant) {
  for (int64_t i = 0; i < bytes; ++i) {
    const auto address = reinterpret_cast<uintptr_t>(data) + i;
    auto& page = pages[address / kPage];
    if (!page) page = std::make_unique<Page>();
    uint8_t& flags = (*page)[address % kPage].flags;
    if (!constant) flags &= ~Byte::constant;
    if (constant && !(flags & Byte::exists)) flags |= Byte::constant;
    flags |= Byte::exists | (written ? Byte::written : 0);
  }
}

int64_t cuda_on_cpu_unwritten(const void* data, int64_t bytes) {
  for (int64_t i = 0; i < bytes; ++i) {
    const Byte* byte = byte_of(static_cast<const char*>(data) + i);
    if (!byte || !(byte->flags & Byte::written)) return i;
  }
  return -1;
}

void cuda_on_cpu_traffic(int64_t* read, int64_t* written) {
  *read = device.bytes_read;
  *written = device.bytes_written;
  device.bytes_read = device.bytes_written = 0;
}

// ---- What the compiler calls under -fsanitize=alignment,bounds

void __ubsan_handle_type_mismatch_v1(void*, void*) {
  if (device.thread) fail("a misaligned access", __builtin_return_address(0));
}
void __ubsan_handle_out_of_bounds(void*, void*) {
  if (device.thread) fail("an index beyond a local array", __builtin_return_address(0));
}

// ---- What it calls under -fsanitize=thread

#define HOOK(name, size, kind)                                \
  void __tsan_##name(void* p) {                               \
    access(p, size, Kind::kind, __builtin_return_address(0)); \
  }
#define HOOKS(size)                      \
  HOOK(read##size, size, read)           \
  HOOK(write##size, size, write)         \
  HOOK(unaligned_read##size, size, read) \
  HOOK(unaligned_write##size, size, write)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* p, size_t size) {
  access(p, size, Kind::read, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t size) {
  access(p, size, Kind::write, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
unsigned char __tsan_atomic8_load(const volatile unsigned char* p, int) {
  return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
}
