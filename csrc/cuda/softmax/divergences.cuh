// The divergence of one row from another and its gradients, written once for all kernels. The cross
// entropy of a soft target is included: it is the divergence that has no logarithm of the target.
#pragma once

#include "cuda/softmax/losses.cuh"

namespace lossops::cuda {

// The target of cross entropy: the given numbers, smoothed and weighted. For other losses,
// unchanged.
template <class T>
struct Weighting {
  const SoftmaxProblem& p;
  const bool does;
  const T on_all, on_own;

  __device__ __forceinline__ explicit Weighting(const SoftmaxProblem& p)
      : p(p),
        does(!p.divergence && (p.class_weight.defined() || p.label_smoothing != 0)),
        on_all(static_cast<T>(p.label_smoothing / static_cast<double>(p.classes))),
        on_own(T(1) - static_cast<T>(p.label_smoothing)) {}
  // There is nothing to smooth beyond the row.
  __device__ __forceinline__ T of(T target, int64_t c) const {
    if (!does) return target;
    return c < 0 || c >= p.classes ? T(0) : class_weight<T>(p, c) * (on_own * target + on_all);
  }
  __device__ __forceinline__ T slope(int64_t c) const {
    return does ? class_weight<T>(p, c) * on_own : T(1);
  }
};

// The first pass: computes the maximum score of the input, and what both softmaxes need.
template <class T, class Cells, class Team>
__device__ __forceinline__ T load_pair(const Scores<T>& scores, Distribution<T>& q,
                                       Distribution<T>& p, Cells& cells, Team& team) {
  constexpr int N = Cells::N;
  Seen<T> input, target;
  cells.load([&](int64_t c, const T(&x)[N], const T(&t)[N]) {
    T y[N];
    scores.of(c, x, y);
    input.look(y);
    target.look(t);
  });
  const bool logits = q.form == Form::logits, target_logits = p.form == Form::logits;
  if (logits || target_logits) {
    cells.each([&](int64_t c, const T(&x)[N], const T(&t)[N]) {
      T y[N];
      scores.of(c, x, y);
      if (logits) input.add(y, q.inverse_temperature);
      if (target_logits) target.add(t, p.inverse_temperature);
    });
  }
  T numbers[4] = {input.highest, input.others(), target.highest, target.others()};
  const T inverse_temperature = logits ? q.inverse_temperature : p.inverse_temperature;
  team.reduce(Exponentials<T>{inverse_temperature}, numbers);
  if (logits) q.settle(numbers[0], numbers[1], scores.classes);
  if (target_logits) p.settle(numbers[2], numbers[3], scores.classes);
  return numbers[0];
}

template <class Loss, class Forms, class T, class Cells, class Team>
__device__ __forceinline__ T divergence_row(const SoftmaxProblem& problem, const Row<T>& row,
                                            Cells& cells, Team& team) {
  constexpr int N = Cells::N;
  if (skips(problem, row)) {
    cells.clear();
    return finish_row(problem, row, team, T(0), T(0), T(0), false);
  }
  const Form input_form = Forms::of_input(problem), target_form = Forms::of_target(problem);
  const Scores<T> scores(problem, input_form);
  const T inverse_temperature = static_cast<T>(1 / problem.temperature);
  Distribution<T> input(input_form, scores.inverse_temperature);
  Distribution<T> target(target_form, target_form == Form::logits ? inverse_temperature : T(1));
  Statistics<T> statistics(row, input_form);
  const Weighting<T> weighting(problem);

  const bool has_label = problem.labels.defined() && row.counts;
  const T fetched = team.fetch([&] { return has_label ? cells.input_at(row.label) : T(0); });
  const T highest = load_pair(scores, input, target, cells, team);
  const T own[1] = {team.share(fetched)};
  T score[1];
  scores.of(row.label, own, score);
  const bool level = input.level() || target.level();
  const auto at = [&](T y, T t, int64_t c, T& q, T& log_q) {
    T p, log_p;
    if (level && (c < 0 || c >= problem.classes)) {
      q = 0, log_q = 0;
      return DivergenceJet<T>{};
    }
    input.at(y, q, log_q);
    target.at(t, p, log_p);
    return Loss::at(weighting.of(p, c), log_p, q, log_q);
  };
  T sums[4] = {};  // of f, of its derivatives by log q and log p, and of q log q
  cells.each([&](int64_t c, const T(&x)[N], const T(&t)[N]) {
    T y[N];
    scores.of(c, x, y);
#pragma unroll
    for (int v = 0; v < N; ++v) {
      T q, log_q;
      const DivergenceJet<T> f = at(y[v], t[v], c + v, q, log_q);
      sums[0] += f.value;
      sums[1] += f.by_log_q;
      sums[2] += f.by_log_p;
      sums[3] += times(q, log_q);
    }
  });
  team.reduce(Sums<T>{}, sums);
  const T entropy = -sums[3], lse = input.log_sum_exp();
  const T z_loss = problem.divergence ? T(0) : static_cast<T>(problem.z_loss);
  T value = sums[0];
  if (z_loss != T(0)) value += z_loss * lse * lse;
  value = finish_row(problem, row, team, value, lse, entropy, input.reached(score[0], highest));

  if (!problem.grad_input.defined() && !problem.grad_target.defined()) return value;
  statistics.settle(entropy);
  if (team.width() <= kWarp) team.sync();  // after the label's score has been read
  if (!row.counts && !statistics.wanted) {
    cells.clear();
    return value;
  }
  const T factor = row.counts ? row.factor : T(0);
  const T by_all = sums[1] - T(2) * times(z_loss, lse);
  cells.write([&](int64_t c, const T(&x)[N], const T(&t)[N], T(&dx)[N], T(&dt)[N]) {
    T y[N];
    scores.of(c, x, y);
#pragma unroll
    for (int v = 0; v < N; ++v) {
      T q, log_q;
      const DivergenceJet<T> f = at(y[v], t[v], c + v, q, log_q);
      dx[v] = input_form == Form::probs ? f.by_q : f.by_log_q;
      T slope = 1;
      if (input_form == Form::logits) {
        dx[v] -= q * by_all;
        slope = scores.slope(x[v]) * scores.inverse_temperature;
      }
      dx[v] = factor * dx[v] * slope * row.upstream;
      if (statistics.wanted) dx[v] += slope * statistics.at(q, log_q);
      dt[v] = target_form == Form::probs ? f.by_p * weighting.slope(c + v) : f.by_log_p;
      if (target_form == Form::logits) {
        T p, log_p;
        target.at(t[v], p, log_p);
        dt[v] = (dt[v] - p * sums[2]) * inverse_temperature;
      }
      dt[v] = factor * dt[v] * row.upstream;
    }
  });
  return value;
}

}  // namespace lossops::cuda
