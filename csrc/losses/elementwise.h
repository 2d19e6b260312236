// The elementwise losses: one number per pair (input, target). This header and the ones it includes
// hold all formulas of the family, written once for scalars (CUDA) and SIMD vectors (CPU).
//
// A loss is a struct with a name, the number of its parameters, and
//   at<order>(x, y, params): the value and its derivatives up to `order` (0, 1 or 2).
// Evaluating them together lets the derivatives reuse the transcendental functions of the value.
#pragma once

#include "losses/jet.h"
#include "losses/likelihoods.h"
#include "losses/list.h"
#include "losses/margins.h"
#include "losses/math.h"

namespace lossops {

// Turns a loss of the difference x - y into a loss of x and y.
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

  // As with torch.sign, the derivative at 0 (and at NaN) is 0.
  template <int order, class T>
  LOSSOPS_FN static DifferenceJet<T> at(T d, const T*) {
    const T sign = select(d > T(0), T(1), select(d < T(0), T(-1), T(0)));
    return {abs(d), sign, T(0)};
  }
};

// Both Huber-like losses test for `outside` rather than `inside`, so that NaN takes the quadratic
// branch and propagates to the value and the first derivative.
struct SmoothL1 {
  static constexpr const char* name = "smooth_l1";
  static constexpr int num_params = 1;  // beta >= 0

  template <int order, class T>
  LOSSOPS_FN static DifferenceJet<T> at(T d, const T* params) {
    const T beta = params[0];
    const T z = abs(d);
    const auto outside = z >= beta;
    DifferenceJet<T> f{};
    // Compute z / beta first: z * z would overflow for a large beta and underflow for a small one.
    // With beta = 0 these quotients are NaN or infinite, but the other branch is selected.
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
    // At z = delta both branches agree, except at infinity, where only the second is not NaN.
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
  //   near 0, log(cosh(a)) = log1p(cosh(a) - 1), where the argument comes from its series. This
  //   avoids the cancellation in |d| + softplus(-2|d|) - log 2, which loses every digit there;
  //   otherwise, log(cosh(a)) = a - log 2 + log1p(exp(-2a)), which cannot overflow.
  // Selecting the argument first leaves a single log1p, of an argument of at most 1/2.
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
      f.first = copysign(v / (T(2) + v), d);  // tanh(d), with two roundings after that of v
    }
    if constexpr (order >= 2) {
      const T decay = exp(-a);  // not from e2: the rounding of 1 + v would go straight into sech
      const T sech = (decay + decay) / (T(1) + decay * decay);
      f.second = sech * sech;
    }
    return f;
  }

  // cosh(a) - 1 = a^2/2! + a^4/4! + ..., as a polynomial in a^2 < 1, accurate to float64 precision.
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

// The Charbonnier loss sqrt(d^2 + epsilon^2). Only the ratio of the two is squared, because d^2 or
// epsilon^2 might overflow or underflow.
struct Charbonnier {
  static constexpr const char* name = "charbonnier";
  static constexpr int num_params = 1;  // epsilon > 0

  template <int order, class T>
  LOSSOPS_FN static DifferenceJet<T> at(T d, const T* params) {
    const T epsilon = params[0], a = abs(d);
    const auto far = a > epsilon;
    const T larger = select(far, a, epsilon), smaller = select(far, epsilon, a);
    const T ratio = smaller / larger;
    const T root = sqrt(fma(ratio, ratio, T(1)));
    DifferenceJet<T> f{};
    f.value = larger * root;
    if constexpr (order >= 1) {
      f.first = copysign(select(far, T(1), ratio) / root, d);
    }
    if constexpr (order >= 2) {
      const T cosine = select(far, ratio, T(1)) / root;  // epsilon / value
      f.second = cosine * cosine / f.value;
    }
    return f;
  }
};

// Products that feed values and first derivatives use an explicit fma. If the choice were left to
// the compiler, it might fuse a product and a sum in one kernel but not in another, and the two
// backward passes would differ in the last bit.

// Losses of two variables: inputs and targets that are probabilities, log-probabilities or logits.

// Pointwise Kullback-Leibler divergence: x is a log-probability, y a probability.
struct KlDiv {
  static constexpr const char* name = "kl_div";
  static constexpr int num_params = 0;

  // y log(y) - y x is 0 at y = 0 (the limit), even for x = -inf. The derivative by y there is its
  // limit -inf, where torch gives NaN.
  template <int order, class T>
  LOSSOPS_FN static Jet<T> at(T x, T y, const T*) {
    const T log_y = log(y), d = log_y - x;
    const auto none = y == T(0);
    Jet<T> f{};
    f.value = select(none, select(x < T(0), T(0), x * T(0)), y * d);  // NaN * 0 is NaN
    if constexpr (order >= 1) {
      f.dx = -y;
      f.dy = select(none, select(x < T(0), log_y, d), d) + T(1);
    }
    if constexpr (order >= 2) {
      f.dxy = T(-1);
      f.dyy = T(1) / y;
    }
    return f;
  }
};

// KlDiv where y is a log-probability as well: exp(y) (y - x).
struct KlDivLogTarget {
  static constexpr const char* name = "kl_div_log_target";
  static constexpr int num_params = 0;

  template <int order, class T>
  LOSSOPS_FN static Jet<T> at(T x, T y, const T*) {
    const T infinity(kInfinity);
    const T p = exp(y), d = y - x;
    Jet<T> f{};
    // Where p is 0, p d is 0 as well, except for x = -inf and a finite y whose exp underflows:
    // there d is infinite. NaN propagates through x * 0 and + p.
    const T limit = select(y > -infinity, select(d < infinity, T(0), d), T(0));
    f.value = select(p > T(0), p * d, select(x < infinity, limit, x * T(0)) + p);
    if constexpr (order >= 1) {
      f.dx = -p;
      f.dy = f.value + p;
    }
    if constexpr (order >= 2) {
      f.dxy = -p;
      f.dyy = f.dy + p;
    }
    return f;
  }
};

// A target y smoothed to y (1 - s) + s/2, and 1 minus that. They are computed separately so that
// neither loses digits where it is small.
template <class T>
struct Smoothed {
  T keep, positive, negative;

  LOSSOPS_FN Smoothed(T y, T smoothing)
      : keep(T(1) - smoothing),
        positive(fma(y, keep, T(0.5) * smoothing)),
        negative(fma(T(1) - y, keep, T(0.5) * smoothing)) {}
};

// Binary cross entropy of probabilities x. As in torch, both logarithms are clamped to at least
// -100, and x (1 - x) in the derivative to at least 1e-12. A number outside [0, 1] gives NaN.
struct Bce {
  static constexpr const char* name = "bce";
  static constexpr int num_params = 1;  // smoothing of the target

  template <int order, class T>
  LOSSOPS_FN static Jet<T> at(T x, T y, const T* params) {
    const T nan(kNaN);
    y = select(y >= T(0), select(y > T(1), nan, y), nan);
    const Smoothed<T> target(y, params[0]);
    const T yes = at_least(log(x), T(-100)), no = at_least(log1p(-x), T(-100));
    Jet<T> f{};
    f.value = -fma(target.positive, yes, target.negative * no);
    if constexpr (order >= 1) {
      const T product = (T(1) - x) * x;
      const T bounded = select(product < T(0), nan, at_least(product, T(1e-12)));
      // If both are near 1, use their distances to 1: a smoothed target has less rounding error
      // there.
      const T from_one = select(x > T(0.5), target.negative - (T(1) - x), x - target.positive);
      f.dx = select(target.positive > T(0.5), from_one, x - target.positive) / bounded;
      f.dy = target.keep * (no - yes);
      if constexpr (order >= 2) {
        const T q = T(1) / bounded;
        f.dxx = (f.dx * f.dx) + (target.positive * q) * (target.negative * q);
        f.dxy = -target.keep * q;
      }
    }
    return f;
  }

  template <class T>
  LOSSOPS_FN static T at_least(T x, T bound) {
    return select(x < bound, bound, x);  // NaN passes through
  }
};

// Binary cross entropy of a logit x with a weight p for the positive class:
//   p y softplus(-x) + (1 - y) softplus(x).
// With a = |x| and e = exp(-a), softplus(a) is a + log1p(e) and softplus(-a) is log1p(e);
// sigmoid(a) is 1 / (1 + e) and sigmoid(-a) is e / (1 + e).
struct BceWithLogits {
  static constexpr const char* name = "bce_with_logits";
  static constexpr int num_params = 2;  // weight of the positive class; smoothing of the target

  template <int order, class T>
  LOSSOPS_FN static Jet<T> at(T x, T y, const T* params) {
    const T weight = params[0];
    const Smoothed<T> target(y, params[1]);
    const auto negative = x < T(0);
    const T a = abs(x), e = exp(-a), tail = log1p_upto_one(e);
    const T yes = weight * target.positive, no = target.negative;
    const T wrong = select(negative, yes, no);  // weight of the class that x contradicts
    const T right = select(negative, no, yes);
    Jet<T> f{};
    // An infinite logit with the right sign has loss 0.
    f.value = fma(wrong + right, tail, select(wrong == T(0), T(0), wrong * a));
    if constexpr (order >= 1) {
      const T larger = T(1) / (T(1) + e);
      const T slope = fma(-right, e, wrong) * larger;
      f.dx = select(negative, -slope, slope);
      f.dy = target.keep * fma(weight - T(1), tail, a * select(negative, weight, T(-1)));
      if constexpr (order >= 2) {
        f.dxx = (wrong + right) * (larger * (larger * e));
        f.dxy = -target.keep * (select(negative, weight + e, weight * e + T(1)) * larger);
      }
    }
    return f;
  }
};

// RetinaNet's loss: alpha_t u^gamma c, where u = 1 - p_t is the probability given to the wrong
// class and c is the binary cross entropy. It is folded like BceWithLogits: a = |x|, and w is the
// part of the target on the side opposite to x (`wrong`). With r = 1 - w (`right`), e = exp(-a),
// m = 1 / (1 + e) and D = w + r e (`miss`), derivatives by a and w being indices:
//   u = m D                    c = log1p(e) + a w    (u_a / u)_a = (u_a / u) m (r e^2 - w) / D
//   u_a / u = (w - r) m e / D  c_a = m (w - r e)     (u_a / u)_w = e / D^2
//   u_w / u = (1 - e) / D      c_w = a               (u_w / u)_w = -(u_w / u)^2
//   c_aa = m^2 e               c_aw = 1              c_ww = 0
// Every derivative of u^gamma c is u^gamma times a finite factor, such as gamma (u_a / u) c + c_a.
// The quotients by D are written so that a hard target (w = 0, D = e) loses neither digits nor the
// limit at infinity.
struct SigmoidFocal {
  static constexpr const char* name = "sigmoid_focal";
  static constexpr int num_params = 2;  // alpha, negative for none; gamma >= 0
  static constexpr bool is_long = true;

  template <int order, class T>
  LOSSOPS_FN static Jet<T> at(T x, T y, const T* params) {
    const T alpha = params[0], gamma = params[1], zero(0);
    const auto negative = x < zero;
    const T a = abs(x), e = exp(-a), m = T(1) / (T(1) + e);
    const T wrong = select(negative, y, T(1) - y), right = select(negative, T(1) - y, y);
    const auto hard = wrong == zero;
    const T miss = fma(right, e, wrong);
    const T cross = log1p_upto_one(e) + select(hard, zero, wrong * a);
    // The square root of u^gamma: the full power may leave the range of T where its product with
    // the c of a far logit does not.
    const T root = power(miss / (T(1) + e), T(0.5) * gamma);
    const T balance = select(alpha < zero, T(1), fma(alpha, y, (T(1) - alpha) * (T(1) - y)));
    Jet<T> f{};
    const T value = root * (root * cross);
    f.value = balance * value;
    if constexpr (order >= 1) {
      const auto finite = e > zero;
      const T e_over_miss = select(hard, T(1), e / miss);
      const T rate = (wrong - right) * m * e_over_miss;  // u_a / u
      const T cross_a = m * fma(-right, e, wrong);
      const T rate_cross = select(finite, rate * cross, zero);  // 0 if e is 0
      const T by_a = root * (root * fma(gamma, rate_cross, cross_a));
      const T cross_over_miss = select(finite, cross / miss, select(hard, T(1), a));
      const T w_over_root = fma(gamma, root * ((T(1) - e) * cross_over_miss), root * a);
      const T by_wrong = select(root == zero, zero, root * w_over_root);
      const T sign = select(negative, T(-1), T(1));
      const T balance_y = select(alpha < zero, zero, alpha + alpha - T(1));
      const T by_y = -(sign * by_wrong);
      f.dx = balance * (sign * by_a);
      f.dy = fma(balance_y, value, balance * by_y);
      if constexpr (order >= 2) {
        // The second derivatives, over u^gamma.
        const T rate_a_cross = rate_cross * m * select(hard, e, (right * e * e - wrong) / miss);
        const T a_twice =
            gamma * (rate * (gamma * rate_cross + cross_a + cross_a) + rate_a_cross) + m * m * e;
        const T cross_a_over_miss = select(hard, -m, cross_a / miss);
        const T modulation = root * root, by_w = fma(gamma, (T(1) - e) * cross_over_miss, a);
        const T rate_w = select(finite, rate * by_w + e_over_miss * cross_over_miss, zero);
        const T a_and_w = gamma * (rate_w + (T(1) - e) * cross_a_over_miss);
        const T by_a_wrong = modulation * (a_and_w + T(1));
        const T w_rate = select(miss > zero, (T(1) - e) / miss, zero);  // u_w / u
        const T w_twice =
            gamma * w_rate * ((gamma - T(1)) * ((T(1) - e) * cross_over_miss) + a + a);
        const T by_wrong_twice = select(modulation == zero, zero, modulation * w_twice);
        f.dxx = balance * (modulation * a_twice);
        f.dxy = balance_y * (sign * by_a) - balance * by_a_wrong;
        f.dyy = T(2) * balance_y * by_y + balance * by_wrong_twice;
      }
    }
    return f;
  }
};

using ElementwiseLosses =
    LossList<OfDifference<Mse>, OfDifference<L1>, OfDifference<SmoothL1>, OfDifference<Huber>,
             OfDifference<LogCosh>, OfDifference<Quantile>, KlDiv, KlDivLogTarget, Bce,
             BceWithLogits, SigmoidFocal, OfDifference<Charbonnier>, SoftMargin, HingeEmbedding,
             MarginRanking, PoissonLog, Poisson, Gaussian>;

}  // namespace lossops
