#pragma once

#include <cstdint>

namespace lossops::cpu {

// The threads that share the blocks of a row if there are too few rows to distribute: all threads,
// or only the calling one.
struct Threads {
  using Part = void (*)(const void* loop, int64_t begin, int64_t end);
  void (*run)(int64_t n, const void* loop, Part part) = nullptr;

  bool share() const { return run != nullptr; }
  template <class F>
  void each(int64_t n, const F& f) const {
    const auto part = [](const void* loop, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) (*static_cast<const F*>(loop))(i);
    };
    if (run) return run(n, &f, part);
    part(&f, 0, n);
  }
};

}  // namespace lossops::cpu
