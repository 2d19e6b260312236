// The vector kernels. Compiled once per instruction set.
#include <algorithm>
#include <cmath>

#include "cpu/common/blocks.h"
#include "cpu/common/labels.h"
#include "cpu/common/simd.h"
#include "cpu/vectors/label_lists.h"
#include "cpu/vectors/rows.h"

namespace lossops {
inline namespace CPU_CAPABILITY {
namespace {

// The rows of one loss, computed in T; S is their type in memory.
template <class Loss, class T, class S>
class VectorRows : RowsInMemory<S> {
 public:
  explicit VectorRows(const VectorsProblem& problem) : RowsInMemory<S>(problem) {}

  void run(int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) run(r);
  }

 private:
  using Base = RowsInMemory<S>;
  using Base::data;
  using Base::problem_;
  using Vector = Simd<T>;
  static constexpr int kVectors = Loss::vectors;

  void run(int64_t r) {
    RowGiven row{0, problem_.length};
    int64_t own = -1;
    if constexpr (kHasIndex<Loss>) {
      own = cpu::read_label(problem_.labels, r, 0);
      if (own < 0 || own >= row.length) return Base::leave_out(r);
    } else {
      row.label = Base::number(problem_.signs, r, 0);
    }
    T constant{};
    if constexpr (requires { Loss::template constant<T>(problem_.params, T()); }) {
      T number(0);
      if constexpr (kHasIndex<Loss>) number = static_cast<T>(data(problem_.vectors[0], r)[own]);
      constant = Loss::template constant<T>(problem_.params, number);
    }
    double sums[Loss::sums] = {};
    if constexpr (kHasIndex<Loss>) {
      add(r, 0, own, constant, sums);
      add(r, own + 1, row.length, constant, sums);
    } else {
      add(r, 0, row.length, constant, sums);
    }
    double factors[Loss::factors];
    const double value = Loss::finish(sums, row, problem_.params, factors);
    Base::write_value(r, value * Base::weight(r));
    bool any = false;
    for (int i = 0; i < kVectors; ++i) any |= problem_.grads[i].defined();
    if (!any) return;
    const double scale = Base::scale(r);
    T scaled[Loss::factors];
    for (int k = 0; k < Loss::factors; ++k) scaled[k] = static_cast<T>(factors[k] * scale);
    differentiate(r, constant, scaled);
    if constexpr (kHasIndex<Loss>) {
      data(problem_.grads[0], r)[own] = static_cast<S>(scaled[Loss::factors - 1]);
    }
  }

  // Calls f(pointers, position, length) for the elements [begin, end) of a row's vectors, block by
  // block.
  template <class F>
  LOSSOPS_FN void each_block(int64_t r, int64_t begin, int64_t end, const F& f) {
    for (; begin < end; begin += kBlock) {
      const int64_t n = std::min<int64_t>(kBlock, end - begin);
      const T* from[kVectors];
      for (int i = 0; i < kVectors; ++i) {
        const S* source = data(problem_.vectors[i], r) + begin;
        if constexpr (std::is_same_v<S, T>) {
          from[i] = source;
        } else {
          convert(source, read_[i], n);
          from[i] = read_[i];
        }
      }
      f(from, begin, n);
    }
  }

  void add(int64_t r, int64_t begin, int64_t end, T constant, double (&sums)[Loss::sums]) {
    each_block(r, begin, end, [&](const T* const* from, int64_t, int64_t n) LOSSOPS_INLINE_LAMBDA {
      constexpr int width = Vector::width, unroll = 2;
      const Vector c{constant};
      Vector lanes[unroll][Loss::sums];
      int64_t i = 0;
      for (; i + unroll * width <= n; i += unroll * width) {
        for (int u = 0; u < unroll; ++u) add_at(from, i + u * width, c, lanes[u]);
      }
      for (; i + width <= n; i += width) add_at(from, i, c, lanes[0]);
      T rest[Loss::sums] = {};
      for (; i < n; ++i) add_at(from, i, constant, rest);
      for (int k = 0; k < Loss::sums; ++k) {
        const auto sum = (lanes[0][k] + lanes[1][k]).v;
        sums[k] += at::vec::vec_reduce_all([](auto a, auto b) { return a + b; }, sum);
        sums[k] += rest[k];
      }
    });
  }

  template <class V>
  LOSSOPS_FN static void add_at(const T* const* from, int64_t i, const V& constant,
                                V (&sums)[Loss::sums]) {
    V x[kVectors];
    load(from, i, x);
    Loss::add(x, constant, sums);
  }

  template <class V>
  LOSSOPS_FN static void load(const T* const* from, int64_t i, V (&x)[kVectors]) {
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (std::is_same_v<V, T>) {
        x[v] = from[v][i];
      } else {
        x[v] = V::load(from[v] + i);
      }
    }
  }

  void differentiate(int64_t r, T constant, const T (&factors)[Loss::factors]) {
    Vector wide[Loss::factors];
    for (int k = 0; k < Loss::factors; ++k) wide[k] = Vector(factors[k]);
    each_block(r, 0, problem_.length,
               [&](const T* const* from, int64_t begin, int64_t n) LOSSOPS_INLINE_LAMBDA {
                 T* to[kVectors];
                 for (int v = 0; v < kVectors; ++v) {
                   to[v] = written_[v];
                   if constexpr (std::is_same_v<S, T>) {
                     if (problem_.grads[v].defined()) to[v] = data(problem_.grads[v], r) + begin;
                   }
                 }
                 const Vector c{constant};
                 int64_t i = 0;
                 for (; i + Vector::width <= n; i += Vector::width) {
                   Vector x[kVectors], grads[kVectors];
                   load(from, i, x);
                   Loss::gradient(x, c, wide, grads);
                   for (int v = 0; v < kVectors; ++v) grads[v].store(to[v] + i);
                 }
                 for (; i < n; ++i) {
                   T x[kVectors], grads[kVectors];
                   load(from, i, x);
                   Loss::gradient(x, constant, factors, grads);
                   for (int v = 0; v < kVectors; ++v) to[v][i] = grads[v];
                 }
                 if constexpr (!std::is_same_v<S, T>) {
                   for (int v = 0; v < kVectors; ++v) {
                     if (!problem_.grads[v].defined()) continue;
                     convert(written_[v], data(problem_.grads[v], r) + begin, n);
                   }
                 }
               });
  }

  alignas(64) T written_[kVectors][kBlock];
  alignas(64) T read_[kVectors][std::is_same_v<S, T> ? 1 : kBlock];
};

void run(const VectorsProblem& problem, int64_t begin, int64_t end) {
  with_dtype(problem.dtype, [&]<class S>(S*) {
    using T = std::conditional_t<sizeof(S) == 8, double, float>;
    visit(VectorLosses{}, problem.loss, [&]<class Loss>() {
      using Rows =
          std::conditional_t<kHasList<Loss>, LabelLists<Loss, T, S>, VectorRows<Loss, T, S>>;
      Rows(problem).run(begin, end);
    });
  });
}

}  // namespace
}  // namespace CPU_CAPABILITY

namespace cpu {

template <InstructionSet>
const VectorsKernels& vectors_kernels() {
  static constexpr VectorsKernels kernels{run};
  return kernels;
}

template const VectorsKernels& vectors_kernels<InstructionSet::CPU_CAPABILITY>();

}  // namespace cpu
}  // namespace lossops
