#include "ops/large.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <string_view>

namespace lossops::ops {
namespace {

// From this size on, a tensor's memory is a mapping of its own, whatever glibc has learned from the
// sizes of other allocations, and the advice goes away with the tensor. Advice for heap memory
// would stay and affect later allocations.
constexpr size_t kMuch = size_t(32) << 20;

#if defined(__linux__) && defined(MADV_HUGEPAGE)
void prefer_huge_pages(void* data, size_t bytes) {
  static const bool allowed = [] {
    const char* const setting = std::getenv("LOSSOPS_HUGE_PAGES");
    return !setting || std::string_view(setting) != "0";
  }();
  if (!allowed) return;
  static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<uintptr_t>(data);
  const auto begin = (first + page - 1) / page * page, end = (first + bytes) / page * page;
  // This is only advice: if it is refused, as by kernels without huge pages, nothing is lost.
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}
#else
void prefer_huge_pages(void*, size_t) {}
#endif

}  // namespace

at::Tensor large(at::Tensor fresh) {
  if (fresh.is_cpu() && fresh.nbytes() >= kMuch) {
    prefer_huge_pages(fresh.data_ptr(), fresh.nbytes());
  }
  return fresh;
}

}  // namespace lossops::ops
