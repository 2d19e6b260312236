// The online softmax over the blocks of a tile, shared by the kernels of the family.
#pragma once

#include <array>
#include <bit>
#include <vector>

#include "cpu/softmax/tile.h"

namespace lossops {
inline namespace CPU_CAPABILITY {
namespace {

// The distance of a number to the largest; 0 if both are infinite, the limit for equal numbers.
template <class T>
LOSSOPS_FN Simd<T> above(Simd<T> number, Simd<T> largest) {
  return select(number == largest, Simd<T>(0.0), number - largest);
}

// Sums of terms exp(z - m) and of terms relative to m, for one vector of lanes. Each block has its
// own maximum m, and is rescaled to the largest so far.
//
// The sum of exponentials is kept without one of those that are 1, as those of the maximum are. If
// a class is nearly certain, log-probabilities get all their digits from the others.
template <class T>
struct RunningSums {
  using V = Simd<T>;
  V largest{-kInfinity};
  V others{-1.0};  // sum of exp(z - m), minus 1
  V entropy;       // sum of exp(z - m) (z - m)
  V mass, scores;  // sums of t and of t (z - m)

  // For log-probabilities, which are relative to 0 and sum to 1 as they are.
  static RunningSums settled() {
    RunningSums sums;
    sums.largest = sums.others = V(0.0);
    return sums;
  }
  V exponentials() const { return V(1.0) + others; }
  V log_sum() const { return log1p(others); }  // log sum exp(z - m)

  // Not inlined: two copies might fuse different multiplications with additions, and a row that
  // threads share uses another copy.
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

  // For log-probabilities, which have no maximum.
  void add_targets(const RunningSums& block) {
    mass = mass + block.mass;
    scores = scores + block.scores;
  }

  // If all numbers are -infinity they are equal, as when all are +infinity. The padding beyond
  // them, which is -infinity, does not count.
  void finish(int64_t classes) {
    const V equals = V(static_cast<double>(classes - 1)) + (others - others);  // preserves NaN
    others = select(largest == V(-kInfinity), equals, others);
  }
};

struct Merge {
  template <class Sums>
  void operator()(Sums& sums, const Sums& more) const {
    sums.add(more);
  }
};

// Accumulates the results of the blocks of a row, for each vector of lanes. They are merged in
// pairs, as a tree, so rounding errors grow with its height rather than with the number of blocks.
template <class Sums, int kVectors>
class Tree {
 public:
  // `slot`: the buffer of the thread, for this type.
  Tree(int64_t blocks, cpu::Threads threads, int slot = 0) : slot_(slot), blocks_(blocks) {
    if (threads.share()) of_blocks_.resize(blocks);
  }

  Sums& operator[](int64_t v) { return totals_[v]; }
  const Sums& operator[](int64_t v) const { return totals_[v]; }
  void fill(const Sums& sums) { totals_.fill(sums); }

  // Adds block b. Blocks must come in order, unless threads share them. merge(a, b) adds b to a.
  template <class F = Merge>
  void put(int64_t v, int64_t b, const Sums& block, const F& merge = {}) {
    if (of_blocks_.empty()) {
      add(v, b, block, merge);
    } else {
      of_blocks_[b] = block;
    }
  }
  // Has to be called after the last block, with the same `merge`.
  template <class F = Merge>
  void finish(const F& merge = {}) {
    for (size_t b = 0; b < of_blocks_.size(); ++b) add(0, b, of_blocks_[b], merge);
  }

 private:
  // Not inlined, because it would take registers from the loop over the block.
  template <class F>
  [[gnu::noinline]] void add(int64_t v, int64_t b, const Sums& block, const F& merge) {
    if (blocks_ == 1) {
      totals_[v] = block;
      return;
    }
    const int height = std::bit_width(uint64_t(blocks_));
    // If bit l of the number of blocks is 1, level l holds the result of 2^l of them.
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
    if (b + 1 < blocks_) return;
    for (++l; blocks_ >> l; ++l) {
      if (blocks_ >> l & 1) add_to_level();
    }
    totals_[v] = *sums;
  }

  int slot_;
  int64_t blocks_;
  std::array<Sums, kVectors> totals_;
  std::vector<Sums> of_blocks_;  // if threads share a row
};

// The sums of a row of logits, and the maxima of its blocks, which their exponentials are relative
// to.
template <class T, bool across>
class OnlineSoftmax : public Tree<RunningSums<T>, Tile<T, across>::kMostVectors> {
  using V = Simd<T>;

 public:
  // `slot`: the buffer of the thread for the maxima.
  OnlineSoftmax(const Tile<T, across>& tile, cpu::Threads threads, int slot)
      : OnlineSoftmax::Tree(tile.blocks(), threads, slot),
        tile_(tile),
        maxima_(scratch<T>(slot, tile.blocks() * tile.vectors() * V::width)) {}

  T* maximum(int64_t v, int64_t b) const { return maxima_ + (b * tile_.vectors() + v) * V::width; }
  // The factor that turns an exponential of block b into a probability.
  V normalizing(int64_t v, int64_t b) const {
    const RunningSums<T>& sums = (*this)[v];
    if (tile_.blocks() == 1) return V(1.0) / sums.exponentials();
    return exp(above(V::load(maximum(v, b)), sums.largest)) / sums.exponentials();
  }

 private:
  const Tile<T, across>& tile_;
  T* const maxima_;
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

// The exponentials of a block: the sum of those that are not 1, and the number of those that are.
template <class T>
struct BlockSum {
  using V = Simd<T>;
  V less, ones;

  // Adds exp(z - m), where m is the maximum of the block. Returns it and, in `distance`, z - m.
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

// The maximum per lane of a block of n classes. It may lose a NaN, which shows up in the sum.
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

// Stores the exponentials of a block of n classes and sums them up.
template <bool entropy, bool finite, class T, bool across>
LOSSOPS_FN void sum_exponentials(const Tile<T, across>& tile, int64_t v, int64_t n, Numbers<T> z,
                                 Numbers<T> e, const Ahead ahead, RunningSums<T>& block) {
  using V = Simd<T>;
  const V largest = block.largest;
  BlockSum<T> even, odd;
  V information;
  const auto step = [&](int64_t i, BlockSum<T>& sum, const T* from, T* to) LOSSOPS_INLINE_LAMBDA {
    const int64_t at = tile.at(v, i);
    if constexpr (across) ahead.prefetch(at);
    V distance;
    const V exponential = sum.template add<finite>(V::load(from + at), largest, distance);
    exponential.store(to + at);
    if constexpr (entropy) information = information + times(exponential, distance);
  };
  int64_t i = 0;
  for (const int64_t whole = std::min(z.whole, e.whole); i + 2 <= whole; i += 2) {
    step(i, even, z.stored, e.stored);
    step(i + 1, odd, z.stored, e.stored);
  }
  for (const int64_t steps = tile.steps(n); i < steps; ++i) step(i, even, z.at(i, 0), e.at(i, 0));
  block.others = even.others(tile, odd);
  if constexpr (entropy) block.entropy = tile.sum(information);
}

template <class T, bool across>
LOSSOPS_FN void sum_exponentials(const Tile<T, across>& tile, int64_t v, int64_t n, Numbers<T> z,
                                 Numbers<T> e, const Ahead ahead, RunningSums<T>& block) {
  are_finite<across>(block.largest)
      ? sum_exponentials<false, true>(tile, v, n, z, e, ahead, block)
      : sum_exponentials<false, false>(tile, v, n, z, e, ahead, block);
}

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace lossops
