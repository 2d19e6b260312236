// The online softmax over the blocks of a tile: shared by the kernels of the family.
#pragma once

#include <limits>

#include "cpu/softmax_tile.h"

namespace lossops {
inline namespace CPU_CAPABILITY {

// Below every number but -infinity: from a row of nothing else, exp(-infinity - kLowest) is 0, and
// no block of such a row is mistaken for the largest.
template <class T>
constexpr double kLowest = -static_cast<double>(std::numeric_limits<T>::max());

// Sums of terms exp(z - m) and of terms that are relative to m, for one vector of lanes. Blocks
// come with a maximum of their own, and are brought to the largest so far.
template <class T>
struct RunningSums {
  using V = Simd<T>;
  V largest{kLowest<T>};
  V exponentials;  // sum of exp(z - m)
  V entropy;       // sum of exp(z - m) (z - m)
  V mass, scores;  // sums of t and of t (z - m)

  void add(const RunningSums& block) {
    const V both = max(largest, block.largest);
    const V by = largest - both, block_by = block.largest - both;
    const V factor = exp(by), block_factor = exp(block_by);
    entropy = factor * (entropy + times(exponentials, by)) +
              block_factor * (block.entropy + times(block.exponentials, block_by));
    exponentials = factor * exponentials + block_factor * block.exponentials;
    scores = scores + times(mass, by) + block.scores + times(block.mass, block_by);
    mass = mass + block.mass;
    largest = both;
  }
};

// The largest number per lane of a block of n classes.
template <class T, bool across>
LOSSOPS_FN Simd<T> block_maximum(const Tile<T, across>& tile, int64_t v, const T* z, int64_t n) {
  using V = Simd<T>;
  V a(kLowest<T>), b = a, c = a, d = a;
  const int64_t steps = tile.steps(n);
  int64_t i = 0;
  for (; i + 4 <= steps; i += 4) {
    a = max(a, V::load(z + tile.at(v, i)));
    b = max(b, V::load(z + tile.at(v, i + 1)));
    c = max(c, V::load(z + tile.at(v, i + 2)));
    d = max(d, V::load(z + tile.at(v, i + 3)));
  }
  for (; i < steps; ++i) a = max(a, V::load(z + tile.at(v, i)));
  return tile.largest(max(max(a, b), max(c, d)));
}

// Logits as a loss sees them: capped and cooled.
template <class T>
class Cooling {
 public:
  Cooling(const SoftmaxProblem& problem, bool caps)
      : cap_(caps ? problem.softcap : 0), temperature_(problem.temperature) {}

  bool does_nothing() const { return cap_ == 0 && temperature_ == 1; }
  void apply(T* z, int64_t n) const {
    using V = Simd<T>;
    const V cap(cap_), temperature(temperature_);
    for (int64_t i = 0; i < n; i += V::width) {
      V value = V::load(z + i);
      if (cap_ != 0) value = cap * tanh(value / cap);
      if (temperature_ != 1) value = value / temperature;
      value.store(z + i);
    }
  }
  // The derivative at what came of it.
  Simd<T> slope(Simd<T> z) const {
    using V = Simd<T>;
    const V cooled = V(1.0) / V(temperature_);
    if (cap_ == 0) return cooled;
    const V ratio = z * V(temperature_) / V(cap_);
    return (V(1.0) - ratio * ratio) * cooled;
  }

 private:
  const double cap_, temperature_;
};

}  // namespace CPU_CAPABILITY
}  // namespace lossops
