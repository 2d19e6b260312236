// What the kernels of the family keep per row and per tensor of a tile.
#pragma once

#include <limits>

#include "cpu/softmax/exponentials.h"

namespace lossops {
inline namespace CPU_CAPABILITY {
namespace {

// One value per row.
template <class T>
struct PerRow {
  int64_t label[kMostLanes];
  bool outside[kMostLanes];  // the label is neither a class nor ignored
  double exact_scale[kMostLanes], value[kMostLanes];
  alignas(64) T counts[kMostLanes];  // 1, or 0 if the label is ignored or outside
  alignas(64) T scale[kMostLanes], upstream[kMostLanes], loss[kMostLanes];

  // Calls f(lane) for the rows that have a label which counts.
  template <bool across, class F>
  void read(const SoftmaxProblem& problem, const Tile<T, across>& tile, const F& f) {
    const bool labels = problem.labels.defined();
    const bool given = problem.grad_lse.defined() || problem.grad_entropy.defined();
    tile.read_scale(exact_scale);
    std::copy_n(exact_scale, tile.stride(), scale);
    tile.read(problem.grad_output, T(given ? 0 : 1), upstream);
    std::fill_n(counts, tile.stride(), T(labels ? 0 : 1));
    std::fill_n(outside, tile.stride(), false);
    if (!labels) return;
    tile.read_labels(label);
    for (int64_t l = 0; l < tile.lanes(); ++l) {
      if (label[l] == problem.ignore_index) continue;
      outside[l] = label[l] < 0 || label[l] >= problem.classes;
      if (outside[l]) continue;
      counts[l] = 1;
      f(l);
    }
  }

  template <bool across>
  void write_values(const SoftmaxProblem& problem, const Tile<T, across>& tile) {
    for (int64_t l = 0; l < tile.lanes(); ++l) {
      const double of_others = outside[l] ? std::numeric_limits<double>::quiet_NaN() : 0;
      value[l] = counts[l] > 0 ? loss[l] : of_others;
    }
    tile.write(problem.value, value);
  }
};

// Applies the softcap and the temperature to logits.
template <class T>
class Cooling {
 public:
  Cooling(const SoftmaxProblem& problem, Form form)
      : cap_(form == Form::logits ? problem.softcap : 0),
        temperature_(form == Form::logits ? problem.temperature : 1) {}

  bool does_nothing() const { return cap_ == 0 && temperature_ == 1; }
  bool caps() const { return cap_ != 0; }
  // If `slopes` is not null, it receives the derivatives.
  void apply(T* z, int64_t n, T* slopes) const {
    using V = Simd<T>;
    const V cap(cap_), temperature(temperature_), slope(cooled());
    const bool caps = cap_ != 0, cools = temperature_ != 1;
    for (int64_t i = 0; i < n; i += V::width) {
      V value = V::load(z + i);
      if (caps) {
        const V bent = tanh(value / cap);
        value = cap * bent;
        if (slopes) ((V(1.0) - bent) * (V(1.0) + bent) * slope).store(slopes + i);
      }
      if (cools) value = value / temperature;
      value.store(z + i);
    }
  }
  // The derivative if there is no cap.
  double cooled() const { return 1.0 / temperature_; }

 private:
  const double cap_, temperature_;
};

// Reads scores: logits after softcap and temperature, or log-probabilities.
template <class T, bool across>
class Scores {
  static constexpr T kPadding = -std::numeric_limits<T>::infinity();

 public:
  // Without a buffer for the whole tile, there is one for a block.
  Scores(const SoftmaxProblem& problem, const Tile<T, across>& tile, const RowsOperand& operand,
         Form form, T* buffer, T* slopes = nullptr)
      : tile_(tile), operand_(operand), cooling_(problem, form), buffer_(buffer), slopes_(slopes) {}

  bool cooled() const { return !cooling_.does_nothing(); }
  T* buffer(int64_t b) const {
    return buffer_ ? buffer_ + tile_.start(b) : scratch<T>(0, tile_.block() * tile_.stride());
  }
  // Reads a block. With `as_stored` it stays where it is stored, if possible.
  Numbers<T> read(int64_t b, bool as_stored) const {
    const int64_t c = tile_.first_class(b), n = tile_.in_block(b);
    T* const z = buffer(b);
    if (as_stored) return tile_.read(operand_, c, n, z, kPadding);
    tile_.load(operand_, c, n, z, kPadding);
    if (cooled()) {
      T* const slopes = slopes_ ? slopes_ + tile_.start(b) : nullptr;
      cooling_.apply(z, tile_.padded(n) * tile_.stride(), slopes);
      tile_.pad_block(n, z, kPadding);  // a cap makes padding finite
    }
    return {z, z, tile_.steps(n)};
  }
  // The memory that is read after block b.
  Ahead ahead(int64_t b) const {
    return tile_.ahead(operand_, tile_.first_class(b) + tile_.in_block(b));
  }
  // The derivatives of scores by the input. `place` is that in the tile.
  Simd<T> slopes(int64_t place) const {
    return slopes_ ? Simd<T>::load(slopes_ + place) : Simd<T>(cooling_.cooled());
  }
  T slope(int64_t place) const {
    return slopes_ ? slopes_[place] : static_cast<T>(cooling_.cooled());
  }

 private:
  const Tile<T, across>& tile_;
  const RowsOperand& operand_;
  const Cooling<T> cooling_;
  T *const buffer_, *const slopes_;
};

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace lossops
