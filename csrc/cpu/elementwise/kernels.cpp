// The elementwise kernels. Compiled once per instruction set.
#include <array>
#include <cmath>
#include <type_traits>

#include "cpu/common/simd.h"
#include "cpu/elementwise/kernels.h"
#include "cpu/elementwise/operands.h"
#include "losses/elementwise.h"

namespace lossops {
inline namespace CPU_CAPABILITY {
namespace {

// A full vector of elements, or the tail at the end of a block.
struct Whole {};
struct Part {
  int64_t count;
};

template <class T>
LOSSOPS_FN Simd<T> load(const T* p, int64_t i, Whole) {
  return Simd<T>::load(p + i);
}
template <class T>
LOSSOPS_FN Simd<T> load(const T* p, int64_t i, Part part) {
  return at::vec::Vectorized<T>::loadu(p + i, part.count);
}

template <class T>
LOSSOPS_FN void store(Simd<T> value, T* p, int64_t i, Whole) {
  value.store(p + i);
}
template <class T>
LOSSOPS_FN void store(Simd<T> value, T* p, int64_t i, Part part) {
  value.v.store(p + i, part.count);
}

// The sum of the lanes, in an order that does not depend on the compiler.
template <class T>
inline double sum_of_lanes(const Simd<T>& value, int64_t count = Simd<T>::width) {
  alignas(64) T lanes[Simd<T>::width];
  value.store(lanes);
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += lanes[i];
  return sum;
}

// Sums vectors without an error that grows with their number, even if all additions round the same
// way, as with equal values. float32 adds two vectors at a time and accumulates in float64; float64
// keeps the rounding error of each addition (Knuth's two-sum).
template <class T>
class Sum;

template <>
class Sum<float> {
 public:
  LOSSOPS_FN void add(Simd<float> value) {
    const auto halves = at::vec::convert<double, 2, float, 1>(value.v);
    low_ = low_ + halves[0];
    high_ = high_ + halves[1];
  }
  double total() const { return sum_of_lanes(Simd<double>(low_ + high_)); }

 private:
  at::vec::Vectorized<double> low_{0.0}, high_{0.0};
};

template <>
class Sum<double> {
 public:
  LOSSOPS_FN void add(Simd<double> value) {
    const Simd<double> sum = sum_ + value, rest = sum - sum_;
    lost_ = lost_ + ((sum_ - (sum - rest)) + (value - rest));
    sum_ = sum;
  }
  double total() const {
    // If the sum is infinite or NaN, `lost` is infinity minus infinity.
    const double sum = sum_of_lanes(sum_), lost = sum_of_lanes(lost_);
    return std::isfinite(sum) ? sum + lost : sum;
  }

 private:
  Simd<double> sum_, lost_;
};

// Calls f(i, Whole or Part) over [0, n) and sums the results. The padding of the last vector is not
// part of the sum. Every call is a copy of the loss, so a vector that has no partner in float32 is
// a Part too.
template <class T, class F>
LOSSOPS_FN double for_each_vector(int64_t n, const F& f) {
  constexpr int width = Simd<T>::width;
  Sum<T> sum;
  int64_t i = 0;
  if constexpr (sizeof(T) < sizeof(double)) {
    for (; i + 2 * width <= n; i += 2 * width) sum.add(f(i, Whole{}) + f(i + width, Whole{}));
  } else {
    for (; i + width <= n; i += width) sum.add(f(i, Whole{}));
  }
  double tail = 0;
  for (; i < n; i += width) {
    const int64_t count = std::min<int64_t>(width, n - i);
    const Simd<T> last = f(i, Part{count});
    if (count == width) {
      sum.add(last);
    } else {
      tail = sum_of_lanes(last, count);
    }
  }
  return sum.total() + tail;
}

// Pairwise summation over runs of up to 64 values.
template <class T>
inline double sum_of(const T* values, int64_t n) {
  if (n > 64) return sum_of(values, n / 2) + sum_of(values + n / 2, n - n / 2);
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int lane = 0; lane < 8; ++lane) sums[lane] += values[i + lane];
  }
  for (int lane = 0; i < n; ++i, ++lane) sums[lane] += values[i];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// How a range is cut into blocks, so that the sum of a group does not depend on the range in which
// it is computed. A group longer than a block is walked by itself, from its start. Shorter groups
// are walked several at a time and are never cut.
class Groups {
 public:
  explicit Groups(const ElementwiseProblem& problem)
      : reduces_(problem.reduced.defined()),
        size_(problem.group_size),
        long_(!reduces_ || size_ > kBlock) {}

  // Whether a range is part of one group, or nothing is reduced.
  bool one() const { return long_; }
  int64_t block() const { return long_ ? kBlock : kBlock / size_ * size_; }

  // Calls f(begin, end, sums) for the parts of a range that can be walked in one go.
  template <class F>
  void for_each_part(int64_t begin, int64_t end, double* sums, const F& f) const {
    if (!reduces_ || !long_) return f(begin, end, sums);
    for (int64_t at = begin; at < end; ++sums) {
      const int64_t stop = std::min(end, (at / size_ + 1) * size_);
      f(at, stop, sums);
      at = stop;
    }
  }

  // Writes the sums of the whole groups in a block. Returns where the next ones go.
  template <class T>
  double* sum(const T* values, int64_t n, double* sums) const {
    for (int64_t i = 0; i < n; i += size_) *sums++ = sum_of(values + i, size_);
    return sums;
  }

 private:
  const bool reduces_;
  const int64_t size_;
  const bool long_;
};

template <class T>
std::array<Simd<T>, kMaxParams> broadcast_params(const ElementwiseProblem& problem) {
  std::array<Simd<T>, kMaxParams> params;
  for (int i = 0; i < kMaxParams; ++i) params[i] = Simd<T>(problem.params[i]);
  return params;
}

// The reduction's factor divided by the normalizer, if one number serves all groups.
inline double scale_of(const ElementwiseProblem& problem) {
  double scale = problem.scale;
  if (problem.normalizer.defined()) {
    with_dtype(problem.normalizer.dtype, [&]<class S>(S*) {
      scale /= static_cast<double>(*static_cast<const S*>(problem.normalizer.data));
    });
  }
  return scale;
}

// What a pass computes. The common case is compiled without branches on the others.
enum class Pass {
  sum,  // one number and, from order 1 on, the gradient of input; no weight
  any,
};

template <class Loss, class T, int order, Pass pass>
void forward_range(const ElementwiseProblem& problem, int64_t begin, int64_t end, double* sums) {
  Reader<T> input(problem, problem.input), target(problem, problem.target);
  Reader<T> weight(problem, problem.weight);
  Writer<T> value(problem, problem.value);
  Writer<T> grad_input(problem, problem.grad_input), grad_target(problem, problem.grad_target);
  Writer<T> grad_weight(problem, problem.grad_weight);
  const auto params = broadcast_params<T>(problem);
  const Simd<T> scale(order > 0 ? scale_of(problem) : 1.0);
  const bool reduces = problem.reduced.defined();
  const Groups groups(problem);
  const int64_t block = groups.block();
  double total = 0;
  alignas(64) T values[kBlock];

  for (int64_t at = begin; at < end; at += block) {
    const int64_t n = std::min(block, end - at);
    const T *x = input.read(at, n), *y = target.read(at, n), *w = weight.read(at, n);
    T* out = reduces && !groups.one() ? values : value.buffer(at);
    T *gx = grad_input.buffer(at), *gy = grad_target.buffer(at), *gw = grad_weight.buffer(at);
    if constexpr (pass == Pass::sum) {  // lets the compiler drop these operands
      w = nullptr;
      out = gy = gw = nullptr;
    }
    const double sum = for_each_vector<T>(n, [&](int64_t i, auto extent) LOSSOPS_INLINE_LAMBDA {
      const auto f =
          Loss::template at<order>(load(x, i, extent), load(y, i, extent), params.data());
      const Simd<T> weighted = w ? load(w, i, extent) * f.value : f.value;
      if (out) store(weighted, out, i, extent);
      if constexpr (order >= 1) {
        const Simd<T> factor = w ? load(w, i, extent) * scale : scale;
        if (pass == Pass::sum || gx) store(factor * f.dx, gx, i, extent);
        if (gy) store(factor * f.dy, gy, i, extent);
        if (gw) store(scale * f.value, gw, i, extent);
      }
      return weighted;
    });
    if (!reduces) {
      value.flush(at, n);
    } else if (groups.one()) {
      total += sum;
    } else {
      sums = groups.sum(values, n, sums);
    }
    grad_input.flush(at, n);
    grad_target.flush(at, n);
    grad_weight.flush(at, n);
  }
  if (reduces && groups.one()) *sums = total;
}

// The reduction's factor divided by the normalizer, per element if groups differ.
template <class T>
class Scale {
 public:
  explicit Scale(const ElementwiseProblem& problem)
      : varies_(problem.normalizer.defined() && problem.groups > 1),
        normalizer_(problem, varies_ ? problem.normalizer : Operand{}),
        constant_(static_cast<T>(varies_ ? problem.scale : scale_of(problem))) {
    if (!varies_) std::fill_n(scale_, kBlock, constant_);
  }

  const T* read(int64_t begin, int64_t n) {
    if (!varies_) return scale_;
    const T* normalizer = normalizer_.read(begin, n);
    for (int64_t i = 0; i < n; ++i) scale_[i] = constant_ / normalizer[i];
    return scale_;
  }

 private:
  const bool varies_;
  Reader<T> normalizer_;
  const T constant_;
  alignas(64) T scale_[kBlock];
};

// Multiplies by grad_output last, as when a gradient of the forward pass is rescaled: in float32
// and float64 the two agree to the last bit.
template <class Loss, class T>
void backward_range(const ElementwiseProblem& problem, int64_t begin, int64_t end) {
  Reader<T> input(problem, problem.input), target(problem, problem.target);
  Reader<T> weight(problem, problem.weight);
  Reader<T> grad_output(problem, problem.grad_output);
  Scale<T> scales(problem);
  Writer<T> grad_input(problem, problem.grad_input), grad_target(problem, problem.grad_target);
  Writer<T> grad_weight(problem, problem.grad_weight);
  const auto params = broadcast_params<T>(problem);

  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t n = std::min<int64_t>(kBlock, end - at);
    const T *x = input.read(at, n), *y = target.read(at, n), *w = weight.read(at, n);
    const T *g = grad_output.read(at, n), *scale = scales.read(at, n);
    T *gx = grad_input.buffer(at), *gy = grad_target.buffer(at), *gw = grad_weight.buffer(at);
    for_each_vector<T>(n, [&](int64_t i, auto extent) LOSSOPS_INLINE_LAMBDA {
      const auto f = Loss::template at<1>(load(x, i, extent), load(y, i, extent), params.data());
      const Simd<T> s = load(scale, i, extent), upstream = load(g, i, extent);
      const Simd<T> factor = w ? load(w, i, extent) * s : s;
      if (gx) store(factor * f.dx * upstream, gx, i, extent);
      if (gy) store(factor * f.dy * upstream, gy, i, extent);
      if (gw) store(s * f.value * upstream, gw, i, extent);
      return f.value;
    });
    grad_input.flush(at, n);
    grad_target.flush(at, n);
    grad_weight.flush(at, n);
  }
}

template <class Loss, class T>
void double_backward_range(const ElementwiseProblem& problem, int64_t begin, int64_t end,
                           double* sums) {
  Reader<T> input(problem, problem.input), target(problem, problem.target);
  Reader<T> weight(problem, problem.weight);
  Reader<T> tangent_input(problem, problem.tangent_input);
  Reader<T> tangent_target(problem, problem.tangent_target);
  Reader<T> tangent_weight(problem, problem.tangent_weight);
  Reader<T> grad_output(problem, problem.grad_output);
  Scale<T> scales(problem);
  Writer<T> value(problem, problem.value);
  Writer<T> grad_input(problem, problem.grad_input), grad_target(problem, problem.grad_target);
  Writer<T> grad_weight(problem, problem.grad_weight);
  const auto params = broadcast_params<T>(problem);
  const bool reduces = problem.reduced.defined();
  const Groups groups(problem);
  const int64_t block = groups.block();
  double total = 0;
  alignas(64) T values[kBlock];

  for (int64_t at = begin; at < end; at += block) {
    const int64_t n = std::min(block, end - at);
    const T *x = input.read(at, n), *y = target.read(at, n), *w = weight.read(at, n);
    const T *tx = tangent_input.read(at, n), *ty = tangent_target.read(at, n);
    const T* tw = tangent_weight.read(at, n);
    const T *g = grad_output.read(at, n), *scale = scales.read(at, n);
    T* out = reduces ? values : value.buffer(at);
    T *gx = grad_input.buffer(at), *gy = grad_target.buffer(at), *gw = grad_weight.buffer(at);
    for_each_vector<T>(n, [&](int64_t i, auto extent) LOSSOPS_INLINE_LAMBDA {
      const Simd<T> zero(0.0), one(1.0);
      const auto f = Loss::template at<2>(load(x, i, extent), load(y, i, extent), params.data());
      const Simd<T> a = tx ? load(tx, i, extent) : zero;
      const Simd<T> b = ty ? load(ty, i, extent) : zero;
      const Simd<T> c = tw ? load(tw, i, extent) : zero;
      const Simd<T> weights = w ? load(w, i, extent) : one;
      // If a tangent is absent, an infinite derivative by it gives 0, not NaN.
      const auto part = [&](const T* tangent, Simd<T> by, Simd<T> derivative) {
        return tangent ? by * derivative : zero;
      };
      const auto along_both = [&](Simd<T> dx, Simd<T> dy) {
        return part(tx, a, dx) + part(ty, b, dy);
      };
      const Simd<T> along = along_both(f.dx, f.dy);  // the unweighted loss along (a, b)
      if (out) store(weights * along + part(tw, c, f.value), out, i, extent);
      const Simd<T> factor = g ? load(g, i, extent) * load(scale, i, extent) : one;
      const auto store_gradient = [&](T* grad, Simd<T> by_both, Simd<T> by_c) {
        if (grad) store(factor * (weights * by_both + part(tw, c, by_c)), grad, i, extent);
      };
      store_gradient(gx, along_both(f.dxx, f.dxy), f.dx);
      store_gradient(gy, along_both(f.dxy, f.dyy), f.dy);
      if (gw) store(factor * along, gw, i, extent);
      return along;
    });
    if (!reduces) {
      value.flush(at, n);
    } else if (groups.one()) {
      total += sum_of(values, n);
    } else {
      sums = groups.sum(values, n, sums);
    }
    grad_input.flush(at, n);
    grad_target.flush(at, n);
    grad_weight.flush(at, n);
  }
  if (reduces && groups.one()) *sums = total;
}

// Calls f with the problem's loss and compute type.
template <class F>
void with_loss(const ElementwiseProblem& problem, F&& f) {
  visit(ElementwiseLosses{}, problem.loss, [&]<class Loss>() {
    if (problem.double_precision) {
      f.template operator()<Loss, double>();
    } else {
      f.template operator()<Loss, float>();
    }
  });
}

void forward(const ElementwiseProblem& problem, int64_t begin, int64_t end, double* sums) {
  const bool others = problem.grad_target.defined() || problem.grad_weight.defined();
  const bool gradients = problem.grad_input.defined() || others;
  const Groups groups(problem);
  const bool any =
      problem.weight.defined() || others || !problem.reduced.defined() || !groups.one();
  groups.for_each_part(begin, end, sums, [&](int64_t from, int64_t to, double* out) {
    with_loss(problem, [&]<class Loss, class T>() {
      if (any) {
        if (gradients) return forward_range<Loss, T, 1, Pass::any>(problem, from, to, out);
        return forward_range<Loss, T, 0, Pass::any>(problem, from, to, out);
      }
      if (gradients) return forward_range<Loss, T, 1, Pass::sum>(problem, from, to, out);
      return forward_range<Loss, T, 0, Pass::sum>(problem, from, to, out);
    });
  });
}

void backward(const ElementwiseProblem& problem, int64_t begin, int64_t end) {
  with_loss(problem, [&]<class Loss, class T>() { backward_range<Loss, T>(problem, begin, end); });
}

void double_backward(const ElementwiseProblem& problem, int64_t begin, int64_t end, double* sums) {
  Groups(problem).for_each_part(begin, end, sums, [&](int64_t from, int64_t to, double* out) {
    with_loss(problem, [&]<class Loss, class T>() {
      double_backward_range<Loss, T>(problem, from, to, out);
    });
  });
}

void rescale(void* data, DType dtype, int64_t n, double factor) {
  with_dtype(dtype, [&]<class S>(S*) {
    using T = std::conditional_t<sizeof(S) == 8, double, float>;
    S* values = static_cast<S*>(data);
    alignas(64) T block[kBlock];
    for (int64_t at = 0; at < n; at += kBlock) {
      const int64_t length = std::min<int64_t>(kBlock, n - at);
      convert(values + at, block, length);
      for (int64_t i = 0; i < length; ++i) block[i] *= static_cast<T>(factor);
      convert(block, values + at, length);
    }
  });
}

}  // namespace
}  // namespace CPU_CAPABILITY

namespace cpu {

template <InstructionSet>
const ElementwiseKernels& elementwise_kernels() {
  static constexpr ElementwiseKernels kernels{forward, backward, double_backward, rescale};
  return kernels;
}

template const ElementwiseKernels& elementwise_kernels<InstructionSet::CPU_CAPABILITY>();

}  // namespace cpu
}  // namespace lossops
