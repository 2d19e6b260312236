// The numbers of a row in vectors of 16 bytes, for rows with contiguous classes. The vectors are
// aligned to 16 bytes wherever the row begins. The first and last vector may be partial; they are
// then accessed one number at a time. The classes here are Cells as described in cells.cuh.
#pragma once

#include "cuda/softmax/row.cuh"

namespace lossops::cuda {

// One tensor's part of a row.
template <class S>
class PackRow {
 public:
  static constexpr int N = 16 / sizeof(S);
  using Numbers = Pack<S, N>;

  // `shift`: how far the input's row begins behind a 16-byte boundary, in elements. If the row of a
  // tensor has another shift, it is not accessed in vectors.
  __device__ __forceinline__ PackRow(S* first, int classes, int shift)
      : first_(first), classes_(classes), vectors_(shift_of(first) == shift) {}
  __device__ __forceinline__ static int shift_of(const S* p) {
    return static_cast<int>(reinterpret_cast<uintptr_t>(p) % 16 / sizeof(S));
  }

  // The vector of the classes starting at c.
  __device__ __forceinline__ Numbers load(int c, S beyond) const {
    if (vectors_ && c >= 0 && c + N <= classes_) return Numbers::load(first_ + c);
    S numbers[N];
#pragma unroll
    for (int v = 0; v < N; ++v) {
      numbers[v] = beyond;
      if (c + v >= 0 && c + v < classes_) numbers[v] = first_[c + v];
    }
    Numbers pack;
    memcpy(&pack.word, numbers, sizeof(pack.word));
    return pack;
  }
  template <class T>
  __device__ __forceinline__ void store(int c, const T (&numbers)[N]) const {
    if (vectors_ && c >= 0 && c + N <= classes_) return Numbers::of(numbers).store(first_ + c);
#pragma unroll
    for (int v = 0; v < N; ++v) {
      if (c + v >= 0 && c + v < classes_) first_[c + v] = narrow<S>(numbers[v]);
    }
  }
  __device__ __forceinline__ S at(int64_t c) const { return first_[c]; }
  __device__ __forceinline__ S* data() const { return first_; }

 private:
  S* first_;
  int classes_;
  bool vectors_;
};

// A row of the input and, if the target is a distribution, a row of the target.
template <class S, bool has_target>
class PackCells {
 public:
  static constexpr int N = 16 / sizeof(S);
  static constexpr bool kHasTarget = has_target;
  using T = Compute<S>;

 protected:
  using Numbers = Pack<S, N>;

  template <class Team>
  __device__ __forceinline__ PackCells(const SoftmaxProblem& p, const Team& team, const Row<T>& row)
      : classes_(static_cast<int>(p.classes)),
        shift_(PackRow<S>::shift_of(begin(p.input, row))),
        packs_((classes_ + shift_ + N - 1) / N),
        first_(team.index()),
        width_(team.width()),
        input_(begin(p.input, row), classes_, shift_),
        target_(begin(p.target, row), classes_, shift_),
        grad_input_(begin(p.grad_input, row), classes_, shift_),
        grad_target_(begin(p.grad_target, row), classes_, shift_),
        writes_input_(p.grad_input.defined()),
        writes_target_(p.grad_target.defined()),
        beyond_target_(narrow<S>(p.target_form == Form::probs ? T(0) : -T(kInfinity))) {}

 public:
  __device__ __forceinline__ T input_at(int64_t c) const { return widen<T>(input_.at(c)); }
  template <class F>
  __device__ __forceinline__ void fill(const F& f) const {
    const T nothing[N] = {};
    for (int k = first_; k < packs_; k += width_) store(f, k, nothing, nothing);
  }
  __device__ __forceinline__ void clear() const {
    fill([](int, const T(&)[N], const T(&)[N], T(&)[N], T(&)[N]) {});
  }

 protected:
  __device__ __forceinline__ static S* begin(const RowsOperand& operand, const Row<T>& row) {
    return static_cast<S*>(operand.data) + row.in(operand);
  }
  __device__ __forceinline__ int class_of(int k) const { return k * N - shift_; }
  __device__ __forceinline__ Numbers input(int k) const {
    return input_.load(class_of(k), narrow<S>(-T(kInfinity)));
  }
  __device__ __forceinline__ Numbers target(int k) const {
    if constexpr (has_target) return target_.load(class_of(k), beyond_target_);
    return {};
  }
  template <class F>
  __device__ __forceinline__ void show(const F& f, int k, const Numbers& input,
                                       const Numbers& target) const {
    T x[N], t[N] = {};
    input.unpack(x);
    if constexpr (has_target) target.unpack(t);
    f(class_of(k), x, t);
  }
  template <class F>
  __device__ __forceinline__ void store(const F& f, int k, const T (&x)[N], const T (&t)[N]) const {
    T dx[N] = {}, dt[N] = {};
    f(class_of(k), x, t, dx, dt);
    if (writes_input_) grad_input_.store(class_of(k), dx);
    if constexpr (has_target) {
      if (writes_target_) grad_target_.store(class_of(k), dt);
    }
  }
  template <class F>
  __device__ __forceinline__ void store(const F& f, int k, const Numbers& input,
                                        const Numbers& target) const {
    T x[N], t[N] = {};
    input.unpack(x);
    if constexpr (has_target) target.unpack(t);
    store(f, k, x, t);
  }

  const int classes_, shift_, packs_, first_, width_;
  const PackRow<S> input_, target_, grad_input_, grad_target_;
  const bool writes_input_, writes_target_;
  const S beyond_target_;
};

// Held in registers: at most K vectors per thread.
template <class S, bool has_target, int K>
class RegisterCells : public PackCells<S, has_target> {
  using Base = PackCells<S, has_target>;
  using typename Base::Numbers;

 public:
  using typename Base::T;

  template <class Team>
  __device__ __forceinline__ RegisterCells(const SoftmaxProblem& p, const Team& team,
                                           const Row<T>& row)
      : Base(p, team, row) {}

  template <class F>
  __device__ __forceinline__ void load(const F& f) {
#pragma unroll
    for (int i = 0; i < K; ++i) {
      const int k = this->first_ + i * this->width_;
      if (k >= this->packs_) continue;
      x_[i] = this->input(k);
      if constexpr (has_target) t_[i] = this->target(k);
    }
    each(f);
  }
  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
#pragma unroll
    for (int i = 0; i < K; ++i) {
      const int k = this->first_ + i * this->width_;
      if (k < this->packs_) this->show(f, k, x_[i], t_[has_target ? i : 0]);
    }
  }
  template <class F>
  __device__ __forceinline__ void write(const F& f) const {
#pragma unroll
    for (int i = 0; i < K; ++i) {
      const int k = this->first_ + i * this->width_;
      if (k < this->packs_) this->store(f, k, x_[i], t_[has_target ? i : 0]);
    }
  }

 private:
  Numbers x_[K], t_[has_target ? K : 1];
};

// Held in shared memory, as many as there is room for; the rest is read again.
template <class S, bool has_target>
class SharedCells : public PackCells<S, has_target> {
  using Base = PackCells<S, has_target>;
  using typename Base::Numbers;

 public:
  using Base::N;
  using typename Base::T;

  template <class Team>
  __device__ __forceinline__ SharedCells(const SoftmaxProblem& p, const RowSchedule& schedule,
                                         const Team& team, const Row<T>& row, void* memory)
      : Base(p, team, row),
        kept_(schedule.kept),
        x_(static_cast<Numbers*>(memory) + threadIdx.x),
        t_(x_ + (has_target ? kept_ * static_cast<int>(blockDim.x) : 0)) {}

  template <class F>
  __device__ __forceinline__ void load(const F& f) {
    const int width = this->width_, packs = this->packs_;
    for (int k = this->first_, i = 0; k < packs; k += kUnder * width, i += kUnder) {
      Numbers x[kUnder], t[has_target ? kUnder : 1];
#pragma unroll
      for (int u = 0; u < kUnder; ++u) {
        if (k + u * width >= packs) continue;
        x[u] = this->input(k + u * width);
        if constexpr (has_target) t[u] = this->target(k + u * width);
      }
#pragma unroll
      for (int u = 0; u < kUnder; ++u) {
        if (k + u * width >= packs) continue;
        if (i + u < kept_) keep(i + u, x[u], t[has_target ? u : 0]);
        this->show(f, k + u * width, x[u], t[has_target ? u : 0]);
      }
    }
  }
  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
    walk([&](int k, const Numbers& x, const Numbers& t) { this->show(f, k, x, t); });
  }
  template <class F>
  __device__ __forceinline__ void write(const F& f) const {
    walk([&](int k, const Numbers& x, const Numbers& t) { this->store(f, k, x, t); });
  }

 private:
  static constexpr int kUnder = has_target ? 2 : 4;  // vectors of each tensor in flight per thread

  __device__ __forceinline__ void keep(int i, const Numbers& x, const Numbers& t) {
    x_[i * blockDim.x] = x;
    if constexpr (has_target) t_[i * blockDim.x] = t;
  }
  template <class F>
  __device__ __forceinline__ void walk(const F& f) const {
    for (int k = this->first_, i = 0; k < this->packs_; k += this->width_, ++i) {
      Numbers x, t{};
      if (i < kept_) {
        x = x_[i * blockDim.x];
        if constexpr (has_target) t = t_[i * blockDim.x];
      } else {
        x = this->input(k);
        if constexpr (has_target) t = this->target(k);
      }
      f(k, x, t);
    }
  }

  const int kept_;
  Numbers *const x_, *const t_;
};

}  // namespace lossops::cuda
