// The elementwise losses: a number for every pair (input, target). This is the whole mathematics
// of the family, written once for scalars (CUDA) and SIMD vectors (CPU).
//
// A loss is a struct with a name, the number of its parameters, and
//   at<order>(x, y, params): its value and its derivatives up to `order` (0, 1 or 2).
// Joint evaluation lets the derivatives share the value's transcendental functions.
#pragma once

#include "losses/math.h"

namespace lossops {

constexpr int kMaxParams = 2;

// A function of two variables and its derivatives: x is the input, y the target.
template <class T>
struct Jet {
  T value, dx, dy, dxx, dxy, dyy;
};

// A function of the one variable d = x - y and its derivatives.
template <class T>
struct DifferenceJet {
  T value, first, second;
};

// Makes a loss of x and y out of a loss of their difference.
template <class F>
struct OfDifference {
  static constexpr const char* name = F::name;
  static constexpr int num_params = F::num_params;

  template <int order, class T>
  LOSSOPS_FN static Jet<T> at(T x, T y, const T* params) {
    const DifferenceJet<T> f = F::template at<order>(x - y, params);
    return {f.value, f.first, -f.first, f.second, -f.second, f.second};
  }
};

struct Mse {
  static constexpr const char* name = "mse";
  static constexpr int num_params = 0;

  template <int order, class T>
  LOSSOPS_FN static DifferenceJet<T> at(T d, const T*) {
    return {d * d, d + d, T(2)};
  }
};

struct L1 {
  static constexpr const char* name = "l1";
  static constexpr int num_params = 0;

  // The derivative at 0 (and at NaN) is 0, as torch.sign has it.
  template <int order, class T>
  LOSSOPS_FN static DifferenceJet<T> at(T d, const T*) {
    const T sign = select(d > T(0), T(1), select(d < T(0), T(-1), T(0)));
    return {abs(d), sign, T(0)};
  }
};

// Both Huber-like losses test for `outside`, not `inside`, so that NaN takes the quadratic branch
// and comes out as NaN in every derivative.
struct SmoothL1 {
  static constexpr const char* name = "smooth_l1";
  static constexpr int num_params = 1;  // beta >= 0

  template <int order, class T>
  LOSSOPS_FN static DifferenceJet<T> at(T d, const T* params) {
    const T beta = params[0];
    const T z = abs(d);
    const auto outside = z >= beta;
    DifferenceJet<T> f{};
    // z / beta first: z * z would overflow for a large beta and underflow for a small one. Where
    // the other branch is taken, beta = 0 makes these quotients NaN or infinite, unused.
    const T ratio = z / beta;
    f.value = select(outside, z - T(0.5) * beta, T(0.5) * z * ratio);
    if constexpr (order >= 1) {
      const T sign = select(d > T(0), T(1), select(d < T(0), T(-1), T(0)));
      f.first = select(outside, sign, copysign(ratio, d));
    }
    if constexpr (order >= 2) {
      f.second = select(outside, T(0), T(1) / beta);
    }
    return f;
  }
};

struct Huber {
  static constexpr const char* name = "huber";
  static constexpr int num_params = 1;  // delta > 0

  template <int order, class T>
  LOSSOPS_FN static DifferenceJet<T> at(T d, const T* params) {
    const T delta = params[0];
    const T z = abs(d);
    const auto outside = z >= delta;
    DifferenceJet<T> f{};
    // At z = delta both are the same, except for infinities, where only the second is a number.
    f.value = select(z > delta, delta * (z - T(0.5) * delta), T(0.5) * d * d);
    if constexpr (order >= 1) {
      f.first = select(outside, copysign(delta, d), d);
    }
    if constexpr (order >= 2) {
      f.second = select(outside, T(0), T(1));
    }
    return f;
  }
};

struct LogCosh {
  static constexpr const char* name = "log_cosh";
  static constexpr int num_params = 0;

  // With a = |d|:
  //   near 0, log(cosh(a)) = log1p(cosh(a) - 1), the argument by its series: no cancellation, where
  //   |d| + softplus(-2|d|) - log 2 loses every digit;
  //   far from it, log(cosh(a)) = a - log 2 + log1p(exp(-2a)), which cannot overflow.
  // Selecting the argument first leaves one log1p, of at most 1/2.
  template <int order, class T>
  LOSSOPS_FN static DifferenceJet<T> at(T d, const T*) {
    const T a = abs(d);
    const T v = expm1(T(-2) * a);
    const T e2 = T(1) + v;          // exp(-2a)
    const auto near = a < T(0.96);  // cosh(0.96) - 1 is just below 1/2
    const T tail = log1p_upto_half(select(near, cosh_minus_one(a * a), e2));
    DifferenceJet<T> f{};
    f.value = select(near, tail, a - T(0.693147180559945309417232121458) + tail);
    if constexpr (order >= 1) {
      f.first = copysign(v / (T(2) + v), d);  // tanh(d), two roundings after that of v
    }
    if constexpr (order >= 2) {
      const T decay = exp(-a);  // without the rounding of 1 + v: sech has no other term
      const T sech = (decay + decay) / (T(1) + decay * decay);
      f.second = sech * sech;
    }
    return f;
  }

  // cosh(a) - 1 = a^2/2! + a^4/4! + ..., as a function of a^2 < 1, to the precision of float64.
  template <class T>
  LOSSOPS_FN static T cosh_minus_one(T a2) {
    T sum = T(1.0 / 6402373705728000);            // 18!
    sum = fma(sum, a2, T(1.0 / 20922789888000));  // 16!
    sum = fma(sum, a2, T(1.0 / 87178291200));
    sum = fma(sum, a2, T(1.0 / 479001600));
    sum = fma(sum, a2, T(1.0 / 3628800));
    sum = fma(sum, a2, T(1.0 / 40320));
    sum = fma(sum, a2, T(1.0 / 720));
    sum = fma(sum, a2, T(1.0 / 24));
    return a2 * fma(sum, a2, T(0.5));
  }
};

// The pinball loss: (1 - q) d above the target, -q d below it. Its minimiser is the q-th quantile.
struct Quantile {
  static constexpr const char* name = "quantile";
  static constexpr int num_params =
      2;  // 1 - q and q: in float32, the one from the other loses digits

  template <int order, class T>
  LOSSOPS_FN static DifferenceJet<T> at(T d, const T* params) {
    const T slope = select(d > T(0), params[0], select(d < T(0), -params[1], T(0)));
    return {slope * d, slope, T(0)};  // NaN has slope 0, and value 0 * NaN
  }
};

// The list. An engine compiles each of its kernels once per entry; the position is the loss's id.
template <class... Losses>
struct LossList {};

using ElementwiseLosses =
    LossList<OfDifference<Mse>, OfDifference<L1>, OfDifference<SmoothL1>, OfDifference<Huber>,
             OfDifference<LogCosh>, OfDifference<Quantile>>;

template <class... Losses>
constexpr int size(LossList<Losses...>) {
  return sizeof...(Losses);
}

// Calls f.operator()<Loss>() for the id-th loss of the list.
template <class... Losses, class F>
void visit(LossList<Losses...>, int id, F&& f) {
  int i = 0;
  (void)((i++ == id ? (f.template operator()<Losses>(), true) : false) || ...);
}

}  // namespace lossops
