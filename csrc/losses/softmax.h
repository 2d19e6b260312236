// The losses over rows of class scores: the formulas of the softmax family, written once for
// scalars (CUDA) and SIMD vectors (CPU). There are two kinds.
//
// A label loss is a function of u = -log p_y, the information of the true class, times the weight
// of that class:
//   at(u, params): the value and its derivative by u.
// A linear one extends to soft targets t, as the sum over classes of t_c at(-log p_c).
//
// A divergence is a sum over classes of a function of p and q, where P is the target and Q the
// input:
//   at(p, log_p, q, log_q): the summand and its derivatives by q, log q, p and log p.
// Derivatives by a logarithm avoid a division by a number that may be 0. A caller that uses only
// some of the derivatives relies on the compiler to drop the others. 0 log 0 is 0 throughout.
#pragma once

#include "losses/list.h"
#include "losses/math.h"

namespace lossops {

template <class T>
struct LabelJet {
  T value, first;
};

// p - 1 for p = exp(-u), without cancellation where p is nearly 1 and without the errors of expm1
// elsewhere.
template <class T>
LOSSOPS_FN T less_one(T u) {
  return select(u > T(1), exp(-u) - T(1), expm1(-u));
}

struct CrossEntropy {
  static constexpr const char* name = "cross_entropy";
  static constexpr int num_params = 0;
  static constexpr bool linear = true;
  static constexpr bool divides_by_weight = true;  // a mean divides by the labels' total weight

  template <class T>
  LOSSOPS_FN static LabelJet<T> at(T u, const T*) {
    return {u, T(1)};
  }
};

// (1 - p)^gamma u with p = exp(-u): well-predicted rows count less.
struct Focal {
  static constexpr const char* name = "focal";
  static constexpr int num_params = 1;  // gamma >= 0
  static constexpr bool linear = false;
  static constexpr bool divides_by_weight = false;

  template <class T>
  LOSSOPS_FN static LabelJet<T> at(T u, const T* params) {
    const T miss = -expm1(-u);  // 1 - p, without cancellation
    const T damping = power(miss, params[0]);
    // u / (1 - p) tends to 1 as u tends to 0; p u / (1 - p) tends to 0 as u tends to infinity.
    const T ratio = select(u > T(0), u * exp(-u) / miss, T(1));
    return {select(u == T(kInfinity), u, damping * u),
            damping * (T(1) + params[0] * select(u > T(700), T(0), ratio))};
  }
};

// Poly-1: u + epsilon (1 - p).
struct Poly {
  static constexpr const char* name = "poly";
  static constexpr int num_params = 1;  // epsilon
  static constexpr bool linear = false;
  static constexpr bool divides_by_weight = true;

  template <class T>
  LOSSOPS_FN static LabelJet<T> at(T u, const T* params) {
    return {u - params[0] * expm1(-u), T(1) + params[0] * exp(-u)};
  }
};

using LabelLosses = LossList<CrossEntropy, Focal, Poly>;

template <class T>
struct DivergenceJet {
  T value, by_q, by_log_q, by_p, by_log_p;
};

// x y, but 0 if x is 0, whatever y is.
template <class T>
LOSSOPS_FN T times(T x, T y) {
  return select(x == T(0), T(0), x * y);
}

// KL(P || Q): p (log p - log q).
struct Kl {
  static constexpr const char* name = "kl";

  template <class T>
  LOSSOPS_FN static DivergenceJet<T> at(T p, T log_p, T q, T log_q) {
    const T ratio = log_p - log_q;
    const T value = times(p, ratio);
    const auto none = p == T(0);  // the limit by p is -infinity, even if q is 0
    return {value, -select(none, T(0), p / q), -p, select(none, log_p, ratio) + T(1), value + p};
  }
};

// KL(Q || P).
struct ReverseKl {
  static constexpr const char* name = "reverse_kl";

  template <class T>
  LOSSOPS_FN static DivergenceJet<T> at(T p, T log_p, T q, T log_q) {
    const DivergenceJet<T> f = Kl::at(q, log_q, p, log_p);
    return {f.value, f.by_p, f.by_log_p, f.by_q, f.by_log_q};
  }
};

// The mean of KL(P || M) and KL(Q || M), where M is the mean of P and Q. With
// s = |p - q| / (p + q), the larger of p and q is m (1 + s) and the smaller is m (1 - s).
struct JensenShannon {
  static constexpr const char* name = "jensen_shannon";

  template <class T>
  LOSSOPS_FN static DivergenceJet<T> at(T p, T log_p, T q, T log_q) {
    const T distance = abs(p - q), sum = p + q;
    // 1 if one of them is 0, and also if both are: either may still have a finite logarithm.
    const T s = select(sum == T(0), T(1), distance / sum);
    const T above = log1p_upto_one(s);
    // Far apart, 1 - s has lost its digits; close together, the logarithms would cancel.
    const T below = select(distance < T(1.0 / 3) * sum, -log1p_upto_half(s / (T(1) - s)),
                           above - abs(log_p - log_q));
    const T p_m = select(p < q, below, above), q_m = select(q < p, below, above);
    const T p_term = T(0.5) * times(p, p_m), q_term = T(0.5) * times(q, q_m);
    return {p_term + q_term, T(0.5) * q_m, q_term, T(0.5) * p_m, p_term};
  }
};

// |p - q|, with derivative 0 where they are equal.
struct L1Distribution {
  static constexpr const char* name = "l1_distribution";

  template <class T>
  LOSSOPS_FN static DivergenceJet<T> at(T p, T log_p, T q, T log_q) {
    const T sign = select(q > p, T(1), select(q < p, T(-1), T(0)));
    return {abs(p - q), sign, sign * q, -sign, -sign * p};
  }
};

// Half of L1Distribution.
struct TotalVariation {
  static constexpr const char* name = "total_variation";

  template <class T>
  LOSSOPS_FN static DivergenceJet<T> at(T p, T log_p, T q, T log_q) {
    const DivergenceJet<T> f = L1Distribution::at(p, log_p, q, log_q);
    const T half(0.5);
    return {half * f.value, half * f.by_q, half * f.by_log_q, half * f.by_p, half * f.by_log_p};
  }
};

// -p log q.
struct SoftCrossEntropy {
  static constexpr const char* name = "soft_cross_entropy";

  template <class T>
  LOSSOPS_FN static DivergenceJet<T> at(T p, T log_p, T q, T log_q) {
    const T value = -times(p, log_q);
    return {value, -select(p == T(0), T(0), p / q), -p, -log_q, value};
  }
};

using Divergences =
    LossList<Kl, ReverseKl, JensenShannon, L1Distribution, TotalVariation, SoftCrossEntropy>;

}  // namespace lossops
