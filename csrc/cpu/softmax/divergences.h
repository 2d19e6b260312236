// The divergences of two distributions: first their softmaxes, then the sums, then the gradients,
// over cached data.
#include "cpu/softmax/exponentials.h"

namespace lossops {
inline namespace CPU_CAPABILITY {
namespace {

template <class Loss, class T, bool across>
class DivergenceRows {
  using V = Simd<T>;
  static constexpr int kVectors = across ? 1 : kMostLanes / V::width;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();
  static constexpr int64_t kFewSteps = 16;  // in one partial sum

  using Running = Tree<RunningSums<T>, kVectors>;

  // One of the two distributions.
  struct Side {
    Form form;
    RowsOperand operand, gradient;
    T* logs;    // scores or log q, then derivatives; both where they are stored, if possible
    T* values;  // exponentials, then q
    T* maxima;
    bool as_stored;  // whether the scores are used in place
    Running running;
    std::array<V, kVectors> slopes;  // sum of the derivatives by log q
  };

  // The sums over a block: the loss, and its derivatives by both logarithms.
  struct BlockLoss {
    V value, by_log_q, by_log_p;

    LOSSOPS_FN void add(const BlockLoss& more) {
      value = value + more.value;
      by_log_q = by_log_q + more.by_log_q;
      by_log_p = by_log_p + more.by_log_p;
    }
  };

 public:
  DivergenceRows(const SoftmaxProblem& problem, cpu::Threads threads)
      : p_(problem),
        threads_(threads),
        stride_(cpu::rows_at_once(problem)),
        tile_(problem, stride_),
        cooling_(problem, false) {
    if (threads_.share()) shared_.resize(tile_.blocks()), shared_losses_.resize(tile_.blocks());
    const int64_t numbers = tile_.numbers() + kRowBlock;
    const int64_t maxima = tile_.blocks() * tile_.vectors() * V::width;
    T* both = scratch<T>(4, 2 * maxima);
    T *logs = scratch<T>(0, numbers), *values = scratch<T>(1, numbers);
    input_ = {p_.form, p_.input, p_.grad_input, logs, values, both, false, Running(0), {}};
    logs = scratch<T>(2, numbers), values = scratch<T>(3, numbers);
    target_ = {p_.target_form, p_.target, p_.grad_target, logs, values,
               both + maxima,  false,     Running(1),     {}};
  }

  void run(int64_t begin, int64_t end, double* sums) {
    const bool gradient = p_.grad_input.defined() || p_.grad_target.defined();
    for (int64_t first = begin; first < end; first += stride_) {
      tile_.move_to(first, std::min(stride_, end - first));
      read_rows();
      normalize(input_);
      if (target_.form == Form::labels) {
        spread_labels();
      } else {
        normalize(target_);
      }
      sum_rows(gradient);
      if (p_.grad_input.defined()) write_gradient(input_);
      if (p_.grad_target.defined()) write_gradient(target_);
      tile_.add_to_groups(value_, begin / p_.group_size, sums);
    }
  }

 private:
  void read_rows() {
    const bool labels = p_.labels.defined();
    tile_.read_scale(scale_);
    tile_.read(p_.grad_output, T(1), upstream_);
    std::fill_n(counts_, stride_, T(labels ? 0 : 1));
    std::fill_n(outside_, stride_, false);
    if (labels) tile_.read_labels(label_);
    for (int64_t l = 0; labels && l < tile_.lanes(); ++l) {
      const int64_t label = label_[l];
      if (label == p_.ignore_index) continue;
      outside_[l] = label < 0 || label >= p_.classes;
      counts_[l] = T(!outside_[l]);
    }
  }

  void spread_labels() {
    const int64_t numbers = tile_.padded(p_.classes) * stride_;
    std::fill_n(target_.values, numbers, T(0));
    std::fill_n(target_.logs, numbers, -kInfinity);
    for (int64_t l = 0; l < tile_.lanes(); ++l) {
      if (counts_[l] == 0) continue;
      target_.values[label_[l] * stride_ + l] = 1;
      target_.logs[label_[l] * stride_ + l] = 0;
    }
  }

  // The scores or logarithms of a block, and where the derivatives by them go.
  Numbers<T> logs(const Side& side, int64_t b) const {
    const int64_t n = tile_.in_block(b);
    T* const buffer = side.logs + tile_.start(b);
    if (!side.as_stored) return {buffer, buffer, tile_.steps(n)};
    return tile_.places(side.operand, b * tile_.block(), n, buffer);
  }
  Numbers<T> slopes(const Side& side, int64_t b) const {
    const int64_t n = tile_.in_block(b);
    T* const buffer = side.logs + tile_.start(b);
    return tile_.places(side.gradient, b * tile_.block(), n, buffer);
  }

  // Reads a side; for logits, computes the exponentials and their sum.
  void normalize(Side& side) {
    const bool logits = side.form == Form::logits;
    side.as_stored = side.form == Form::log_probs || (logits && cooling_.does_nothing());
    threads_.each(tile_.blocks(), [&](int64_t b) { normalize(side, b); });
    if (!logits) return;
    for (int64_t b = 0; threads_.share() && b < tile_.blocks(); ++b) take(side, b, 0, shared_[b]);
    for (int64_t v = 0; v < tile_.vectors(); ++v) level(side, v);
  }

  void take(Side& side, int64_t b, int64_t v, const RunningSums<T>& block) {
    side.running.add(v, b, tile_.blocks(), block);
  }

  void normalize(Side& side, int64_t b) {
    const bool logits = side.form == Form::logits;
    const int64_t c = b * tile_.block(), n = tile_.in_block(b);
    T *buffer = side.logs + tile_.start(b), *values = side.values + tile_.start(b);
    if (side.as_stored) {
      tile_.read(side.operand, c, n, buffer, -kInfinity);
    } else if (logits) {
      tile_.load(side.operand, c, n, buffer, -kInfinity);
      cooling_.apply(buffer, tile_.padded(n) * stride_);
    } else {
      tile_.load(side.operand, c, n, values, T(0));
    }
    const Numbers<T> scores = logs(side, b);
    for (int64_t v = 0; v < tile_.vectors(); ++v) {
      if (!logits) {
        complete(side.form, v, n, scores, values);
        continue;
      }
      RunningSums<T> block;
      block.largest = block_maximum(tile_, v, scores, n);
      const Ahead ahead = tile_.ahead(side.operand, c + n);
      block.others = are_finite<across>(block.largest)
                         ? exponentials<true>(v, n, scores, block.largest, ahead, values)
                         : exponentials<false>(v, n, scores, block.largest, ahead, values);
      block.largest.store(side.maxima + (b * tile_.vectors() + v) * V::width);
      if (threads_.share()) {
        shared_[b] = block;
      } else {
        take(side, b, v, block);
      }
    }
  }

  // If all numbers of a row are -infinity they are equal, so zeros replace them. The padding, also
  // -infinity, stays as it is.
  void level(Side& side, int64_t v) {
    RunningSums<T>& r = side.running[v];
    alignas(64) T largest[V::width], others[V::width];
    r.largest.store(largest);
    r.others.store(others);
    const int lanes = across ? 1 : V::width;
    for (int k = 0; k < lanes; ++k) {
      if (largest[k] != -kInfinity || others[k] != others[k]) continue;
      side.as_stored = false;
      const int64_t lane = v * V::width + k, numbers = tile_.padded(p_.classes);
      for (int64_t c = 0; c < numbers; ++c) {
        side.logs[c * stride_ + lane] = c < p_.classes ? 0 : -kInfinity;
        side.values[c * stride_ + lane] = c < p_.classes ? 1 : 0;
      }
      for (int64_t b = 0; b < tile_.blocks(); ++b) {
        T* const maximum = side.maxima + (b * tile_.vectors() + v) * V::width;
        std::fill_n(maximum + k, across ? V::width : 1, T(0));
      }
      std::fill_n(largest + k, across ? V::width : 1, T(0));
      std::fill_n(others + k, across ? V::width : 1, static_cast<T>(p_.classes - 1));
    }
    r.largest = V::load(largest);
    r.others = V::load(others);
  }

  // Keeps the exponentials of a block. Returns their sum, minus one that is 1.
  template <bool finite>
  V exponentials(int64_t v, int64_t n, Numbers<T> scores, V largest, Ahead ahead, T* to) const {
    BlockSum<T> even, odd;
    const auto step = [&](int64_t i, BlockSum<T>& sum, const T* from) LOSSOPS_INLINE_LAMBDA {
      const int64_t at = tile_.at(v, i);
      if constexpr (across) ahead.prefetch(at);
      V distance;
      sum.template add<finite>(V::load(from + at), largest, distance).store(to + at);
    };
    int64_t i = 0;
    for (; i + 2 <= scores.whole; i += 2) {
      step(i, even, scores.stored);
      step(i + 1, odd, scores.stored);
    }
    for (; i < tile_.steps(n); ++i) step(i, even, scores.at(i, 0));
    return even.others(tile_, odd);
  }

  // Computes probabilities from log-probabilities, or the other way round.
  void complete(Form form, int64_t v, int64_t n, Numbers<T> logs, T* values) const {
    for (int64_t i = 0; i < tile_.steps(n); ++i) {
      const int64_t at = tile_.at(v, i);
      T* const log_at = logs.at(i, at);
      if (form == Form::probs) {
        log(V::load(values + at)).store(log_at);
      } else {
        exp(V::load(log_at)).store(values + at);
      }
    }
  }

  // Turns a block of a side into a distribution.
  struct Normalizing {
    bool logits;
    V largest, log_sum, factor;

    LOSSOPS_FN V log_of(V score) const { return logits ? above(score, largest) - log_sum : score; }
    LOSSOPS_FN V of(V exponential) const { return logits ? exponential * factor : exponential; }
  };
  Normalizing normalizing(const Side& side, int64_t v, int64_t b) const {
    if (side.form != Form::logits) return {false, {}, {}, {}};
    const RunningSums<T>& r = side.running[v];
    const V maximum = V::load(side.maxima + (b * tile_.vectors() + v) * V::width);
    return {true, r.largest, r.log_sum(), exp(above(maximum, r.largest)) / r.exponentials()};
  }

  // Computes the loss, and replaces the distributions by what their gradients are made of.
  void sum_rows(bool gradient) {
    const auto take = [&](int64_t b, int64_t v, const BlockLoss& block) {
      sums_.add(v, b, tile_.blocks(), block);
    };
    threads_.each(tile_.blocks(), [&](int64_t b) {
      for (int64_t v = 0; v < tile_.vectors(); ++v) {
        const BlockLoss block = p_.grad_target.defined() ? sum_block<true, true>(b, v)
                                : gradient               ? sum_block<true, false>(b, v)
                                                         : sum_block<false, false>(b, v);
        if (threads_.share()) {
          shared_losses_[b] = block;
        } else {
          take(b, v, block);
        }
      }
    });
    for (int64_t b = 0; threads_.share() && b < tile_.blocks(); ++b) take(b, 0, shared_losses_[b]);
    for (int64_t v = 0; v < tile_.vectors(); ++v) {
      tile_.put(sums_[v].value, loss_, v);
      input_.slopes[v] = sums_[v].by_log_q;
      target_.slopes[v] = sums_[v].by_log_p;
    }
    for (int64_t l = 0; l < tile_.lanes(); ++l) {
      const bool counts = counts_[l] > 0;
      value_[l] = outside_[l] ? std::numeric_limits<double>::quiet_NaN() : counts ? loss_[l] : 0;
    }
    tile_.write(p_.value, value_);
  }

  template <bool by_input, bool by_target>
  BlockLoss sum_block(int64_t b, int64_t v) {
    const int64_t n = tile_.in_block(b);
    const Normalizing of_input = normalizing(input_, v, b), of_target = normalizing(target_, v, b);
    const Numbers<T> log_q = logs(input_, b), log_p = logs(target_, b);
    const Numbers<T> slope = by_input ? slopes(input_, b) : Numbers<T>();
    const Numbers<T> target_slope = by_target ? slopes(target_, b) : Numbers<T>();
    T *q = input_.values + tile_.start(b), *p = target_.values + tile_.start(b);
    const bool input_probs = input_.form == Form::probs, target_probs = target_.form == Form::probs;
    BlockLoss sums;
    for (int64_t first = 0; first < tile_.steps(n); first += kFewSteps) {
      BlockLoss few;
      const int64_t end = std::min(first + kFewSteps, tile_.steps(n));
      for (int64_t i = first; i < end; ++i) {
        const int64_t at = tile_.at(v, i);
        const V q_value = of_input.of(V::load(q + at)), p_value = of_target.of(V::load(p + at));
        const V q_log = of_input.log_of(V::load(log_q.at(i, at)));
        const V p_log = of_target.log_of(V::load(log_p.at(i, at)));
        const DivergenceJet<V> f = Loss::at(p_value, p_log, q_value, q_log);
        few.value = few.value + f.value;
        if constexpr (by_input) {
          if constexpr (across) slope.prefetch(at + kRowBlock);
          few.by_log_q = few.by_log_q + f.by_log_q;
          (input_probs ? f.by_q : f.by_log_q).store(slope.at(i, at));
          q_value.store(q + at);
        }
        if constexpr (by_target) {
          few.by_log_p = few.by_log_p + f.by_log_p;
          (target_probs ? f.by_p : f.by_log_p).store(target_slope.at(i, at));
          p_value.store(p + at);
        }
      }
      sums.add(few);
    }
    return {tile_.sum(sums.value), tile_.sum(sums.by_log_q), tile_.sum(sums.by_log_p)};
  }

  void write_gradient(const Side& side) const {
    threads_.each(tile_.blocks(), [&](int64_t b) { write_gradient(side, b); });
  }

  void write_gradient(const Side& side, int64_t b) const {
    const bool logits = side.form == Form::logits;
    const int64_t n = tile_.in_block(b);
    const Numbers<T> slope = slopes(side, b);
    const T* const value = side.values + tile_.start(b);
    for (int64_t v = 0; v < tile_.vectors(); ++v) {
      V scale = tile_.lane(scale_, v);
      if (logits) scale = scale * cooling_.cooled();
      const V upstream = tile_.lane(upstream_, v), sum = side.slopes[v];
      const auto counts = tile_.lane(counts_, v) > V(0.0);
      for (int64_t i = 0; i < tile_.steps(n); ++i) {
        const int64_t at = tile_.at(v, i);
        T* const slope_at = slope.at(i, at);
        V by_number = V::load(slope_at);
        if (logits) by_number = by_number - V::load(value + at) * sum;
        select(counts, scale * by_number * upstream, V(0.0)).store(slope_at);
      }
    }
    if (slope.stored == slope.buffer) {
      tile_.store(side.gradient, b * tile_.block(), n, slope.buffer);
    } else {
      tile_.write_rest(slope, n);
    }
  }

  const SoftmaxProblem& p_;
  const cpu::Threads threads_;
  const int64_t stride_;
  Tile<T, across> tile_;
  const Cooling<T> cooling_;
  Side input_, target_;
  Tree<BlockLoss, kVectors> sums_;
  // Per block, if threads share a row.
  std::vector<RunningSums<T>> shared_;
  std::vector<BlockLoss> shared_losses_;

  // Per row.
  int64_t label_[kMostLanes];
  bool outside_[kMostLanes];
  double value_[kMostLanes];
  alignas(64) T counts_[kMostLanes], scale_[kMostLanes], upstream_[kMostLanes], loss_[kMostLanes];
};

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace lossops
