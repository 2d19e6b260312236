// Losses of a score or distance x and a signed label y, 1 or -1.
#pragma once

#include "losses/jet.h"
#include "losses/math.h"

namespace lossops {

// The logistic loss log(1 + exp(z)) with z = -x y. With a = |z| and e = exp(-a), it is log1p(e),
// plus z if z is positive.
struct SoftMargin {
  static constexpr const char* name = "soft_margin";
  static constexpr int num_params = 0;

  template <int order, class T>
  LOSSOPS_FN static Jet<T> at(T x, T y, const T*) {
    const T z = -(x * y), e = exp(-abs(z)), tail = log1p_upto_one(e);
    const auto wrong = z > T(0);
    Jet<T> f{};
    f.value = select(wrong, fma(-x, y, tail), tail);
    if constexpr (order >= 1) {
      const T larger = T(1) / (T(1) + e);
      const T sigmoid = select(wrong, larger, e * larger);
      f.dx = -(y * sigmoid);
      f.dy = select(sigmoid == T(0), T(0), -(x * sigmoid));  // 0 even if x is infinite
      if constexpr (order >= 2) {
        const T bend = larger * (larger * e);
        const T along_x = select(bend == T(0), T(0), x * bend);
        f.dxx = y * (y * bend);
        f.dxy = fma(y, along_x, -sigmoid);
        f.dyy = select(bend == T(0), T(0), x * along_x);
      }
    }
    return f;
  }
};

// x if y is 1, max(0, margin - x) if y is -1, and the sum of both for any other label. This and the
// derivative -1 at the margin follow torch. The derivative by the label is 0.
struct HingeEmbedding {
  static constexpr const char* name = "hinge_embedding";
  static constexpr int num_params = 1;  // margin

  template <int order, class T>
  LOSSOPS_FN static Jet<T> at(T x, T y, const T* params) {
    const T zero(0), left = params[0] - x;
    const auto together = y == T(1), apart = y == T(-1);
    Jet<T> f{};
    const T of_both =
        select(together, zero, select(left < zero, zero, left)) + select(apart, zero, x);
    f.value = of_both + y * zero;
    if constexpr (order >= 1) {
      f.dx = select(together, zero, select(left >= zero, T(-1), zero)) + select(apart, zero, T(1));
    }
    return f;
  }
};

// max(0, margin - x y), where x is the difference of two scores. As in torch, the hinge counts as
// active at the margin.
struct MarginRanking {
  static constexpr const char* name = "margin_ranking";
  static constexpr int num_params = 1;  // margin

  template <int order, class T>
  LOSSOPS_FN static Jet<T> at(T x, T y, const T* params) {
    const T zero(0), left = fma(-x, y, params[0]);
    const auto satisfied = left < zero;
    Jet<T> f{};
    f.value = select(satisfied, zero, left);
    if constexpr (order >= 1) {
      f.dx = select(satisfied, zero, -y);
      f.dy = select(satisfied, zero, -x);
    }
    if constexpr (order >= 2) f.dxy = select(satisfied, zero, T(-1));
    return f;
  }
};

}  // namespace lossops
