// The losses over rows of one to three vectors. Each row gives a single number.
//
// A loss is a function of a few sums over the elements of its row, so a row is traversed twice:
// once for the sums and once for the gradients. In between, `finish` turns the sums into the value
// and into the factors that the gradients are made of. Losses with a list of labels per row are
// different: they sum over pairs of elements.
#pragma once

#include <cstdint>

#include "losses/list.h"
#include "losses/math.h"

namespace lossops {

constexpr int kMaxVectors = 3;
constexpr int kMaxVectorParams = 4;

// The inputs of a row other than its vectors.
struct RowGiven {
  double label = 0;    // the number of the row, if the loss takes one
  int64_t length = 0;  // of the row
};

// Whether one element of every row, the one at the label (an index), is left out of the sums and
// has its own derivative.
template <class Loss>
constexpr bool kHasIndex = requires { Loss::has_index; };

// Whether the label of every row is a number.
template <class Loss>
constexpr bool kHasNumber = requires { Loss::has_number; };

// Whether every row has a list of labels, which ends before its first negative entry. Such a loss
// sums a hinge over all pairs of a label (as often as it is listed) and a class that is not a
// label, and divides by the length. Its derivative by the score of such a class is the number of
// open hinges that contain the score; by the score of a label, minus that number.
template <class Loss>
constexpr bool kHasList = requires { Loss::has_list; };

// 1 - cos(x, y) if the label is 1, max(0, cos(x, y) - margin) if it is -1, otherwise 0. As in
// torch, 1e-12 is added to the squared lengths, so they are never 0.
struct CosineEmbedding {
  static constexpr const char* name = "cosine_embedding";
  static constexpr int vectors = 2, sums = 3, factors = 3, num_params = 1;  // margin
  static constexpr bool has_number = true;

  template <class T>
  LOSSOPS_FN static void add(const T (&x)[vectors], const T&, T (&sums)[CosineEmbedding::sums]) {
    sums[0] = fma(x[0], x[1], sums[0]);
    sums[1] = fma(x[0], x[0], sums[1]);
    sums[2] = fma(x[1], x[1], sums[2]);
  }

  LOSSOPS_FN static double finish(const double* sums, const RowGiven& row, const double* params,
                                  double* factors) {
    constexpr double tiny = 1e-12;
    const double a = sums[1] + tiny, b = sums[2] + tiny, inverse = 1 / (sqrt(a) * sqrt(b));
    const double cosine = sums[0] * inverse, excess = cosine - params[0];
    const bool together = row.label == 1, apart = row.label == -1;
    const double slope = together ? -1 : apart && excess >= 0 ? 1 : 0;
    factors[0] = slope * inverse;
    factors[1] = -slope * cosine / a;
    factors[2] = -slope * cosine / b;
    if (together) return 1 - cosine;
    return apart ? (excess < 0 ? 0 : excess) : 0;
  }

  template <class T>
  LOSSOPS_FN static void gradient(const T (&x)[vectors], const T&, const T* factors,
                                  T (&grads)[vectors]) {
    grads[0] = fma(factors[0], x[1], factors[1] * x[0]);
    grads[1] = fma(factors[0], x[0], factors[2] * x[1]);
  }
};

// max(0, |a - p| - |a - n| + margin), where the norms are of differences to which epsilon is added.
// With `swap`, |p - n| replaces |a - n| if it is smaller; if they are equal, the derivative is half
// of each. A norm of 0 has derivative 0.
template <bool absolute>
struct Triplets {
  static constexpr int vectors = 3, sums = 3, factors = 3, num_params = 3;  // margin, swap, epsilon

  template <class T>
  LOSSOPS_FN static T constant(const double* params, const T&) {
    return T(params[2]);
  }

  template <class T>
  LOSSOPS_FN static void add(const T (&x)[vectors], const T& epsilon, T (&sums)[Triplets::sums]) {
    const T d[3] = {(x[0] - x[1]) + epsilon, (x[0] - x[2]) + epsilon, (x[1] - x[2]) + epsilon};
    for (int k = 0; k < 3; ++k) {
      if constexpr (absolute) {
        sums[k] = sums[k] + abs(d[k]);
      } else {
        sums[k] = fma(d[k], d[k], sums[k]);
      }
    }
  }

  LOSSOPS_FN static double finish(const double* sums, const RowGiven&, const double* params,
                                  double* factors) {
    double norm[3], slope[3];
    for (int k = 0; k < 3; ++k) {
      norm[k] = absolute ? sums[k] : sqrt(sums[k]);
      slope[k] = norm[k] == 0 ? 0 : absolute ? 1 : 1 / norm[k];
    }
    const bool swap = params[1] != 0;
    const bool same = swap && norm[2] == norm[1], swapped = swap && norm[2] < norm[1];
    const bool unknown = swap && norm[2] != norm[2];
    const double left = params[0] + norm[0] - (swapped || unknown ? norm[2] : norm[1]);
    const double counts = left >= 0 ? 1 : 0;
    factors[0] = counts * slope[0];
    factors[1] = swapped ? 0 : -counts * slope[1] * (same ? 0.5 : 1);
    factors[2] = swapped ? -counts * slope[2] : same ? -counts * slope[2] * 0.5 : 0;
    return left < 0 ? 0 : left;
  }

  template <class T>
  LOSSOPS_FN static void gradient(const T (&x)[vectors], const T& epsilon, const T* factors,
                                  T (&grads)[vectors]) {
    T d[3] = {(x[0] - x[1]) + epsilon, (x[0] - x[2]) + epsilon, (x[1] - x[2]) + epsilon};
    for (int k = 0; k < 3; ++k) {
      if constexpr (absolute) {
        d[k] = select(d[k] == T(0), T(0), copysign(T(1), d[k]));
      }
      d[k] = select(factors[k] == T(0), T(0), factors[k] * d[k]);  // 0 even if d is infinite
    }
    grads[0] = d[0] + d[1];
    grads[1] = d[2] - d[0];
    grads[2] = -(d[1] + d[2]);
  }
};
struct TripletMargin : Triplets<false> {
  static constexpr const char* name = "triplet_margin";
};
struct TripletMarginL1 : Triplets<true> {
  static constexpr const char* name = "triplet_margin_l1";
};

// The sum over c != y of max(0, margin - x_y + x_c)^p / C for the label y; p is 1, or 2 if
// `squared`.
template <bool squared>
struct Hinges {
  static constexpr int vectors = 1, sums = 2, factors = 2, num_params = 1;  // margin
  static constexpr bool has_index = true;

  // The offset added to the score of a class: the margin minus the score of the label.
  template <class T>
  LOSSOPS_FN static T constant(const double* params, const T& own) {
    return T(params[0]) - own;
  }

  template <class T>
  LOSSOPS_FN static void add(const T (&x)[vectors], const T& lead, T (&sums)[Hinges::sums]) {
    const T z = lead + x[0], zero(0), hinge = select(z < zero, zero, z);
    if constexpr (squared) {
      sums[0] = fma(hinge, hinge, sums[0]);
      sums[1] = sums[1] + hinge;
    } else {
      sums[0] = sums[0] + hinge;
      sums[1] = sums[1] + select(z > zero, T(1), zero);
    }
  }

  LOSSOPS_FN static double finish(const double* sums, const RowGiven& row, const double*,
                                  double* factors) {
    const double share = 1.0 / static_cast<double>(row.length);
    factors[0] = squared ? 2 * share : share;
    factors[1] = -factors[0] * sums[1];  // the derivative by the score of the label
    return share * sums[0];
  }

  template <class T>
  LOSSOPS_FN static void gradient(const T (&x)[vectors], const T& lead, const T* factors,
                                  T (&grads)[vectors]) {
    const T z = lead + x[0], zero(0);
    grads[0] = select(z > zero, squared ? factors[0] * z : factors[0], zero);
  }
};
struct MultiMargin : Hinges<false> {
  static constexpr const char* name = "multi_margin";
};
struct MultiMarginSquared : Hinges<true> {
  static constexpr const char* name = "multi_margin_squared";
};

// 1 - (TP + s) / (TP + alpha FP + beta FN + s) with the sums TP = sum p y, FP = sum p (1 - y) and
// FN = sum (1 - p) y, computed as a quotient without cancellation. With `logits`, p is the sigmoid
// of x.
template <bool logits>
struct Regions {
  static constexpr int vectors = 2, sums = 3, factors = 3;
  static constexpr int num_params = 3;  // alpha, beta, s

  // p and q = 1 - p.
  template <class T>
  LOSSOPS_FN static void probabilities(const T& x, T& p, T& q) {
    if constexpr (logits) {
      const T e = exp(-abs(x)), larger = T(1) / (T(1) + e), smaller = e * larger;
      const auto positive = x > T(0);
      p = select(positive, larger, smaller);
      q = select(positive, smaller, larger);
    } else {
      p = x;
      q = T(1) - x;
    }
  }

  template <class T>
  LOSSOPS_FN static void add(const T (&x)[vectors], const T&, T (&sums)[Regions::sums]) {
    T p, q;
    probabilities(x[0], p, q);
    const T &y = x[1], none = T(1) - y;
    sums[0] = fma(p, y, sums[0]);
    sums[1] = fma(p, none, sums[1]);
    sums[2] = fma(q, y, sums[2]);
  }

  LOSSOPS_FN static double finish(const double* sums, const RowGiven&, const double* params,
                                  double* factors) {
    const double wrong = params[0] * sums[1] + params[1] * sums[2];
    const double total = sums[0] + wrong + params[2], loss = wrong / total;
    const double right = (sums[0] + params[2]) / total;
    factors[0] = params[0] * right / total;
    factors[1] = params[1] * right / total;
    factors[2] = loss / total;
    return loss;
  }

  template <class T>
  LOSSOPS_FN static void gradient(const T (&x)[vectors], const T&, const T* factors,
                                  T (&grads)[vectors]) {
    T p, q;
    probabilities(x[0], p, q);
    const T &y = x[1], none = T(1) - y;
    const T by_p = fma(factors[0], none, -(factors[1] + factors[2]) * y);
    grads[0] = logits ? by_p * (p * q) : by_p;
    grads[1] = fma(factors[1], q, -(factors[0] + factors[2]) * p);
  }
};
struct TverskyOfLogits : Regions<true> {
  static constexpr const char* name = "tversky_of_logits";
};
struct Tversky : Regions<false> {
  static constexpr const char* name = "tversky";
};

// The sum over the labels y and the classes c that are not labels of max(0, 1 - x_y + x_c) / C.
struct MultilabelMargin {
  static constexpr const char* name = "multilabel_margin";
  static constexpr int vectors = 1, num_params = 0;
  static constexpr bool has_list = true;

  // The offset added to the score of a class, given the score of a label.
  template <class T>
  LOSSOPS_FN static T lead(const T& own) {
    return T(1) - own;
  }

  // Adds a hinge to the sum and, if it is open, 1 to both counts.
  template <class T>
  LOSSOPS_FN static void add(const T& x, const T& lead, T& hinges, T& of_class, T& of_label) {
    const T z = lead + x, zero(0), open = select(z > zero, T(1), zero);
    hinges = hinges + select(z < zero, zero, z);
    of_class = of_class + open;
    of_label = of_label + open;
  }
};

using VectorLosses = LossList<CosineEmbedding, TripletMargin, TripletMarginL1, MultiMargin,
                              MultiMarginSquared, TverskyOfLogits, Tversky, MultilabelMargin>;

}  // namespace lossops
