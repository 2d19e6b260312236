// Negative log-likelihoods.
#pragma once

#include "losses/jet.h"
#include "losses/math.h"

namespace lossops {

// Adds Stirling's approximation of log(y!), y log y - y + log(2 pi y) / 2, if y > 1.
template <int order, class T>
LOSSOPS_FN void add_stirling(T y, Jet<T>& f) {
  constexpr double half_log_2pi = 0.91893853320467274178;
  const auto large = y > T(1);
  const T half(0.5), zero(0), count = select(large, y, T(1)), l = log(count);
  const T approximation = fma(count, l, fma(half, l, T(half_log_2pi) - count));
  f.value = f.value + select(large, approximation, zero);
  if constexpr (order >= 1) {
    const T q = T(1) / count;
    f.dy = f.dy + select(large, fma(half, q, l), zero);
    if constexpr (order >= 2) f.dyy = f.dyy + select(large, fma(-half * q, q, q), zero);
  }
}

// The loss of a count y, where x is the log of its expectation: exp(x) - y x. The term y x is 0
// where y is 0. It is negligible beside an infinite exp(x), unless y is infinite as well, which
// gives NaN.
struct PoissonLog {
  static constexpr const char* name = "poisson_log";
  static constexpr int num_params = 1;  // whether to add the approximation of log(y!)

  template <int order, class T>
  LOSSOPS_FN static Jet<T> at(T x, T y, const T* params) {
    const T e = exp(x);
    Jet<T> f{};
    const T finite = fma(-y, x, e), infinite = fma(-y, T(0), e);
    f.value = select(y == T(0), e, select(e < T(kInfinity), finite, infinite));
    if constexpr (order >= 1) {
      f.dx = select(e < T(kInfinity), e - y, e);
      f.dy = -x;
    }
    if constexpr (order >= 2) {
      f.dxx = e;
      f.dxy = T(-1);
    }
    if (is_on(params[0])) add_stirling<order>(y, f);
    return f;
  }
};

// The same with the expectation itself as x: x - y log(x + epsilon).
struct Poisson {
  static constexpr const char* name = "poisson";
  static constexpr int num_params = 2;  // epsilon; whether to add the approximation of log(y!)

  template <int order, class T>
  LOSSOPS_FN static Jet<T> at(T x, T y, const T* params) {
    const T epsilon = params[0], sum = x + epsilon, added = sum - x;
    const T lost = (x - (sum - added)) + (epsilon - added);  // the rounding error of the sum
    const T rounded = log(sum), l = select(abs(lost) > T(0), rounded + lost / sum, rounded);
    const auto none = y == T(0);
    Jet<T> f{};
    f.value = select(none, select(sum >= T(0), x, l), fma(-y, l, x));
    if constexpr (order >= 1) {
      // Not 1 - y / sum, which cancels where y and sum are close.
      const T slope = select(sum < T(kInfinity), ((x - y) + epsilon) / sum, T(1) - y / sum);
      f.dx = select(none, T(1), slope);
      f.dy = -l;
      if constexpr (order >= 2) {
        const T q = T(1) / sum;
        f.dxx = select(none, T(0), y * q * q);
        f.dxy = -q;
      }
    }
    if (is_on(params[1])) add_stirling<order>(y, f);
    return f;
  }
};

// The loss of a measurement with error x and variance y: (log y + x^2 / y) / 2 plus a constant. As
// in torch, the variance is clamped to at least epsilon, but the derivative by it ignores the
// clamp. A negative variance gives NaN.
struct Gaussian {
  static constexpr const char* name = "gaussian";
  static constexpr int num_params = 2;  // epsilon; the constant

  template <int order, class T>
  LOSSOPS_FN static Jet<T> at(T x, T y, const T* params) {
    const T half(0.5), bounded = select(y < params[0], params[0], y);
    const T variance = select(y < T(0), T(kNaN), bounded);
    const T q = T(1) / variance, r = x / variance;
    Jet<T> f{};
    f.value = fma(half * x, r, fma(half, log(variance), params[1]));
    if constexpr (order >= 1) {
      f.dx = r;
      f.dy = half * fma(-r, r, q);
    }
    if constexpr (order >= 2) {
      f.dxx = q;
      f.dxy = -(r * q);
      f.dyy = fma(r, r, -half * q) * q;
    }
    return f;
  }
};

}  // namespace lossops
