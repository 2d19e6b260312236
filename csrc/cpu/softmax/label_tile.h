// The label losses: what a tile of rows consists of.
#pragma once

#include "cpu/softmax/rows.h"

namespace lossops {
inline namespace CPU_CAPABILITY {
namespace {

// t, the part of a target that is not a label: the given distribution, weighted and smoothed, or
// what smoothing gives to every class.
template <class T, bool across>
class SoftTarget {
  using V = Simd<T>;

 public:
  SoftTarget(const SoftmaxProblem& problem, const Tile<T, across>& tile)
      : p_(problem), tile_(tile) {
    if (given_) buffer_ = scratch<T>(2, tile.numbers() + kRowBlock);
    if (exists()) read_class_weights();
  }

  bool exists() const { return given_ || p_.label_smoothing != 0; }

  void read(int64_t b) {
    if (!given_) return;
    const int64_t c = tile_.first_class(b), n = tile_.in_block(b);
    T* const t = buffer_ + tile_.start(b);
    if (!copies_) {
      tile_.read(p_.target, c, n, t, T(0));
      return;
    }
    tile_.load(p_.target, c, n, t, T(0));
    if (!weighs_) return;
    const V keep(1 - p_.label_smoothing), spread(p_.label_smoothing / double(p_.classes));
    for (int64_t v = 0; v < tile_.vectors(); ++v) {
      for (int64_t i = 0, steps = tile_.steps(n); i < steps; ++i) {
        T* const at = t + tile_.at(v, i);
        (factors(b, i) * (keep * V::load(at) + spread)).store(at);
      }
    }
  }
  // Where a block that was read lies.
  Numbers<T> places(int64_t b) const {
    const int64_t n = tile_.in_block(b);
    T* const buffer = buffer_ + tile_.start(b);
    if (!given_ || copies_) return {buffer, buffer, tile_.steps(n)};
    return tile_.places(p_.target, tile_.first_class(b), n, buffer);
  }
  // The i-th numbers of block b, which lie at `t`.
  V at(const Numbers<T>& t, int64_t v, int64_t b, int64_t i) const {
    return given_ ? V::load(t.at(i, tile_.at(v, i))) : factors(b, i);
  }
  void prefetch(const Numbers<T>& t, int64_t i) const {
    if (across && given_) t.prefetch(i * V::width + kRowBlock);
  }

  // The factor on t of a class; with labels, t itself.
  T factor(int64_t c) const { return factors_[c]; }
  V factors(int64_t b, int64_t i) const {
    const T* const block = factors_ + tile_.first_class(b);
    return across ? V::load(block + i * V::width) : V(double(block[i]));
  }

 private:
  void read_class_weights() {
    factors_ = scratch<T>(3, p_.classes + kRowBlock);
    const double factor = given_ ? 1 : p_.label_smoothing / static_cast<double>(p_.classes);
    for (int64_t c = 0; c < p_.classes; ++c) {
      factors_[c] = static_cast<T>(factor * tile_.class_weight(c));
    }
    std::fill_n(factors_ + p_.classes, kRowBlock, T(0));
  }

  const SoftmaxProblem& p_;
  const Tile<T, across>& tile_;
  const bool given_ = p_.target.defined();
  const bool weighs_ = p_.class_weight.defined() || p_.label_smoothing != 0;
  // A gradient written over the input may also overwrite the target.
  const bool copies_ = weighs_ || p_.grad_input.data == p_.input.data;
  T *buffer_ = nullptr, *factors_ = nullptr;
};

// Per row: what the loss and the gradient are made of.
template <class T>
struct LabelRow : PerRow<T> {
  double exact_weight[kMostLanes];
  alignas(64) T score[kMostLanes], weight[kMostLanes];  // of the label
  alignas(64) T grad_lse[kMostLanes], grad_entropy[kMostLanes], entropy[kMostLanes];
  // What the label and the soft target contribute to the factor of the probabilities.
  alignas(64) T slope[kMostLanes], soft_mass[kMostLanes];
  // The derivative by the label's own score, and what it is computed from.
  alignas(64) T own_slope[kMostLanes], first[kMostLanes];
  alignas(64) T probability[kMostLanes], less_one[kMostLanes];
};

// A tile of rows, as all passes see it.
template <class T, bool across>
struct LabelTile {
  LabelTile(const SoftmaxProblem& problem, cpu::Threads threads) : p(problem), threads(threads) {}

  const SoftmaxProblem& p;
  const cpu::Threads threads;
  const bool logits = p.form == Form::logits, labels = p.labels.defined();
  const bool gradient = p.grad_input.defined() || p.grad_target.defined();
  const bool keeps_scores =  // for the gradients
      p.grad_target.defined() || (gradient && logits && p.grad_entropy.defined());
  Tile<T, across> tile{p, cpu::rows_at_once(p)};
  const Scores<T, across> scores{p,
                                 tile,
                                 p.input,
                                 p.form,
                                 keeps_scores ? whole(0) : nullptr,
                                 gradient && p.softcap != 0 ? whole(6) : nullptr};
  SoftTarget<T, across> target{p, tile};
  OnlineSoftmax<T, across> softmax{tile, threads, 4};
  T* const weights = gradient ? whole(1) : nullptr;  // exponentials, then gradients
  LabelRow<T> row;

  // Whether any pass reads all numbers of a row. Of log-probabilities, only the label's are read.
  bool reads_all() const { return logits || target.exists(); }

  // Where the exponentials of a block are kept until they become its gradient: where that is
  // stored, if one is wanted.
  Numbers<T> exponentials(int64_t b) const {
    T* const buffer =
        gradient ? weights + tile.start(b) : scratch<T>(1, tile.block() * tile.stride());
    return tile.places(p.grad_input, tile.first_class(b), tile.in_block(b), buffer);
  }

  // Calls f(lane, place in the block) for the labels in block b.
  template <class F>
  void each_label(int64_t b, const F& f) const {
    if (!labels) return;
    const int64_t first = tile.first_class(b), n = tile.in_block(b);
    for (int64_t l = 0; l < tile.lanes(); ++l) {
      const int64_t in_block = row.label[l] - first;
      if (row.counts[l] > 0 && in_block >= 0 && in_block < n) f(l, in_block * tile.stride() + l);
    }
  }

  T* whole(int slot) const { return scratch<T>(slot, tile.numbers() + kRowBlock); }
};

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace lossops
