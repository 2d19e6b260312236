// The losses over pairs of a label of a row and a class that is not a label. Compiled once per
// instruction set.
#pragma once

#include <vector>

#include "cpu/common/blocks.h"
#include "cpu/common/labels.h"
#include "cpu/common/simd.h"
#include "cpu/vectors/rows.h"

namespace lossops {
inline namespace CPU_CAPABILITY {

// The rows of one loss, computed in T; S is their type in memory.
template <class Loss, class T, class S>
class LabelLists : RowsInMemory<S> {
 public:
  explicit LabelLists(const VectorsProblem& problem)
      : RowsInMemory<S>(problem), others_(problem.length), open_(problem.length) {}

  void run(int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) run(r);
  }

 private:
  using Base = RowsInMemory<S>;
  using Base::problem_;
  using Vector = Simd<T>;

  void run(int64_t r) {
    if (!read_labels(r)) return Base::leave_out(r);
    const S* row = Base::data(problem_.vectors[0], r);
    int64_t count = 0;
    each_run_of_others([&](int64_t c, int64_t n) {
      convert(row + c, others_.data() + count, n);
      count += n;
    });
    leads_.clear();
    for (int64_t label : labels_) leads_.push_back(Loss::lead(static_cast<T>(row[label])));
    open_of_labels_.assign(labels_.size(), 0);
    std::fill_n(open_.data(), count, T(0));

    const double share = 1.0 / static_cast<double>(problem_.length);
    Base::write_value(r, add_pairs(count) * share * Base::weight(r));
    if (problem_.grads[0].defined()) {
      differentiate(Base::data(problem_.grads[0], r), share * Base::scale(r));
    }
  }

  // Reads the labels and sorts them in ascending order. Returns whether all of them are classes.
  bool read_labels(int64_t r) {
    labels_.clear();
    for (int64_t i = 0; i < problem_.length; ++i) {
      const int64_t label = cpu::read_label(problem_.labels, r, i);
      if (label < 0) break;
      if (label >= problem_.length) return false;
      labels_.push_back(label);
    }
    std::sort(labels_.begin(), labels_.end());
    return true;
  }

  // Calls f(first, count) for each run of consecutive classes that are not labels.
  template <class F>
  void each_run_of_others(const F& f) const {
    int64_t next = 0;
    for (int64_t label : labels_) {
      if (label > next) f(next, label - next);
      next = label + 1;
    }
    if (next < problem_.length) f(next, problem_.length - next);
  }

  // Returns the sum of all hinges, and counts the open ones.
  double add_pairs(int64_t count) {
    constexpr int together = 4;  // labels that share the loads of the other classes
    const int64_t labels = static_cast<int64_t>(labels_.size());
    double sum = 0;
    for (int64_t begin = 0; begin < count; begin += kBlock) {
      const int64_t n = std::min<int64_t>(kBlock, count - begin);
      int64_t l = 0;
      for (; l + together <= labels; l += together) sum += add_pairs<together>(l, begin, n);
      for (; l < labels; ++l) sum += add_pairs<1>(l, begin, n);
    }
    return sum;
  }

  template <int kLabels>
  double add_pairs(int64_t label, int64_t begin, int64_t n) {
    const T* x = others_.data() + begin;
    T* open = open_.data() + begin;
    const T* leads = leads_.data() + label;
    Vector lead[kLabels], counts[kLabels], hinges[2];
    for (int l = 0; l < kLabels; ++l) lead[l] = Vector(leads[l]);
    int64_t i = 0;
    for (; i + Vector::width <= n; i += Vector::width) {
      const Vector others = Vector::load(x + i);
      Vector opened = Vector::load(open + i);
      for (int l = 0; l < kLabels; ++l)
        Loss::add(others, lead[l], hinges[l % 2], opened, counts[l]);
      opened.store(open + i);
    }
    T rest(0), rest_counts[kLabels] = {};
    for (; i < n; ++i) {
      for (int l = 0; l < kLabels; ++l) Loss::add(x[i], leads[l], rest, open[i], rest_counts[l]);
    }
    for (int l = 0; l < kLabels; ++l) {
      open_of_labels_[label + l] += sum_of(counts[l]) + rest_counts[l];
    }
    return static_cast<double>(sum_of(hinges[0] + hinges[1])) + rest;
  }

  static T sum_of(const Vector& lanes) {
    return at::vec::vec_reduce_all([](auto a, auto b) { return a + b; }, lanes.v);
  }

  void differentiate(S* grad, double factor) {
    const T of_pair = static_cast<T>(factor);
    int64_t count = 0;
    each_run_of_others([&](int64_t c, int64_t n) {
      T* open = open_.data() + count;
      for (int64_t i = 0; i < n; ++i) open[i] *= of_pair;
      convert(open, grad + c, n);
      count += n;
    });
    for (size_t l = 0; l < labels_.size();) {
      const int64_t label = labels_[l];
      double open = 0;
      for (; l < labels_.size() && labels_[l] == label; ++l) open += open_of_labels_[l];
      grad[label] = static_cast<S>(static_cast<T>(-open * factor));
    }
  }

  std::vector<int64_t> labels_;
  std::vector<T> leads_;                // per label
  std::vector<double> open_of_labels_;  // number of open hinges per label
  std::vector<T> others_, open_;        // per class that is not a label
};

}  // namespace CPU_CAPABILITY
}  // namespace lossops
