// One of the two distributions of a divergence, and the gradient through it.
#pragma once

#include "cpu/softmax/rows.h"

namespace lossops {
inline namespace CPU_CAPABILITY {
namespace {

template <class T, bool across>
class Distribution {
  using V = Simd<T>;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();

 public:
  // `number`, 0 or 1, selects buffers of the thread.
  Distribution(const SoftmaxProblem& problem, const Tile<T, across>& tile, cpu::Threads threads,
               Form form, const RowsOperand& operand, const RowsOperand& gradient, int number)
      : p_(problem),
        tile_(tile),
        threads_(threads),
        form_(form),
        operand_(operand),
        gradient_(gradient),
        logs_(scratch<T>(2 * number, tile.numbers() + kRowBlock)),
        values_(scratch<T>(2 * number + 1, tile.numbers() + kRowBlock)),
        softmax_(tile, threads, 4 + number) {}

  bool has_gradient() const { return gradient_.defined(); }
  bool of_probabilities() const { return form_ == Form::probs; }

  // Reads a tile; for logits, computes the exponentials and their sums.
  void read(const PerRow<T>& row) {
    as_stored_ = form_ == Form::log_probs || (form_ == Form::logits && !scores_.cooled());
    if (form_ == Form::labels) return spread_labels(row);
    const bool logits = form_ == Form::logits;
    threads_.each(tile_.blocks(), [&](int64_t b) { logits ? sum_block(b) : complete_block(b); });
    if (!logits) return;
    softmax_.finish();
    for (int64_t v = 0; v < tile_.vectors(); ++v) level(v);
  }

  // The scores or logarithms of a block, and where the derivatives by them go: both where they are
  // stored, if possible.
  Numbers<T> logs(int64_t b) const {
    T* const buffer = logs_ + tile_.start(b);
    const int64_t n = tile_.in_block(b);
    if (!as_stored_) return {buffer, buffer, tile_.steps(n)};
    return tile_.places(operand_, tile_.first_class(b), n, buffer);
  }
  Numbers<T> slopes(int64_t b) const {
    T* const buffer = logs_ + tile_.start(b);
    return tile_.places(gradient_, tile_.first_class(b), tile_.in_block(b), buffer);
  }
  // The exponentials of a block; once it has been normalized, the probabilities.
  T* values(int64_t b) const { return values_ + tile_.start(b); }

  // Turns a block into a distribution.
  struct Normalizing {
    bool logits;
    V largest, log_sum, factor;

    LOSSOPS_FN V log_of(V score) const { return logits ? above(score, largest) - log_sum : score; }
    LOSSOPS_FN V of(V exponential) const { return logits ? exponential * factor : exponential; }
  };
  Normalizing normalizing(int64_t v, int64_t b) const {
    if (form_ != Form::logits) return {false, {}, {}, {}};
    const RunningSums<T>& sums = softmax_[v];
    return {true, sums.largest, sums.log_sum(), softmax_.normalizing(v, b)};
  }

  // Turns the derivatives in slopes() into the gradient. sum_of(v) is their sum.
  template <class F>
  void write_gradient(const PerRow<T>& row, const F& sum_of) const {
    if (!gradient_.defined()) return;
    threads_.each(tile_.blocks(), [&](int64_t b) {
      const Numbers<T> slope = slopes(b);
      for (int64_t v = 0; v < tile_.vectors(); ++v) finish_slopes(row, v, b, sum_of(v), slope);
      if (slope.stored == slope.buffer) {
        tile_.store(gradient_, tile_.first_class(b), tile_.in_block(b), slope.buffer);
      } else {
        tile_.write_rest(slope, tile_.in_block(b));
      }
    });
  }

 private:
  void spread_labels(const PerRow<T>& row) {
    const int64_t numbers = tile_.padded(p_.classes) * tile_.stride();
    std::fill_n(values_, numbers, T(0));
    std::fill_n(logs_, numbers, -kInfinity);
    for (int64_t l = 0; l < tile_.lanes(); ++l) {
      if (row.counts[l] == 0) continue;
      values_[row.label[l] * tile_.stride() + l] = 1;
      logs_[row.label[l] * tile_.stride() + l] = 0;
    }
  }

  // Computes probabilities from log-probabilities, or the other way round.
  void complete_block(int64_t b) {
    T* const values = this->values(b);
    const int64_t n = tile_.in_block(b);
    const bool probabilities = of_probabilities();
    if (probabilities) {
      tile_.load(operand_, tile_.first_class(b), n, values, T(0));
    } else {
      scores_.read(b, as_stored_);
    }
    const Numbers<T> logs = this->logs(b);
    for (int64_t v = 0; v < tile_.vectors(); ++v) {
      for (int64_t i = 0, steps = tile_.steps(n); i < steps; ++i) {
        const int64_t at = tile_.at(v, i);
        T* const log_at = logs.at(i, at);
        if (probabilities) {
          log(V::load(values + at)).store(log_at);
        } else {
          exp(V::load(log_at)).store(values + at);
        }
      }
    }
  }

  void sum_block(int64_t b) {
    T* const values = this->values(b);
    const int64_t n = tile_.in_block(b);
    const Numbers<T> scores = scores_.read(b, as_stored_);
    for (int64_t v = 0; v < tile_.vectors(); ++v) {
      RunningSums<T> block;
      block.largest = block_maximum(tile_, v, scores, n);
      sum_exponentials(tile_, v, n, scores, Numbers<T>{values, values, tile_.steps(n)},
                       scores_.ahead(b), block);
      block.largest.store(softmax_.maximum(v, b));
      softmax_.put(v, b, block);
    }
  }

  // If all numbers of a row are -infinity they are equal, so zeros replace them. The padding, also
  // -infinity, stays as it is.
  void level(int64_t v) {
    RunningSums<T>& sums = softmax_[v];
    alignas(64) T largest[V::width], others[V::width];
    sums.largest.store(largest);
    sums.others.store(others);
    const int lanes = across ? 1 : V::width, same = across ? V::width : 1;
    for (int k = 0; k < lanes; ++k) {
      if (largest[k] != -kInfinity || others[k] != others[k]) continue;
      as_stored_ = false;
      const int64_t lane = v * V::width + k, numbers = tile_.padded(p_.classes);
      for (int64_t c = 0; c < numbers; ++c) {
        logs_[c * tile_.stride() + lane] = c < p_.classes ? 0 : -kInfinity;
        values_[c * tile_.stride() + lane] = c < p_.classes ? 1 : 0;
      }
      for (int64_t b = 0; b < tile_.blocks(); ++b) {
        std::fill_n(softmax_.maximum(v, b) + k, same, T(0));
      }
      std::fill_n(largest + k, same, T(0));
      std::fill_n(others + k, same, static_cast<T>(p_.classes - 1));
    }
    sums.largest = V::load(largest);
    sums.others = V::load(others);
  }

  void finish_slopes(const PerRow<T>& row, int64_t v, int64_t b, V sum, Numbers<T> slope) const {
    const bool logits = form_ == Form::logits;
    const T* const value = values(b);
    const V scale = tile_.lane(row.scale, v) * scores_.slopes(0);
    const V upstream = tile_.lane(row.upstream, v);
    const auto counts = tile_.lane(row.counts, v) > V(0.0);
    for (int64_t i = 0, steps = tile_.steps_in(b); i < steps; ++i) {
      const int64_t at = tile_.at(v, i);
      T* const slope_at = slope.at(i, at);
      V by_number = V::load(slope_at);
      if (logits) by_number = by_number - V::load(value + at) * sum;
      select(counts, scale * by_number * upstream, V(0.0)).store(slope_at);
    }
  }

  const SoftmaxProblem& p_;
  const Tile<T, across>& tile_;
  const cpu::Threads threads_;
  const Form form_;
  const RowsOperand &operand_, &gradient_;
  T* const logs_;    // scores or logarithms, then derivatives by them
  T* const values_;  // exponentials, then probabilities
  const Scores<T, across> scores_{p_, tile_, operand_, form_, logs_};
  OnlineSoftmax<T, across> softmax_;
  bool as_stored_ = false;  // whether the scores are used where they are stored
};

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace lossops
