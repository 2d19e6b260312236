// The divergences of two distributions: first their softmaxes, then the sums, then the gradients,
// over cached data.
#include "cpu/softmax/distribution.h"

namespace lossops {
inline namespace CPU_CAPABILITY {
namespace {

template <class Loss, class T, bool across>
class DivergenceRows {
  using V = Simd<T>;
  static constexpr int64_t kFewSteps = 16;  // in one partial sum

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
        tile_(problem, cpu::rows_at_once(problem)),
        input_(p_, tile_, threads, p_.form, p_.input, p_.grad_input, 0),
        target_(p_, tile_, threads, p_.target_form, p_.target, p_.grad_target, 1),
        sums_(tile_.blocks(), threads) {}

  void run(int64_t begin, int64_t end, double* sums) {
    for (int64_t first = begin; first < end; first += tile_.stride()) {
      tile_.move_to(first, std::min(tile_.stride(), end - first));
      row_.read(p_, tile_, [](int64_t) {});
      input_.read(row_);
      target_.read(row_);
      sum_rows();
      input_.write_gradient(row_, [this](int64_t v) { return sums_[v].by_log_q; });
      target_.write_gradient(row_, [this](int64_t v) { return sums_[v].by_log_p; });
      tile_.add_to_groups(row_.value, begin / p_.group_size, sums);
    }
  }

 private:
  // Computes the loss, and replaces the distributions by what their gradients are made of.
  void sum_rows() {
    threads_.each(tile_.blocks(), [this](int64_t b) {
      for (int64_t v = 0; v < tile_.vectors(); ++v) {
        sums_.put(v, b,
                  target_.has_gradient()  ? sum_block<true, true>(v, b)
                  : input_.has_gradient() ? sum_block<true, false>(v, b)
                                          : sum_block<false, false>(v, b));
      }
    });
    sums_.finish();
    for (int64_t v = 0; v < tile_.vectors(); ++v) tile_.put(sums_[v].value, row_.loss, v);
    row_.write_values(p_, tile_);
  }

  template <bool by_input, bool by_target>
  BlockLoss sum_block(int64_t v, int64_t b) {
    const auto of_input = input_.normalizing(v, b), of_target = target_.normalizing(v, b);
    const Numbers<T> log_q = input_.logs(b), log_p = target_.logs(b);
    const Numbers<T> slope = by_input ? input_.slopes(b) : Numbers<T>();
    const Numbers<T> target_slope = by_target ? target_.slopes(b) : Numbers<T>();
    T *const q = input_.values(b), *const p = target_.values(b);
    const bool input_probs = input_.of_probabilities(), target_probs = target_.of_probabilities();
    const int64_t steps = tile_.steps_in(b);
    BlockLoss sums;
    for (int64_t first = 0; first < steps; first += kFewSteps) {
      BlockLoss few;
      for (int64_t i = first, end = std::min(first + kFewSteps, steps); i < end; ++i) {
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

  const SoftmaxProblem& p_;
  const cpu::Threads threads_;
  Tile<T, across> tile_;
  PerRow<T> row_;
  Distribution<T, across> input_, target_;
  Tree<BlockLoss, Tile<T, across>::kMostVectors> sums_;
};

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace lossops
