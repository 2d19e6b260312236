// The online softmax over the blocks of a tile: shared by the kernels of the family.
#pragma once

#include <bit>

#include "cpu/softmax/tile.h"

namespace lossops {
inline namespace CPU_CAPABILITY {

// How far a number is above the largest; where both are infinite, 0: the limit of equal numbers.
template <class T>
LOSSOPS_FN Simd<T> above(Simd<T> number, Simd<T> largest) {
  return select(number == largest, Simd<T>(0.0), number - largest);
}

// Sums of terms exp(z - m) and of terms that are relative to m, for one vector of lanes. Blocks
// come with a maximum of their own, and are brought to the largest so far.
//
// The sum of the exponentials is kept without one of those that are 1, as the largest are: where a
// class is nearly certain, the others are all that log-probabilities have digits from.
template <class T>
struct RunningSums {
  using V = Simd<T>;
  V largest{-kInfinity};
  V others{-1.0};  // sum of exp(z - m), less 1
  V entropy;       // sum of exp(z - m) (z - m)
  V mass, scores;  // sums of t and of t (z - m)

  // Of log-probabilities, which are relative to 0 and add up to 1 as they are.
  static RunningSums settled() {
    RunningSums sums;
    sums.largest = sums.others = V(0.0);
    return sums;
  }
  V exponentials() const { return V(1.0) + others; }
  V log_sum() const { return log1p(others); }  // log sum exp(z - m)

  // Not inlined: two copies might not fuse the same multiplications with additions, and a row that
  // threads share takes another one.
  [[gnu::noinline]] void add(const RunningSums& block) {
    const V both = max(largest, block.largest);
    const V by = above(largest, both), block_by = above(block.largest, both);
    const V factor = exp(by), block_factor = exp(block_by);
    entropy = factor * entropy + times(factor * exponentials(), by) + block_factor * block.entropy +
              times(block_factor * block.exponentials(), block_by);
    others = select(by == V(0.0), others + block_factor * block.exponentials(),
                    factor * exponentials() + block.others);
    scores = scores + times(mass, by) + block.scores + times(block.mass, block_by);
    mass = mass + block.mass;
    largest = both;
  }

  // Of log-probabilities, which have no maximum.
  void add_targets(const RunningSums& block) {
    mass = mass + block.mass;
    scores = scores + block.scores;
  }

  // Numbers that are all -infinity are equal, as those that are all +infinity; the padding beyond
  // them, which is -infinity, does not count.
  void finish(int64_t classes) {
    const V equals = V(static_cast<double>(classes - 1)) + (others - others);  // a NaN stays one
    others = select(largest == V(-kInfinity), equals, others);
  }
};

struct Merge {
  template <class Sums>
  void operator()(Sums& sums, const Sums& more) const {
    sums.add(more);
  }
};

// What the blocks of a row come to, for each vector of lanes. They are merged in pairs, as a tree:
// with the number of blocks, rounding errors grow as its height does.
template <class Sums, int kVectors>
class Tree {
 public:
  explicit Tree(int slot = 0) : slot_(slot) {}  // of the thread's memory, for this type

  Sums& operator[](int64_t v) { return totals_[v]; }
  const Sums& operator[](int64_t v) const { return totals_[v]; }
  void fill(const Sums& sums) { totals_.fill(sums); }

  // Takes block `b` of so many; they come in order. merge(a, b) adds b to a. Not inlined: it would
  // take registers from the loop over the block.
  template <class F = Merge>
  [[gnu::noinline]] void add(int64_t v, int64_t b, int64_t blocks, const Sums& block,
                             const F& merge = {}) {
    if (blocks == 1) return totals_[v] = block, void();
    const int height = std::bit_width(uint64_t(blocks));
    // Where bit l of the number of blocks is 1, level l has what 2^l of them come to.
    Sums* const level = scratch<Sums>(slot_, kVectors * height) + v * height;
    const Sums* sums = &block;
    int l = 0;
    const auto add_to_level = [&] {
      merge(level[l], *sums);
      sums = &level[l];
    };
    for (; b >> l & 1; ++l) add_to_level();
    level[l] = *sums;
    sums = &level[l];
    if (b + 1 < blocks) return;
    for (++l; blocks >> l; ++l) {
      if (blocks >> l & 1) add_to_level();
    }
    totals_[v] = *sums;
  }

 private:
  int slot_;
  std::array<Sums, kVectors> totals_;
};

// Whether the numbers of all lanes are finite.
template <bool across, class T>
LOSSOPS_FN bool are_finite(Simd<T> numbers) {
  const Simd<T> zeros = numbers - numbers;  // NaN where a number is not
  alignas(64) T all[Simd<T>::width];
  zeros.store(all);
  T sum = all[0];
  for (int i = 1; !across && i < Simd<T>::width; ++i) sum += all[i];
  return sum == 0;
}

// The exponentials of a block, summed up but for those that are 1, and how many these are.
template <class T>
struct BlockSum {
  using V = Simd<T>;
  V less, ones;

  // Adds exp(z - m), m being the block's largest, and returns it and, as `distance`, z - m.
  template <bool finite>
  LOSSOPS_FN V add(V score, V largest, V& distance) {
    distance = finite ? score - largest : above(score, largest);
    const V exponential = exp_of_small(distance);
    const auto one = score == largest;
    less = add_unless(one, less, exponential);
    ones = add_where(one, ones, V(1.0));
    return exponential;
  }
  template <class Tile>
  LOSSOPS_FN V others(const Tile& tile, const BlockSum& odd) const {
    return tile.sum(less + odd.less) + (tile.sum(ones + odd.ones) - V(1.0));
  }
};

// The largest number per lane of a block of n classes. A NaN may be lost: it is in the sum.
template <class T, bool across>
LOSSOPS_FN Simd<T> block_maximum(const Tile<T, across>& tile, int64_t v, const Numbers<T>& z,
                                 int64_t n) {
  using V = Simd<T>;
  V a(-kInfinity), b = a, c = a, d = a;
  int64_t i = 0;
  for (; i + 4 <= z.whole; i += 4) {
    a = larger(a, V::load(z.stored + tile.at(v, i)));
    b = larger(b, V::load(z.stored + tile.at(v, i + 1)));
    c = larger(c, V::load(z.stored + tile.at(v, i + 2)));
    d = larger(d, V::load(z.stored + tile.at(v, i + 3)));
  }
  for (; i < tile.steps(n); ++i) a = larger(a, V::load(z.at(i, tile.at(v, i))));
  return tile.largest(larger(larger(a, b), larger(c, d)));
}

// Logits as a loss sees them: capped and cooled.
template <class T>
class Cooling {
 public:
  Cooling(const SoftmaxProblem& problem, bool caps)
      : cap_(caps ? problem.softcap : 0), temperature_(problem.temperature) {}

  bool does_nothing() const { return cap_ == 0 && temperature_ == 1; }
  bool caps() const { return cap_ != 0; }
  // `slopes`, if any, are given the derivatives.
  void apply(T* z, int64_t n, T* slopes = nullptr) const {
    using V = Simd<T>;
    const V cap(cap_), temperature(temperature_);
    for (int64_t i = 0; i < n; i += V::width) {
      V value = V::load(z + i);
      if (cap_ != 0) {
        const V bent = tanh(value / cap);
        value = cap * bent;
        if (slopes) ((V(1.0) - bent) * (V(1.0) + bent) * cooled()).store(slopes + i);
      }
      if (temperature_ != 1) value = value / temperature;
      value.store(z + i);
    }
  }
  // The derivative where there is no cap.
  Simd<T> cooled() const { return Simd<T>(1.0 / temperature_); }

 private:
  const double cap_, temperature_;
};

}  // namespace CPU_CAPABILITY
}  // namespace lossops
