// How the softmax engine accesses memory: in tiles of one row, or of several rows side by side, in
// the compute type. Class c of lane l is at c * stride + l.
#pragma once

#include <cstdlib>
#include <memory>
#include <type_traits>

#include "cpu/common/blocks.h"
#include "cpu/common/simd.h"
#include "cpu/softmax/kernels.h"

namespace lossops {
inline namespace CPU_CAPABILITY {

constexpr int64_t kMostLanes = 256;
// Classes that are computed in one go: with one row, as many as fit into the L1 cache.
constexpr int64_t kRowBlock = 2048, kLaneBlock = 64;

// Memory of a thread that is kept across calls: fresh pages cost more than the computation.
template <class T>
class Scratch {
 public:
  T* reserve(int64_t n) {
    if (n > size_) {
      const size_t bytes = (n * sizeof(T) + 63) / 64 * 64;
      memory_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
      if (!memory_) throw std::bad_alloc();
      size_ = n;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> memory_;
  int64_t size_ = 0;
};

// Buffer number `slot` of the calling thread.
template <class T>
T* scratch(int slot, int64_t n) {
  thread_local Scratch<T> buffers[7];
  return buffers[slot].reserve(n);
}

// A block of numbers. Whole vectors are accessed where they are stored; the tail that does not fill
// a vector is in a buffer, padded. Alternatively all numbers are in a buffer, which then serves as
// both.
template <class T>
struct Numbers {
  T *stored, *buffer;
  int64_t whole;  // steps in `stored`

  T* at(int64_t step, int64_t place) const { return (step < whole ? stored : buffer) + place; }
  // A prefetch may be of any address, valid or not.
  LOSSOPS_FN void prefetch(int64_t place) const { __builtin_prefetch(stored + place); }
};

// Memory that will be read soon.
struct Ahead {
  const char* data;
  int64_t bytes;  // per number

  LOSSOPS_FN void prefetch(int64_t i) const { __builtin_prefetch(data + i * bytes); }
};

// The rows [first, first + lanes) of a problem.
template <class T, bool across>
class Tile {
 public:
  using V = Simd<T>;
  static constexpr int64_t width = V::width;
  static constexpr int kMostVectors = across ? 1 : kMostLanes / width;  // of lanes

  Tile(const SoftmaxProblem& problem, int64_t stride)
      : problem_(problem), stride_(across ? 1 : stride) {}

  void move_to(int64_t first, int64_t lanes) {
    lanes_ = lanes;
    // By counting, because a division per row would take longer than a short row.
    int64_t outer = first / problem_.inner, inner = first % problem_.inner;
    int64_t group = first / problem_.group_size, in_group = first % problem_.group_size;
    for (int64_t l = 0; l < lanes; ++l) {
      outer_[l] = outer;
      inner_[l] = inner;
      group_[l] = group;
      if (++inner == problem_.inner) inner = 0, ++outer;
      if (++in_group == problem_.group_size) in_group = 0, ++group;
    }
  }

  int64_t lanes() const { return lanes_; }
  int64_t stride() const { return stride_; }

  // Adds one number per row to the sums of the groups; sums[0] belongs to `first_group`.
  void add_to_groups(const double* values, int64_t first_group, double* sums) const {
    if (group_[0] != group_[lanes_ - 1]) {
      for (int64_t l = 0; l < lanes_; ++l) sums[group_[l] - first_group] += values[l];
      return;
    }
    double of_four[4] = {};  // a single sum would wait for itself at every addition
    for (int64_t l = 0; l < lanes_; ++l) of_four[l % 4] += values[l];
    sums[group_[0] - first_group] += (of_four[0] + of_four[1]) + (of_four[2] + of_four[3]);
  }

  // The number of vectors of lanes: one, in which every element stands for the row, or as many as
  // the lanes fill.
  int64_t vectors() const { return across ? 1 : stride_ / width; }
  // at(): where a vector of lanes has its i-th numbers in a block. steps(): how many there are in a
  // block of n classes.
  int64_t at(int64_t vector, int64_t i) const {
    return across ? i * width : i * stride_ + vector * width;
  }
  static int64_t steps(int64_t n) { return across ? (n + width - 1) / width : n; }
  static int64_t padded(int64_t n) { return across ? (n + width - 1) / width * width : n; }
  static int64_t block() { return across ? kRowBlock : kLaneBlock; }
  int64_t blocks() const { return (problem_.classes + block() - 1) / block(); }
  int64_t in_block(int64_t b) const { return std::min(block(), problem_.classes - b * block()); }
  int64_t steps_in(int64_t b) const { return steps(in_block(b)); }
  static int64_t first_class(int64_t b) { return b * block(); }
  int64_t start(int64_t b) const { return first_class(b) * stride_; }  // of a block in the tile
  int64_t numbers() const { return padded(problem_.classes) * stride_; }

  // One number per lane, as a vector.
  static V lane(const T* numbers, int64_t vector) {
    return across ? V(static_cast<double>(numbers[0])) : V::load(numbers + vector * width);
  }
  static void put(V value, T* numbers, int64_t vector) {
    if constexpr (across) {
      alignas(64) T all[width];
      value.store(all);
      numbers[0] = all[0];
    } else {
      value.store(numbers + vector * width);
    }
  }

  // The sum or the maximum of a row's numbers, in every element that stands for the row. The
  // maximum may lose a NaN.
  static V sum(V value) {
    return reduce(value, [](auto a, auto b) { return a + b; });
  }
  static V largest(V value) {
    const auto of_two = [](auto a, auto b) {
      if constexpr (std::is_same_v<decltype(a), T>) {
        return a > b ? a : b;
      } else {
        return larger(a, b);
      }
    };
    return reduce(value, of_two);
  }

  // The memory that is read after class `c` of a row: the rest of it, or the next row. For a
  // prefetch, so any address is allowed.
  Ahead ahead(const RowsOperand& operand, int64_t c) const {
    Ahead result;
    with_dtype(operand.dtype, [&]<class S>(S*) {
      result = {static_cast<const char*>(operand.data) + (offset(operand, 0) + c) * sizeof(S),
                sizeof(S)};
    });
    return result;
  }

  // The locations of the n numbers of an operand starting at class `c`. All are in `buffer` if they
  // are not wanted or not stored in the form in which they are computed.
  Numbers<T> places(const RowsOperand& operand, int64_t c, int64_t n, T* buffer) const {
    if (!across || !operand.defined() || operand.dtype != dtype_of<T> ||
        operand.class_stride != 1) {
      return {buffer, buffer, steps(n)};
    }
    return {static_cast<T*>(operand.data) + offset(operand, 0) + c, buffer, n / width};
  }

  // Like places(), but also reads the numbers and pads them with `pad`.
  Numbers<T> read(const RowsOperand& operand, int64_t c, int64_t n, T* buffer, T pad) const {
    const Numbers<T> numbers = places(operand, c, n, buffer);
    if (numbers.stored == buffer) {
      load(operand, c, n, buffer, pad);
    } else if (const int64_t read = numbers.whole * width; read < n) {
      std::copy(numbers.stored + read, numbers.stored + n, buffer + read);
      pad_block(n, buffer, pad);
    }
    return numbers;
  }
  void write_rest(const Numbers<T>& numbers, int64_t n) const {
    if (numbers.stored == numbers.buffer) return;
    const int64_t written = numbers.whole * width;
    std::copy(numbers.buffer + written, numbers.buffer + n, numbers.stored + written);
  }

  void load(const RowsOperand& operand, int64_t c, int64_t n, T* buffer, T pad) const {
    with_dtype(operand.dtype, [&]<class S>(S*) {
      const S* data = static_cast<const S*>(operand.data) + c * operand.class_stride;
      each_line(operand, n, [&](Line from, Line to, int64_t count) {
        if (from.step == 1 && to.step == 1) {
          const S* const start = data + from.start;
          // The next tile is read in as many pieces, more than the hardware prefetches by itself.
          for (int64_t i = 0; !across && i < count; i += 64 / int64_t(sizeof(S))) {
            __builtin_prefetch(start + count + i);
          }
          return convert(start, buffer + to.start, count);
        }
        for (int64_t i = 0; i < count; ++i) {
          buffer[to.start + i * to.step] = static_cast<T>(data[from.start + i * from.step]);
        }
      });
    });
    pad_block(n, buffer, pad);
  }

  void store(const RowsOperand& operand, int64_t c, int64_t n, const T* buffer) const {
    with_dtype(operand.dtype, [&]<class S>(S*) {
      S* data = static_cast<S*>(operand.data) + c * operand.class_stride;
      each_line(operand, n, [&](Line to, Line from, int64_t count) {
        if (from.step == 1 && to.step == 1) {
          return convert(buffer + from.start, data + to.start, count);
        }
        for (int64_t i = 0; i < count; ++i) {
          data[to.start + i * to.step] = static_cast<S>(buffer[from.start + i * from.step]);
        }
      });
    });
  }

  void pad_block(int64_t n, T* buffer, T pad) const {
    if constexpr (across) {
      std::fill(buffer + n, buffer + padded(n), pad);
    } else if (lanes_ < stride_) {
      for (int64_t c = 0; c < n; ++c) {
        std::fill(buffer + c * stride_ + lanes_, buffer + (c + 1) * stride_, T(0));
      }
    }
  }

  T number(const RowsOperand& operand, int64_t lane, int64_t c) const {
    T result{};
    with_dtype(operand.dtype, [&]<class S>(S*) {
      const auto* data = static_cast<const S*>(operand.data);
      result = static_cast<T>(data[offset(operand, lane) + c * operand.class_stride]);
    });
    return result;
  }

  void read_labels(int64_t* out) const {
    const RowLabels& labels = problem_.labels;
    const auto copy = [&](const auto* data) {
      for (int64_t l = 0; l < lanes_; ++l) out[l] = data[offset(labels, l)];
    };
    if (labels.bytes == 8) return copy(static_cast<const int64_t*>(labels.data));
    if (labels.bytes == 4) return copy(static_cast<const int32_t*>(labels.data));
    copy(static_cast<const uint8_t*>(labels.data));
  }

  double class_weight(int64_t c) const {
    double weight = 1;
    if (!problem_.class_weight.defined()) return weight;
    with_dtype(problem_.class_weight.dtype, [&]<class S>(S*) {
      weight =
          static_cast<const S*>(problem_.class_weight.data)[c * problem_.class_weight.stride[0]];
    });
    return weight;
  }

  // Reads one number per row; `absent` if there are none.
  void read(const RowNumbers& numbers, T absent, T* out) const {
    std::fill_n(out, stride_, absent);
    if (!numbers.defined()) return;
    with_dtype(numbers.dtype, [&]<class S>(S*) {
      const auto* data = static_cast<const S*>(numbers.data);
      for (int64_t l = 0; l < lanes_; ++l) out[l] = static_cast<T>(data[offset(numbers, l)]);
    });
  }
  template <class U>
  void write(const RowNumbers& numbers, const U* from) const {
    if (!numbers.defined()) return;
    with_dtype(numbers.dtype, [&]<class S>(S*) {
      auto* data = static_cast<S*>(numbers.data);
      for (int64_t l = 0; l < lanes_; ++l) data[offset(numbers, l)] = static_cast<S>(from[l]);
    });
  }

  // The reduction's factor divided by the normalizer.
  template <class Out>
  void read_scale(Out* out) const {
    const Operand& normalizer = problem_.normalizer;
    std::fill_n(out, stride_, static_cast<Out>(problem_.scale));
    if (!normalizer.defined()) return;
    with_dtype(normalizer.dtype, [&]<class S>(S*) {
      const auto* data = static_cast<const S*>(normalizer.data);
      const auto scale = [&](int64_t group) {
        const auto number = static_cast<double>(data[group * problem_.normalizer_stride]);
        return static_cast<Out>(problem_.scale / number);
      };
      if (group_[0] == group_[lanes_ - 1]) {
        std::fill_n(out, stride_, scale(group_[0]));
      } else {
        for (int64_t l = 0; l < lanes_; ++l) out[l] = scale(group_[l]);
      }
    });
  }

 private:
  template <class O>
  int64_t offset(const O& operand, int64_t lane) const {
    return outer_[lane] * operand.outer_stride + inner_[lane] * operand.inner_stride;
  }

  template <class F>
  static V reduce(V value, const F& f) {
    if constexpr (!across) {
      return value;
    } else if constexpr (std::is_same_v<T, float>) {
      const auto of_vectors = [&](auto a, auto b) { return f(V(a), V(b)).v; };
      return V(static_cast<double>(at::vec::vec_reduce_all<T>(of_vectors, value.v)));
    } else {
      alignas(64) T all[width];
      value.store(all);
      for (int64_t n = width / 2; n > 0; n /= 2) {
        for (int64_t i = 0; i < n; ++i) all[i] = f(all[i], all[i + n]);
      }
      return V(static_cast<double>(all[0]));
    }
  }

  struct Line {
    int64_t start, step;
  };

  // Walks a block along whatever is contiguous in memory: calls f(line in the operand, line in the
  // block, count).
  template <class F>
  void each_line(const RowsOperand& operand, int64_t n, const F& f) const {
    const int64_t first = offset(operand, 0), by_class = operand.class_stride;
    if constexpr (across) {
      f(Line{first, by_class}, Line{0, 1}, n);
    } else if (operand.inner_stride == 1 && outer_[0] == outer_[lanes_ - 1]) {
      for (int64_t c = 0; c < n; ++c)
        f(Line{first + c * by_class, 1}, Line{c * stride_, 1}, lanes_);
    } else {
      for (int64_t l = 0; l < lanes_; ++l) {
        f(Line{offset(operand, l), by_class}, Line{l, stride_}, n);
      }
    }
  }

  const SoftmaxProblem& problem_;
  const int64_t stride_;
  int64_t lanes_ = 0;
  int64_t outer_[kMostLanes], inner_[kMostLanes], group_[kMostLanes];
};

}  // namespace CPU_CAPABILITY
}  // namespace lossops
