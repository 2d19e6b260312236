// How the elementwise engine accesses operands. An operand that already has the layout and dtype of
// the kernels is used in place. Others (half precision, mixed dtypes, broadcast, strided) pass
// through a buffer in the L1 cache, so the kernels handle a single layout and dtype.
#pragma once

#include <algorithm>
#include <cstring>

#include "common/elementwise_problem.h"
#include "cpu/common/blocks.h"

namespace lossops {
inline namespace CPU_CAPABILITY {

enum class Access : int8_t { absent, constant, linear, strided };

inline Access access_of(const Operand& operand, const ElementwiseProblem& problem) {
  if (!operand.defined()) return Access::absent;
  bool constant = true;
  for (int d = 0; d < problem.ndim; ++d) constant = constant && operand.stride[d] == 0;
  if (constant) return Access::constant;
  return problem.ndim == 1 && operand.stride[0] == 1 ? Access::linear : Access::strided;
}

// Splits the elements [begin, begin + n) into runs along the innermost dimension and calls
// f(offset in the operand, position in the block, length) for each.
template <class F>
inline void for_each_run(const ElementwiseProblem& problem, const Operand& operand, int64_t begin,
                         int64_t n, F&& f) {
  int64_t index[kMaxDims];
  int64_t offset = 0;
  for (int64_t d = 0, rest = begin; d < problem.ndim; ++d) {
    index[d] = rest % problem.size[d];
    rest /= problem.size[d];
    offset += index[d] * operand.stride[d];
  }
  for (int64_t done = 0; done < n;) {
    const int64_t length = std::min(n - done, problem.size[0] - index[0]);
    f(offset, done, length);
    done += length;
    index[0] += length;
    offset += length * operand.stride[0];
    for (int d = 0; d + 1 < problem.ndim && index[d] == problem.size[d]; ++d) {
      offset += operand.stride[d + 1] - index[d] * operand.stride[d];
      index[d] = 0;
      ++index[d + 1];
    }
  }
}

// Reads an operand block by block.
template <class T>
class Reader {
 public:
  Reader(const ElementwiseProblem& problem, const Operand& operand)
      : problem_(problem), operand_(operand), access_(access_of(operand, problem)) {
    if (access_ == Access::constant) {
      with_dtype(operand.dtype, [&]<class S>(S*) {
        std::fill_n(buffer_, kBlock, static_cast<T>(*static_cast<const S*>(operand.data)));
      });
    }
  }

  // The n <= kBlock elements starting at `begin`, or null if there is no operand.
  const T* read(int64_t begin, int64_t n) {
    if (access_ == Access::absent) return nullptr;
    if (access_ == Access::constant) return buffer_;
    if (access_ == Access::linear && operand_.dtype == dtype_of<T>) {
      return static_cast<const T*>(operand_.data) + begin;
    }
    with_dtype(operand_.dtype, [&]<class S>(S*) { gather<S>(begin, n); });
    return buffer_;
  }

 private:
  template <class S>
  void gather(int64_t begin, int64_t n) {
    const S* data = static_cast<const S*>(operand_.data);
    if (access_ == Access::linear) return convert(data + begin, buffer_, n);
    const int64_t stride = operand_.stride[0];
    for_each_run(problem_, operand_, begin, n, [&](int64_t offset, int64_t at, int64_t length) {
      if (stride == 1) return convert(data + offset, buffer_ + at, length);
      for (int64_t i = 0; i < length; ++i) {
        buffer_[at + i] = static_cast<T>(data[offset + i * stride]);
      }
    });
  }

  const ElementwiseProblem& problem_;
  const Operand operand_;
  const Access access_;
  alignas(64) T buffer_[kBlock];
};

// Writes an operand block by block: compute into buffer(), then call flush().
template <class T>
class Writer {
 public:
  Writer(const ElementwiseProblem& problem, const Operand& operand)
      : problem_(problem),
        operand_(operand),
        access_(access_of(operand, problem)),
        in_place_(access_ == Access::linear && operand.dtype == dtype_of<T>) {}

  // Where to put the elements starting at `begin`, or null if the output is not wanted.
  T* buffer(int64_t begin) {
    if (access_ == Access::absent) return nullptr;
    return in_place_ ? static_cast<T*>(operand_.data) + begin : buffer_;
  }

  void flush(int64_t begin, int64_t n) {
    if (access_ == Access::absent || in_place_) return;
    with_dtype(operand_.dtype, [&]<class S>(S*) { scatter<S>(begin, n); });
  }

 private:
  template <class S>
  void scatter(int64_t begin, int64_t n) {
    S* data = static_cast<S*>(operand_.data);
    if (access_ == Access::linear) return convert(buffer_, data + begin, n);
    const int64_t stride = operand_.stride[0];
    for_each_run(problem_, operand_, begin, n, [&](int64_t offset, int64_t at, int64_t length) {
      if (stride == 1) return convert(buffer_ + at, data + offset, length);
      for (int64_t i = 0; i < length; ++i) {
        data[offset + i * stride] = static_cast<S>(buffer_[at + i]);
      }
    });
  }

  const ElementwiseProblem& problem_;
  const Operand operand_;
  const Access access_;
  const bool in_place_;
  alignas(64) T buffer_[kBlock];
};

}  // namespace CPU_CAPABILITY
}  // namespace lossops
