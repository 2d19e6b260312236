// Cells: the numbers of a row as its threads hold them. A thread owns every width-th step along the
// row. It reads a step from global memory once and keeps it if there is room, so that only the
// thread itself ever waits for it.
//
//   load(f), each(f): call f(c, x, t) for all steps; c is the class of x[0] and t[0], of input and
//       target. Beyond the row, a step has a logit of -inf. load must be called first, and once.
//   write(f): calls f(c, x, t, dx, dt), then stores the gradients that are wanted.
//   fill(f): the same, but reads nothing; clear(): the same with gradients of 0.
#pragma once

#include "cuda/softmax/row.cuh"

namespace lossops::cuda {

// Any strides and dtypes, known at run time only; one class per step.
template <class T, bool has_target>
class StridedCells {
 public:
  static constexpr int N = 1;
  static constexpr bool kHasTarget = has_target;

  template <class Team>
  __device__ __forceinline__ StridedCells(const SoftmaxProblem& p, const RowSchedule& schedule,
                                          const Team& team, const Row<T>& row, T* memory)
      : p_(p),
        row_(row),
        first_(team.index()),
        width_(team.width()),
        kept_(schedule.kept),
        memory_(memory) {}

  __device__ __forceinline__ T input_at(int64_t c) const { return at(p_.input, c); }

  template <class F>
  __device__ __forceinline__ void load(const F& f) {
    walk<true>(f);
  }
  template <class F>
  __device__ __forceinline__ void each(const F& f) {
    walk<false>(f);
  }
  template <class F>
  __device__ __forceinline__ void write(const F& f) {
    walk<false>([&](int64_t c, const T(&x)[1], const T(&t)[1]) { store(f, c, x, t); });
  }
  template <class F>
  __device__ __forceinline__ void fill(const F& f) const {
    for (int64_t c = first_; c < p_.classes; c += width_) {
      const T nothing[1] = {};
      store(f, c, nothing, nothing);
    }
  }
  __device__ __forceinline__ void clear() const {
    fill([](int64_t, const T(&)[1], const T(&)[1], T(&)[1], T(&)[1]) {});
  }

 private:
  __device__ __forceinline__ T at(const RowsOperand& operand, int64_t c) const {
    return load_number<T>(operand.data, operand.dtype, row_.in(operand) + c * operand.class_stride);
  }
  __device__ __forceinline__ void store(const RowsOperand& operand, int64_t c, T number) const {
    if (!operand.defined()) return;
    store_number(operand.data, operand.dtype, row_.in(operand) + c * operand.class_stride, number);
  }
  template <class F>
  __device__ __forceinline__ void store(const F& f, int64_t c, const T (&x)[1],
                                        const T (&t)[1]) const {
    T dx[1] = {}, dt[1] = {};
    f(c, x, t, dx, dt);
    store(p_.grad_input, c, dx[0]);
    if constexpr (has_target) store(p_.grad_target, c, dt[0]);
  }
  // A label is a distribution with everything on a single class.
  __device__ __forceinline__ T target_at(int64_t c) const {
    return p_.target.defined() ? at(p_.target, c) : T(c == row_.label ? 1 : 0);
  }

  template <bool first_time, class F>
  __device__ __forceinline__ void walk(const F& f) {
    constexpr int numbers = has_target ? 2 : 1;
    int step = 0;
    for (int64_t c = first_; c < p_.classes; c += width_, ++step) {
      const bool kept = step < kept_;
      T* const here = memory_ + (step * numbers * blockDim.x + threadIdx.x);
      T x[1], t[1] = {};
      if (kept && !first_time) {
        x[0] = here[0];
        if constexpr (has_target) t[0] = here[blockDim.x];
      } else {
        x[0] = at(p_.input, c);
        if constexpr (has_target) t[0] = target_at(c);
      }
      if (kept && first_time) {
        here[0] = x[0];
        if constexpr (has_target) here[blockDim.x] = t[0];
      }
      f(c, x, t);
    }
  }

  const SoftmaxProblem& p_;
  const Row<T>& row_;
  const int first_, width_, kept_;
  T* const memory_;
};

}  // namespace lossops::cuda
