// The gradients of the label losses: a pass over cached data.
#pragma once

#include <cstring>

#include "cpu/softmax/label_tile.h"

namespace lossops {
inline namespace CPU_CAPABILITY {
namespace {

template <class T, bool across>
class LabelGradients {
  using V = Simd<T>;

 public:
  explicit LabelGradients(const LabelTile<T, across>& tile)
      : t_(tile), p_(tile.p), tile_(tile.tile), row_(tile.row) {}

  void write() const {
    t_.threads.each(tile_.blocks(), [this](int64_t b) {
      if (p_.grad_target.defined()) write_by_target(b);
      if (p_.grad_input.defined()) write_by_input(b);
    });
  }

 private:
  void write_by_target(int64_t b) const {
    const int64_t n = tile_.in_block(b);
    T* const buffer = scratch<T>(5, tile_.padded(n) * tile_.stride());
    for (int64_t v = 0; v < tile_.vectors(); ++v) by_target(v, b, buffer);
    tile_.store(p_.grad_target, tile_.first_class(b), n, buffer);
  }

  void by_target(int64_t v, int64_t b, T* out) const {
    const T* const z = t_.scores.buffer(b);
    const V factor = tile_.lane(row_.scale, v) * V(1 - p_.label_smoothing);
    const V upstream = tile_.lane(row_.upstream, v);
    const V largest = t_.softmax[v].largest, log_sum = t_.softmax[v].log_sum();
    for (int64_t i = 0, steps = tile_.steps_in(b); i < steps; ++i) {
      const int64_t at = tile_.at(v, i);
      const V distance = above(V::load(z + at), largest);
      (factor * t_.target.factors(b, i) * (log_sum - distance) * upstream).store(out + at);
    }
  }

  void write_by_input(int64_t b) const {
    const int64_t n = tile_.in_block(b);
    const Numbers<T> e = t_.exponentials(b);
    const bool in_place = e.stored != e.buffer;
    if (!t_.reads_all()) {
      std::memset(e.stored, 0, (in_place ? n : tile_.padded(n) * tile_.stride()) * sizeof(T));
    } else {
      const bool plain = is_plain();
      for (int64_t v = 0; v < tile_.vectors(); ++v) {
        plain ? by_logits(v, b, e) : by_input(v, b, e);
      }
      tile_.write_rest(e, n);
    }
    t_.each_label(b, [&](int64_t l, int64_t place) {
      e.stored[place] = by_own_score(l, e.stored[place], tile_.start(b) + place);
    });
    if (!in_place) tile_.store(p_.grad_input, tile_.first_class(b), n, e.buffer);
  }

  // Whether the gradient is a multiple of the exponentials, except at the label.
  bool is_plain() const {
    return t_.logits && !t_.target.exists() && !t_.scores.cooled() && !p_.grad_entropy.defined();
  }

  // grad_output multiplies last, as when it rescales a gradient of the forward pass, so the results
  // are bitwise identical.
  void by_logits(int64_t v, int64_t b, Numbers<T> e) const {
    const V probability = t_.softmax.normalizing(v, b), upstream = tile_.lane(row_.upstream, v);
    const V mass = tile_.lane(row_.slope, v) + tile_.lane(row_.soft_mass, v);
    const V factor = probability * mass * tile_.lane(row_.scale, v);
    const V by_lse = probability * tile_.lane(row_.grad_lse, v);
    const auto counts = tile_.lane(row_.counts, v) > V(0.0);
    const bool has_lse = p_.grad_lse.defined();
    for (int64_t i = 0, steps = tile_.steps_in(b); i < steps; ++i) {
      T* const at = e.at(i, tile_.at(v, i));
      const V exponential = V::load(at);
      const V gradient = select(counts, factor * exponential * upstream, V(0.0));
      (has_lse ? gradient + by_lse * exponential : gradient).store(at);
    }
  }

  void by_input(int64_t v, int64_t b, Numbers<T> e) const {
    const T* const z = t_.keeps_scores ? t_.scores.buffer(b) : nullptr;
    const Numbers<T> t = t_.target.places(b);
    const V probability = t_.softmax.normalizing(v, b), upstream = tile_.lane(row_.upstream, v);
    const V scale = tile_.lane(row_.scale, v);
    const V mass = (tile_.lane(row_.slope, v) + tile_.lane(row_.soft_mass, v)) * scale;
    const V by_lse = tile_.lane(row_.grad_lse, v), by_entropy = tile_.lane(row_.grad_entropy, v);
    const V entropy = tile_.lane(row_.entropy, v);
    const V largest = t_.softmax[v].largest, log_sum = t_.softmax[v].log_sum();
    const bool logits = t_.logits, soft = t_.target.exists();
    const bool has_further = p_.grad_lse.defined() || p_.grad_entropy.defined();
    const auto counts = tile_.lane(row_.counts, v) > V(0.0);
    for (int64_t i = 0, steps = tile_.steps_in(b); i < steps; ++i) {
      const int64_t at = tile_.at(v, i);
      V gradient, further;
      if (logits) {
        const V q = V::load(e.at(i, at)) * probability;
        gradient = mass * q;
        if (has_further) {
          // A common offset of all logits costs no digits.
          const V log_q = above(z ? V::load(z + at) : V(), largest) - log_sum;
          further = q * by_lse - by_entropy * times(q, log_q + entropy);
        }
      }
      if (soft) gradient = gradient - scale * t_.target.at(t, v, b, i);
      gradient = gradient * upstream;
      const V slope = t_.scores.slopes(tile_.start(b) + at);
      gradient = select(counts, gradient * slope, V(0.0));
      if (has_further) gradient = gradient + further * slope;
      gradient.store(e.at(i, at));
    }
  }

  T by_own_score(int64_t l, T of_the_others, int64_t place) const {
    const T slope = t_.scores.slope(place);
    if (t_.logits && !p_.grad_entropy.defined()) return row_.own_slope[l] * slope;
    return of_the_others - row_.scale[l] * row_.slope[l] * row_.upstream[l] * slope;
  }

  const LabelTile<T, across>& t_;
  const SoftmaxProblem& p_;
  const Tile<T, across>& tile_;
  const LabelRow<T>& row_;
};

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace lossops
