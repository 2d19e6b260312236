// The label losses: one pass for the sums of a row, and one over cached data for its gradient.
#include "cpu/softmax/exponentials.h"

namespace lossops {
inline namespace CPU_CAPABILITY {
namespace {

template <class Loss, class T, bool across>
class LabelRows {
  using V = Simd<T>;
  static constexpr int kVectors = across ? 1 : kMostLanes / V::width;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();

 public:
  LabelRows(const SoftmaxProblem& problem, cpu::Threads threads)
      : p_(problem),
        threads_(threads),
        stride_(cpu::rows_at_once(problem)),
        tile_(problem, stride_),
        cooling_(problem, true),
        logits_(problem.form == Form::logits),
        labels_(problem.labels.defined()),
        soft_(!labels_ || problem.label_smoothing != 0),
        weighs_(problem.class_weight.defined() || problem.label_smoothing != 0),
        // A gradient written over the input may also overwrite the target.
        copies_targets_(weighs_ || problem.grad_input.data == problem.input.data),
        gradient_(problem.grad_input.defined() || problem.grad_target.defined()),
        plain_(logits_ && !soft_ && cooling_.does_nothing() && !problem.grad_entropy.defined()),
        keeps_scores_(problem.grad_target.defined() ||
                      (gradient_ && logits_ && problem.grad_entropy.defined())) {
    for (int i = 0; i < kMaxParams; ++i) params_[i] = V(problem.params[i]);
    const int64_t numbers = tile_.numbers() + kRowBlock;
    if (keeps_scores_) scores_ = scratch<T>(0, numbers);
    if (gradient_) weights_ = scratch<T>(1, numbers);
    if (!labels_) targets_ = scratch<T>(2, numbers);
    if (gradient_ && logits_ && cooling_.caps()) slopes_ = scratch<T>(6, numbers);
    maxima_ = scratch<T>(4, tile_.blocks() * tile_.vectors() * V::width);
    if (threads_.share()) shared_.resize(tile_.blocks());
    if (soft_) read_class_weights();
  }

  void run(int64_t begin, int64_t end, double* sums) {
    for (int64_t first = begin; first < end; first += stride_) {
      tile_.move_to(first, std::min(stride_, end - first));
      read_rows();
      // Of a row of log-probabilities, only the label's is read.
      if (logits_ || soft_) {
        sum_rows();
      } else {
        running_.fill(RunningSums<T>::settled());
        for (int64_t l = 0; l < tile_.lanes(); ++l) {
          if (counts_[l] > 0) score_[l] = tile_.number(p_.input, l, label_[l]);
        }
      }
      finish_rows();
      if (gradient_) write_gradients();
      tile_.add_to_groups(value_, begin / p_.group_size, sums);
    }
  }

 private:
  // The factor on a soft target, per class; with labels, what smoothing gives to every class.
  void read_class_weights() {
    by_class_ = scratch<T>(3, p_.classes + kRowBlock);
    const double factor = labels_ ? p_.label_smoothing / static_cast<double>(p_.classes) : 1;
    for (int64_t c = 0; c < p_.classes; ++c) {
      by_class_[c] = static_cast<T>(factor * tile_.class_weight(c));
    }
    std::fill_n(by_class_ + p_.classes, kRowBlock, T(0));
  }

  void read_rows() {
    tile_.read_scale(exact_scale_);
    std::copy_n(exact_scale_, stride_, scale_);
    tile_.read(p_.grad_output, T(p_.grad_lse.defined() || p_.grad_entropy.defined() ? 0 : 1),
               upstream_);
    tile_.read(p_.grad_lse, T(0), grad_lse_);
    tile_.read(p_.grad_entropy, T(0), grad_entropy_);
    std::fill_n(score_, stride_, T(0));
    std::fill_n(weight_, stride_, T(0));
    std::fill_n(counts_, stride_, T(labels_ ? 0 : 1));
    std::fill_n(outside_, stride_, false);
    if (!labels_) return;
    tile_.read_labels(label_);
    for (int64_t l = 0; l < tile_.lanes(); ++l) {
      const int64_t label = label_[l];
      if (label == p_.ignore_index) continue;
      outside_[l] = label < 0 || label >= p_.classes;
      if (outside_[l]) continue;
      counts_[l] = 1;
      exact_weight_[l] = (1 - p_.label_smoothing) * tile_.class_weight(label);
      weight_[l] = static_cast<T>(exact_weight_[l]);
    }
  }

  // Calls f(lane, class, place in the block) for the labels in a block of n classes from c on.
  template <class F>
  void each_label(int64_t c, int64_t n, const F& f) const {
    if (!labels_) return;
    for (int64_t l = 0; l < tile_.lanes(); ++l) {
      const int64_t in_block = label_[l] - c;
      if (counts_[l] > 0 && in_block >= 0 && in_block < n) f(l, label_[l], in_block * stride_ + l);
    }
  }

  // The soft targets, in place or in a buffer.
  Numbers<T> targets(int64_t b) const {
    const int64_t n = tile_.in_block(b);
    T* const buffer = targets_ + tile_.start(b);
    if (labels_ || copies_targets_) return {buffer, buffer, tile_.steps(n)};
    return tile_.places(p_.target, b * tile_.block(), n, buffer);
  }
  void read_targets(int64_t c, int64_t n, T* t) {
    if (!copies_targets_) return tile_.read(p_.target, c, n, t, T(0)), void();
    tile_.load(p_.target, c, n, t, T(0));
    if (!weighs_) return;
    const V keep(1 - p_.label_smoothing), spread(p_.label_smoothing / double(p_.classes));
    for (int64_t v = 0; v < tile_.vectors(); ++v) {
      for (int64_t i = 0; i < tile_.steps(n); ++i) {
        T* const at = t + tile_.at(v, i);
        (weight_at(c, i) * (keep * V::load(at) + spread)).store(at);
      }
    }
  }

  // The i-th step of by_class_ in the block that starts at class c.
  V weight_at(int64_t c, int64_t i) const {
    return across ? V::load(by_class_ + c + i * V::width) : V(double(by_class_[c + i]));
  }
  // The i-th step of the soft targets there.
  V target_at(const Numbers<T>& t, int64_t v, int64_t c, int64_t i) const {
    return labels_ ? weight_at(c, i) : V::load(t.at(i, tile_.at(v, i)));
  }

  void sum_rows() {
    threads_.each(tile_.blocks(), [this](int64_t b) { sum_block(b); });
    for (int64_t b = 0; threads_.share() && b < tile_.blocks(); ++b) take(b, 0, shared_[b]);
  }

  void take(int64_t b, int64_t v, const RunningSums<T>& block) {
    running_.add(v, b, tile_.blocks(), block, [this](auto& sums, const auto& more) {
      logits_ ? sums.add(more) : sums.add_targets(more);
    });
  }

  void sum_block(int64_t b) {
    const int64_t c = b * tile_.block(), n = tile_.in_block(b);
    T* const buffer =
        keeps_scores_ ? scores_ + tile_.start(b) : scratch<T>(0, tile_.block() * stride_);
    Numbers<T> z{buffer, buffer, tile_.steps(n)};
    if (cooling_.does_nothing() && !keeps_scores_) {
      z = tile_.read(p_.input, c, n, buffer, -kInfinity);
    } else {
      tile_.load(p_.input, c, n, buffer, -kInfinity);
      if (logits_ && !cooling_.does_nothing()) {
        cooling_.apply(buffer, tile_.padded(n) * stride_,
                       slopes_ ? slopes_ + tile_.start(b) : slopes_);
        tile_.pad_block(n, buffer, -kInfinity);  // the cap made them finite
      }
    }
    const Ahead ahead = tile_.ahead(p_.input, c + n);
    each_label(c, n, [&](int64_t l, int64_t, int64_t place) { score_[l] = z.stored[place]; });
    const Numbers<T> e = exponentials(b);
    if (!labels_) read_targets(c, n, targets_ + tile_.start(b));
    for (int64_t v = 0; v < tile_.vectors(); ++v) {
      RunningSums<T> block = RunningSums<T>::settled();
      if (logits_) block.largest = block_maximum(tile_, v, z, n);
      // First, because the exponentials may overwrite the scores.
      if (soft_) sum_targets(v, b, z, n, block);
      if (logits_) {
        if (p_.entropy.defined() || p_.grad_entropy.defined()) {
          sum_exponentials<true, false>(v, z, n, e, ahead, block);
        } else if (are_finite<across>(block.largest)) {
          sum_exponentials<false, true>(v, z, n, e, ahead, block);
        } else {
          sum_exponentials<false, false>(v, z, n, e, ahead, block);
        }
      }
      block.largest.store(maximum(b, v));
      if (threads_.share()) {
        shared_[b] = block;
      } else {
        take(b, v, block);
      }
    }
  }

  T* maximum(int64_t b, int64_t v) const { return maxima_ + (b * tile_.vectors() + v) * V::width; }

  // Where the exponentials of a block are kept until they become its gradient: where that is
  // stored, if one is wanted.
  Numbers<T> exponentials(int64_t b) const {
    const int64_t n = tile_.in_block(b);
    T* const buffer =
        gradient_ ? weights_ + tile_.start(b) : scratch<T>(1, tile_.block() * stride_);
    return tile_.places(p_.grad_input, b * tile_.block(), n, buffer);
  }

  template <bool entropy, bool finite>
  void sum_exponentials(int64_t v, Numbers<T> z, int64_t n, Numbers<T> e, const Ahead ahead,
                        RunningSums<T>& block) const {
    const V largest = block.largest;
    BlockSum<T> even, odd;
    V information;
    const int64_t steps = tile_.steps(n);
    const auto step = [&](int64_t i, BlockSum<T>& sum, const T* from, T* to) LOSSOPS_INLINE_LAMBDA {
      const int64_t at = tile_.at(v, i);
      if constexpr (across) ahead.prefetch(at);
      V distance;
      const V exponential = sum.template add<finite>(V::load(from + at), largest, distance);
      exponential.store(to + at);
      if constexpr (entropy) information = information + times(exponential, distance);
    };
    int64_t i = 0;
    const int64_t whole = std::min(z.whole, e.whole);
    for (; i + 2 <= whole; i += 2) {
      step(i, even, z.stored, e.stored);
      step(i + 1, odd, z.stored, e.stored);
    }
    for (; i < steps; ++i) step(i, even, z.at(i, 0), e.at(i, 0));
    block.others = even.others(tile_, odd);
    if constexpr (entropy) block.entropy = tile_.sum(information);
  }

  void sum_targets(int64_t v, int64_t b, Numbers<T> z, int64_t n, RunningSums<T>& block) const {
    const int64_t c = b * tile_.block();
    const Numbers<T> t = targets(b);
    V mass[4], scores[4];  // several, so that fewer roundings add up
    for (int64_t i = 0; i < tile_.steps(n); ++i) {
      const V target = target_at(t, v, c, i);
      if (across && !labels_) t.prefetch(i * V::width + kRowBlock);
      V &sum = mass[i % 4], &of_scores = scores[i % 4];
      sum = sum + target;
      of_scores = of_scores + times(target, above(V::load(z.at(i, tile_.at(v, i))), block.largest));
    }
    block.mass = tile_.sum((mass[0] + mass[1]) + (mass[2] + mass[3]));
    block.scores = tile_.sum((scores[0] + scores[1]) + (scores[2] + scores[3]));
  }

  // Turns the sums into the loss and into what the gradient is made of.
  void finish_rows() {
    alignas(64) T lse_out[kMostLanes], entropy_out[kMostLanes], accuracy_out[kMostLanes];
    for (int64_t v = 0; v < tile_.vectors(); ++v) {
      RunningSums<T>& r = running_[v];
      if (logits_) r.finish(p_.classes);
      const V log_sum = logits_ ? r.log_sum() : V(0.0);
      const V lse = r.largest + log_sum;
      const V distance = above(tile_.lane(score_, v), r.largest), weight = tile_.lane(weight_, v);
      V loss, slope, soft_mass;
      const V information = log_sum - distance;  // -log of the label's probability
      if (labels_) {
        const LabelJet<V> f = Loss::at(information, params_.data());
        loss = times(weight, f.value);
        slope = weight * f.first;
        if (gradient_) tile_.put(f.first, first_, v);
      }
      if (soft_) {
        loss = loss + (r.mass * log_sum - r.scores);
        soft_mass = r.mass;
      }
      if (p_.z_loss != 0) {
        loss = loss + V(p_.z_loss) * lse * lse;
        soft_mass = soft_mass + V(2 * p_.z_loss) * lse;
      }
      if (labels_ && gradient_) {
        tile_.put(exp(-information), probability_, v);
        tile_.put(less_one(information), less_one_, v);
      }
      const V entropy = log_sum - r.entropy / r.exponentials();
      tile_.put(loss, loss_, v);
      tile_.put(slope, slope_, v);
      tile_.put(soft_mass, soft_mass_, v);
      tile_.put(lse, lse_out, v);
      tile_.put(entropy, entropy_out, v);
      // The information is NaN if a class is.
      const V hit = select(distance >= V(0.0), V(1.0), V(0.0));
      tile_.put(select(information == information, hit, V(0.0)), accuracy_out, v);
    }
    for (int64_t l = 0; l < tile_.lanes(); ++l) {
      const bool counts = counts_[l] > 0;
      if (counts && labels_ && gradient_) own_slope_[l] = own_slope(l);
      value_[l] = outside_[l] ? std::numeric_limits<double>::quiet_NaN() : counts ? loss_[l] : 0;
      if (!counts) accuracy_out[l] = 0;
    }
    std::copy_n(entropy_out, stride_, entropy_);
    tile_.write(p_.value, value_);
    tile_.write(p_.lse, lse_out);
    tile_.write(p_.entropy, entropy_out);
    tile_.write(p_.accuracy, accuracy_out);
  }

  // The derivative by the label's own score, often the largest of a row. Computed without
  // cancellation if its probability is nearly 1, and rounded once before grad_output multiplies it.
  T own_slope(int64_t l) const {
    // For a probability up to 1/2, q - 1 is exact in double.
    const double less_one = probability_[l] < T(0.5) ? double(probability_[l]) - 1 : less_one_[l];
    double slope = exact_weight_[l] * first_[l] * less_one;
    if (soft_) slope -= double(by_class_[label_[l]]);
    if (soft_mass_[l] != 0) slope += double(soft_mass_[l]) * probability_[l];
    const T scaled = static_cast<T>(exact_scale_[l] * slope) * upstream_[l];
    return p_.grad_lse.defined() ? scaled + grad_lse_[l] * probability_[l] : scaled;
  }

  void write_gradients() {
    threads_.each(tile_.blocks(), [this](int64_t b) { write_gradient(b); });
  }

  void write_gradient(int64_t b) const {
    const int64_t c = b * tile_.block(), n = tile_.in_block(b);
    if (p_.grad_target.defined()) {
      T* buffer = scratch<T>(5, tile_.padded(n) * stride_);
      for (int64_t v = 0; v < tile_.vectors(); ++v) target_gradient(v, b, n, buffer);
      tile_.store(p_.grad_target, c, n, buffer);
    }
    if (!p_.grad_input.defined()) return;
    const Numbers<T> e = exponentials(b);
    const bool in_place = e.stored != e.buffer;
    if (!logits_ && !soft_) {
      std::memset(e.stored, 0, (in_place ? n : tile_.padded(n) * stride_) * sizeof(T));
    } else {
      for (int64_t v = 0; v < tile_.vectors(); ++v) {
        plain_ ? plain_gradient(v, b, n, e) : any_gradient(v, b, n, e);
      }
    }
    if (in_place && (logits_ || soft_)) tile_.write_rest(e, n);
    each_label(c, n, [&](int64_t l, int64_t label, int64_t place) {
      e.stored[place] = label_gradient(l, e.stored[place], place, b);
    });
    if (!in_place) tile_.store(p_.grad_input, c, n, e.buffer);
  }

  // The factor that turns an exponential of block b into a probability.
  V normalizing(int64_t v, int64_t b) const {
    if (!logits_) return V(1.0);
    if (tile_.blocks() == 1) return V(1.0) / running_[v].exponentials();
    return exp(above(V::load(maximum(b, v)), running_[v].largest)) / running_[v].exponentials();
  }

  // Labels without anything else: a multiple of the exponentials. grad_output multiplies last, as
  // when it rescales a gradient of the forward pass, so the results are bitwise identical.
  void plain_gradient(int64_t v, int64_t b, int64_t n, Numbers<T> e) const {
    const V probability = normalizing(v, b), upstream = tile_.lane(upstream_, v);
    const V mass = tile_.lane(slope_, v) + tile_.lane(soft_mass_, v);
    const V factor = probability * mass * tile_.lane(scale_, v);
    const V by_lse = probability * tile_.lane(grad_lse_, v);
    const auto counts = tile_.lane(counts_, v) > V(0.0);
    const bool has_lse = p_.grad_lse.defined();
    const auto gradient = [&](V exponential) LOSSOPS_INLINE_LAMBDA {
      const V gradient = select(counts, factor * exponential * upstream, V(0.0));
      return has_lse ? gradient + by_lse * exponential : gradient;
    };
    for (int64_t i = 0; i < tile_.steps(n); ++i) {
      T* const at = e.at(i, tile_.at(v, i));
      gradient(V::load(at)).store(at);
    }
  }

  void any_gradient(int64_t v, int64_t b, int64_t n, Numbers<T> e) const {
    const T* z = keeps_scores_ ? scores_ + tile_.start(b) : nullptr;
    const Numbers<T> t = targets(b);
    const int64_t c = b * tile_.block();
    const V probability = normalizing(v, b), upstream = tile_.lane(upstream_, v);
    const V mass = (tile_.lane(slope_, v) + tile_.lane(soft_mass_, v)) * tile_.lane(scale_, v);
    const V by_lse = tile_.lane(grad_lse_, v), by_entropy = tile_.lane(grad_entropy_, v);
    const V scale = tile_.lane(scale_, v);
    const V entropy = tile_.lane(entropy_, v);
    const V largest = running_[v].largest;
    const V log_sum = logits_ ? running_[v].log_sum() : V();
    const bool has_further = p_.grad_lse.defined() || p_.grad_entropy.defined();
    const auto counts = tile_.lane(counts_, v) > V(0.0);
    for (int64_t i = 0; i < tile_.steps(n); ++i) {
      const int64_t at = tile_.at(v, i);
      const V score = z ? V::load(z + at) : V();
      V gradient, further;
      if (logits_) {
        const V q = V::load(e.at(i, at)) * probability;
        gradient = mass * q;
        if (has_further) {
          // A common offset of all logits costs no digits.
          const V log_q = above(score, largest) - log_sum;
          further = q * by_lse - by_entropy * times(q, log_q + entropy);
        }
      }
      if (soft_) gradient = gradient - scale * target_at(t, v, c, i);
      gradient = gradient * upstream;
      const V chain = slope_at(tile_.start(b) + at);
      gradient = select(counts, gradient * chain, V(0.0));
      if (has_further) gradient = gradient + further * chain;
      gradient.store(e.at(i, at));
    }
  }

  T label_gradient(int64_t l, T of_the_others, int64_t place, int64_t b) const {
    const T cooled = static_cast<T>(1 / p_.temperature);
    const T chain = !logits_ ? T(1) : slopes_ ? slopes_[tile_.start(b) + place] : cooled;
    if (logits_ && !p_.grad_entropy.defined()) return own_slope_[l] * chain;
    return of_the_others - scale_[l] * slope_[l] * upstream_[l] * chain;
  }
  V slope_at(int64_t at) const {
    if (!logits_) return V(1.0);
    return slopes_ ? V::load(slopes_ + at) : cooling_.cooled();
  }

  void target_gradient(int64_t v, int64_t b, int64_t n, T* out) const {
    const T* z = scores_ + tile_.start(b);
    const V factor = tile_.lane(scale_, v) * V(1 - p_.label_smoothing);
    const V upstream = tile_.lane(upstream_, v);
    const V log_sum = logits_ ? running_[v].log_sum() : V(0.0);
    for (int64_t i = 0; i < tile_.steps(n); ++i) {
      const int64_t at = tile_.at(v, i);
      const V distance = above(V::load(z + at), running_[v].largest);
      const V weight = weight_at(b * tile_.block(), i);
      (factor * weight * (log_sum - distance) * upstream).store(out + at);
    }
  }

  const SoftmaxProblem& p_;
  const cpu::Threads threads_;
  const int64_t stride_;
  Tile<T, across> tile_;
  const Cooling<T> cooling_;
  const bool logits_, labels_, soft_, weighs_, copies_targets_, gradient_, plain_, keeps_scores_;
  std::array<V, kMaxParams> params_;

  // Per class of the tile.
  T* slopes_ = nullptr;    // derivatives of z by the input, if there is a cap
  T* scores_ = nullptr;    // z, if it is needed again
  T* weights_ = nullptr;   // exponentials, then gradients
  T* targets_ = nullptr;   // t
  T* by_class_ = nullptr;  // class weights
  T* maxima_ = nullptr;    // per block

  // Per row.
  Tree<RunningSums<T>, kVectors> running_;
  std::vector<RunningSums<T>> shared_;  // per block, if threads share a row
  int64_t label_[kMostLanes];
  bool outside_[kMostLanes];
  double value_[kMostLanes], exact_scale_[kMostLanes], exact_weight_[kMostLanes];
  alignas(64) T counts_[kMostLanes], score_[kMostLanes], weight_[kMostLanes];
  alignas(64) T scale_[kMostLanes], upstream_[kMostLanes];
  alignas(64) T grad_lse_[kMostLanes], grad_entropy_[kMostLanes];
  alignas(64) T loss_[kMostLanes], slope_[kMostLanes], soft_mass_[kMostLanes];
  alignas(64) T own_slope_[kMostLanes],
      probability_[kMostLanes], less_one_[kMostLanes], first_[kMostLanes];
  alignas(64) T entropy_[kMostLanes];
};

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace lossops
