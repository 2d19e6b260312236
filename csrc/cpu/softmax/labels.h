// The label losses: one pass for the sums of a row, and one over cached data for its gradient.
#include "cpu/softmax/label_gradients.h"

namespace lossops {
inline namespace CPU_CAPABILITY {
namespace {

template <class T, bool across>
class LabelRows {
  using V = Simd<T>;

 public:
  LabelRows(const SoftmaxProblem& problem, cpu::Threads threads)
      : p_(problem), t_(problem, threads) {
    for (int i = 0; i < kMaxParams; ++i) params_[i] = V(problem.params[i]);
  }

  void run(int64_t begin, int64_t end, double* sums) {
    for (int64_t first = begin; first < end; first += tile_.stride()) {
      tile_.move_to(first, std::min(tile_.stride(), end - first));
      read_rows();
      t_.reads_all() ? sum_rows() : read_labels_only();
      finish_rows();
      if (t_.gradient) gradients_.write();
      tile_.add_to_groups(row_.value, begin / p_.group_size, sums);
    }
  }

 private:
  void read_rows() {
    tile_.read(p_.grad_lse, T(0), row_.grad_lse);
    tile_.read(p_.grad_entropy, T(0), row_.grad_entropy);
    std::fill_n(row_.score, tile_.stride(), T(0));
    std::fill_n(row_.weight, tile_.stride(), T(0));
    row_.read(p_, tile_, [this](int64_t l) {
      row_.exact_weight[l] = (1 - p_.label_smoothing) * tile_.class_weight(row_.label[l]);
      row_.weight[l] = static_cast<T>(row_.exact_weight[l]);
    });
  }

  void read_labels_only() {
    t_.softmax.fill(RunningSums<T>::settled());
    for (int64_t l = 0; l < tile_.lanes(); ++l) {
      if (row_.counts[l] > 0) row_.score[l] = tile_.number(p_.input, l, row_.label[l]);
    }
  }

  void sum_rows() {
    const auto merge = [this](RunningSums<T>& sums, const RunningSums<T>& more) {
      t_.logits ? sums.add(more) : sums.add_targets(more);
    };
    t_.threads.each(tile_.blocks(), [&](int64_t b) { sum_block(b, merge); });
    t_.softmax.finish(merge);
  }

  template <class F>
  void sum_block(int64_t b, const F& merge) {
    const Numbers<T> z = t_.scores.read(b, !t_.scores.cooled() && !t_.keeps_scores);
    const Ahead ahead = t_.scores.ahead(b);
    t_.each_label(b, [&](int64_t l, int64_t place) { row_.score[l] = z.stored[place]; });
    const Numbers<T> e = t_.exponentials(b);
    t_.target.read(b);
    for (int64_t v = 0; v < tile_.vectors(); ++v) {
      RunningSums<T> block = RunningSums<T>::settled();
      if (t_.logits) block.largest = block_maximum(tile_, v, z, tile_.in_block(b));
      // First, because the exponentials may overwrite the scores.
      if (t_.target.exists()) sum_targets(v, b, z, block);
      if (t_.logits) sum_logits(v, b, z, e, ahead, block);
      block.largest.store(t_.softmax.maximum(v, b));
      t_.softmax.put(v, b, block, merge);
    }
  }

  LOSSOPS_FN void sum_logits(int64_t v, int64_t b, Numbers<T> z, Numbers<T> e, const Ahead ahead,
                             RunningSums<T>& block) const {
    if (p_.entropy.defined() || p_.grad_entropy.defined()) {
      sum_exponentials<true, false>(tile_, v, tile_.in_block(b), z, e, ahead, block);
    } else {
      sum_exponentials(tile_, v, tile_.in_block(b), z, e, ahead, block);
    }
  }

  void sum_targets(int64_t v, int64_t b, Numbers<T> z, RunningSums<T>& block) const {
    const Numbers<T> t = t_.target.places(b);
    V mass[4], scores[4];  // several, so that fewer roundings add up
    for (int64_t i = 0, steps = tile_.steps_in(b); i < steps; ++i) {
      const V target = t_.target.at(t, v, b, i);
      t_.target.prefetch(t, i);
      V &sum = mass[i % 4], &of_scores = scores[i % 4];
      sum = sum + target;
      of_scores = of_scores + times(target, above(V::load(z.at(i, tile_.at(v, i))), block.largest));
    }
    block.mass = tile_.sum((mass[0] + mass[1]) + (mass[2] + mass[3]));
    block.scores = tile_.sum((scores[0] + scores[1]) + (scores[2] + scores[3]));
  }

  // Turns the sums into the loss and into what the gradient is made of.
  void finish_rows() {
    alignas(64) T lse[kMostLanes], accuracy[kMostLanes];
    for (int64_t v = 0; v < tile_.vectors(); ++v) finish(v, lse, accuracy);
    for (int64_t l = 0; t_.labels && t_.gradient && l < tile_.lanes(); ++l) {
      if (row_.counts[l] > 0) row_.own_slope[l] = own_slope(l);
    }
    row_.write_values(p_, tile_);
    tile_.write(p_.lse, lse);
    tile_.write(p_.entropy, row_.entropy);
    tile_.write(p_.accuracy, accuracy);
  }

  struct Loss {
    V value, slope, soft_mass;
  };

  void finish(int64_t v, T* lse_out, T* accuracy) {
    RunningSums<T>& sums = t_.softmax[v];
    sums.finish(p_.classes);
    const V log_sum = sums.log_sum(), lse = sums.largest + log_sum;
    const V distance = above(tile_.lane(row_.score, v), sums.largest);
    const V information = log_sum - distance;  // -log of the label's probability
    Loss loss = t_.labels ? loss_of_labels(v, information) : Loss();
    if (t_.target.exists()) {
      loss.value = loss.value + (sums.mass * log_sum - sums.scores);
      loss.soft_mass = sums.mass;
    }
    if (p_.z_loss != 0) {
      loss.value = loss.value + V(p_.z_loss) * lse * lse;
      loss.soft_mass = loss.soft_mass + V(2 * p_.z_loss) * lse;
    }
    tile_.put(loss.value, row_.loss, v);
    tile_.put(loss.slope, row_.slope, v);
    tile_.put(loss.soft_mass, row_.soft_mass, v);
    tile_.put(lse, lse_out, v);
    tile_.put(log_sum - sums.entropy / sums.exponentials(), row_.entropy, v);
    // The information is NaN if a class is.
    const V hit = select(distance >= V(0.0), tile_.lane(row_.counts, v), V(0.0));
    tile_.put(select(information == information, hit, V(0.0)), accuracy, v);
  }

  Loss loss_of_labels(int64_t v, V information) {
    const V weight = tile_.lane(row_.weight, v);
    LabelJet<V> f;
    // Once per vector of rows, so the loss can be selected at run time.
    visit(LabelLosses{}, p_.loss, [&]<class F>() { f = F::at(information, params_.data()); });
    if (t_.gradient) {
      tile_.put(f.first, row_.first, v);
      tile_.put(exp(-information), row_.probability, v);
      tile_.put(less_one(information), row_.less_one, v);
    }
    return {times(weight, f.value), weight * f.first, V()};
  }

  // The derivative by the label's own score, often the largest of a row. Computed without
  // cancellation if its probability is nearly 1, and rounded once before grad_output multiplies it.
  T own_slope(int64_t l) const {
    const T probability = row_.probability[l];
    // For a probability up to 1/2, q - 1 is exact in double.
    const double less_one = probability < T(0.5) ? double(probability) - 1 : row_.less_one[l];
    double slope = row_.exact_weight[l] * row_.first[l] * less_one;
    if (t_.target.exists()) slope -= double(t_.target.factor(row_.label[l]));
    if (row_.soft_mass[l] != 0) slope += double(row_.soft_mass[l]) * probability;
    const T scaled = static_cast<T>(row_.exact_scale[l] * slope) * row_.upstream[l];
    return p_.grad_lse.defined() ? scaled + row_.grad_lse[l] * probability : scaled;
  }

  const SoftmaxProblem& p_;
  LabelTile<T, across> t_;
  Tile<T, across>& tile_ = t_.tile;
  LabelRow<T>& row_ = t_.row;
  const LabelGradients<T, across> gradients_{t_};
  std::array<V, kMaxParams> params_;
};

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace lossops
