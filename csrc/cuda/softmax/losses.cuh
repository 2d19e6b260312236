// The loss and the gradient of a row, written once for all kernels. These differ in the threads
// that share a row (Team) and in where its numbers are held (Cells).
#pragma once

#include "cuda/softmax/row.cuh"

namespace lossops::cuda {

// The derivatives by lse and entropy, given a probability p of the row.
template <class T>
struct Statistics {
  T grad_lse, grad_entropy, entropy;
  bool wanted;
  Form form;

  __device__ __forceinline__ Statistics(const Row<T>& row, Form form, bool plain = false)
      : grad_lse(row.grad_lse),
        grad_entropy(row.grad_entropy),
        entropy(1),
        wanted(!plain && (row.grad_lse != T(0) || row.grad_entropy != T(0))),
        form(form) {}
  // Only a softmax preserves the sum of the probabilities, which is what the entropy term is for.
  __device__ __forceinline__ void settle(T of_row) {
    if (form == Form::logits) entropy = of_row;
  }
  __device__ __forceinline__ T at(T p, T log_p) const {
    if (form == Form::probs) return -grad_entropy * (log_p + T(1));
    if (form == Form::log_probs) return -grad_entropy * (times(p, log_p) + p);
    return p * grad_lse - grad_entropy * (times(p, log_p) + p * entropy);
  }
};

template <class T>
__device__ __forceinline__ T class_weight(const SoftmaxProblem& p, int64_t c) {
  const Operand& weight = p.class_weight;
  if (!weight.defined() || c < 0 || c >= p.classes) return 1;
  return load_number<T>(weight.data, weight.dtype, c * weight.stride[0]);
}

// Whether a row that does not count need not be read at all.
template <class T>
__device__ __forceinline__ bool skips(const SoftmaxProblem& p, const Row<T>& row) {
  return !row.counts && !p.lse.defined() && !p.entropy.defined() && row.grad_lse == T(0) &&
         row.grad_entropy == T(0);
}

// Called once per row, so the loss can be selected at run time.
template <class T, class... Losses>
__device__ __forceinline__ LabelJet<T> label_loss(LossList<Losses...>, const SoftmaxProblem& p,
                                                  T u) {
  LabelJet<T> jet{};
  const T params[kMaxParams] = {static_cast<T>(p.params[0]), static_cast<T>(p.params[1])};
  int i = 0;
  (void)((i++ == p.loss ? (jet = Losses::at(u, params), true) : false) || ...);
  return jet;
}

template <class T, class Team>
__device__ __forceinline__ T finish_row(const SoftmaxProblem& p, const Row<T>& row,
                                        const Team& team, T value, T lse, T entropy,
                                        bool accurate) {
  if (!row.counts) value = row.outside ? T(kNaN) : T(0);
  if (team.index() == 0) {
    write(p.value, row, value);
    write(p.lse, row, lse);
    write(p.entropy, row, entropy);
    write(p.accuracy, row, T(row.counts && accurate ? 1 : 0));
  }
  return value;
}

// The first pass over a row of logits: computes the maximum of the scores and the sum of their
// exponentials.
template <class T, class Cells, class Team>
__device__ __forceinline__ T load_logits(const Scores<T>& scores, Distribution<T>& q, Cells& cells,
                                         Team& team) {
  constexpr int N = Cells::N;
  Seen<T> seen;
  cells.load([&](int64_t c, const T(&x)[N], const T(&)[N]) {
    T y[N];
    scores.of(c, x, y);
    seen.look(y);
  });
  if (q.form == Form::logits) {
    cells.each([&](int64_t c, const T(&x)[N], const T(&)[N]) {
      T y[N];
      scores.of(c, x, y);
      seen.add(y, scores.inverse_temperature);
    });
  }
  T numbers[2] = {seen.highest, seen.others()};
  team.reduce(Exponentials<T>{scores.inverse_temperature}, numbers);
  if (q.form == Form::logits) q.settle(numbers[0], numbers[1], scores.classes);
  return numbers[0];
}

// Forms that are known at compile time, for the layouts that must be fast; -1 if not known. `plain`
// rows have no softcap, no smoothing, no entropy and no derivatives by lse.
template <int input, int target, bool plain = false>
struct Forms {
  static constexpr bool kPlain = plain;

  __device__ __forceinline__ static Form of_input(const SoftmaxProblem& p) {
    return input < 0 ? p.form : static_cast<Form>(input);
  }
  __device__ __forceinline__ static Form of_target(const SoftmaxProblem& p) {
    if (target >= 0) return static_cast<Form>(target);
    return p.target_form == Form::labels ? Form::probs : p.target_form;
  }
};

// Adds up, with d the log-probabilities relative to their maximum: exp(d) d and, with `smooth`, the
// class weights w and w d.
template <class T, class Cells, class Team>
__device__ __forceinline__ void sum_labels(const SoftmaxProblem& p, const Scores<T>& scores,
                                           const Distribution<T>& q, bool smooth, Cells& cells,
                                           Team& team, T (&sums)[3]) {
  constexpr int N = Cells::N;
  cells.each([&](int64_t c, const T(&x)[N], const T(&)[N]) {
    T y[N];
    scores.of(c, x, y);
#pragma unroll
    for (int v = 0; v < N; ++v) {
      const T d = q.above(y[v]);
      sums[0] += times(exp(d), d);
      if (!smooth || c + v < 0 || c + v >= p.classes) continue;
      const T w = class_weight<T>(p, c + v);
      sums[1] += w;
      sums[2] += times(w, d);
    }
  });
  team.reduce(Sums<T>{}, sums);
}

// The derivative by the scores y: share * exp(d), or `own_slope` at the label, minus `missed` times
// the weights.
template <class T>
struct LabelSlopes {
  T share, own_slope, missed;

  template <int N>
  __device__ __forceinline__ void at(const SoftmaxProblem& p, const Row<T>& row,
                                     const Distribution<T>& q, bool smooth, int64_t c,
                                     const T (&y)[N], T (&dy)[N]) const {
#pragma unroll
    for (int v = 0; v < N; ++v) {
      dy[v] = q.form == Form::logits ? share * exp(q.above(y[v])) : T(0);
    }
    if (row.label - c >= 0 && row.label - c < N) {
#pragma unroll
      for (int v = 0; v < N; ++v) dy[v] = c + v == row.label ? own_slope : dy[v];
    }
    if (!smooth) return;
#pragma unroll
    for (int v = 0; v < N; ++v) dy[v] -= missed * class_weight<T>(p, c + v);
  }
};

template <class T, int N>
__device__ __forceinline__ void add_statistics(const Scores<T>& scores, const Distribution<T>& q,
                                               const Statistics<T>& statistics, const T (&x)[N],
                                               const T (&y)[N], T (&dx)[N]) {
#pragma unroll
  for (int v = 0; v < N; ++v) {
    T probability, log_q;
    q.at(y[v], probability, log_q);
    const T slope = scores.slope(x[v]) * scores.inverse_temperature;
    dx[v] += slope * statistics.at(probability, log_q);
  }
}

// A label loss. If only the label's log-probability is needed, nothing else of the row is read.
template <class Forms, class T, class Cells, class Team>
__device__ __forceinline__ T label_row(const SoftmaxProblem& p, const Row<T>& row, Cells& cells,
                                       Team& team) {
  constexpr int N = Cells::N;
  if (skips(p, row)) {
    cells.clear();
    return finish_row(p, row, team, T(0), T(0), T(0), false);
  }
  const Form form = Forms::of_input(p);
  constexpr bool plain = Forms::kPlain;
  const Scores<T> scores(p, form, plain);
  Distribution<T> q(form, scores.inverse_temperature);
  Statistics<T> statistics(row, form, plain);
  const bool smooth = !plain && p.label_smoothing != 0;
  const bool measures = !plain && (p.entropy.defined() || row.grad_entropy != T(0));
  const bool reads = form != Form::log_probs || p.accuracy.defined() || smooth || measures;

  const T fetched = team.fetch([&] { return row.counts ? cells.input_at(row.label) : T(0); });
  const T highest = reads ? load_logits(scores, q, cells, team) : T(0);
  const T own[1] = {team.share(fetched)};
  T score[1];
  scores.of(row.label, own, score);
  T sums[3] = {};
  if (measures || smooth) sum_labels(p, scores, q, smooth, cells, team, sums);
  const T entropy = q.log_sum - sums[0] * q.inverse_sum;
  const T lse = q.log_sum_exp(), z_loss = static_cast<T>(p.z_loss);
  const T smoothing = static_cast<T>(p.label_smoothing);
  const T on_all = smoothing / static_cast<T>(p.classes), on_label = T(1) - smoothing;
  const T weight = row.counts ? class_weight<T>(p, row.label) * on_label : T(0);
  const T information = row.counts ? q.log_sum - q.above(score[0]) : T(0);
  const LabelJet<T> f = label_loss(LabelLosses{}, p, information);
  T value = times(weight, f.value);
  if (smooth) value += on_all * (q.log_sum * sums[1] - sums[2]);
  if (z_loss != T(0)) value += z_loss * lse * lse;
  value = finish_row(p, row, team, value, lse, entropy, q.reached(score[0], highest));

  if (!p.grad_input.defined()) return value;
  statistics.settle(entropy);
  if (!reads || team.width() <= kWarp) team.sync();  // after the label's score has been read
  if (!row.counts && !statistics.wanted) {
    cells.clear();
    return value;
  }
  const T factor = row.counts ? row.factor * scores.inverse_temperature : T(0);
  const T hit = factor * f.first * weight, missed = factor * f.first * on_all;
  LabelSlopes<T> slopes{0, -hit, missed};
  if (form == Form::logits) {
    const T rest = missed * sums[1] + factor * T(2) * times(z_loss, lse);
    slopes.share = (hit + rest) * q.inverse_sum;
    slopes.own_slope = hit * less_one(information) + rest * exp(-information);
  }
  const auto gradient = [&](int64_t c, const T(&x)[N], const T(&)[N], T(&dx)[N], T(&)[N]) {
    T y[N];
    scores.of(c, x, y);
    slopes.at(p, row, q, smooth, c, y, dx);
#pragma unroll
    for (int v = 0; v < N; ++v) {
      if (scores.capped) dx[v] *= scores.slope(x[v]);
      if (form == Form::probs && dx[v] != T(0)) dx[v] /= y[v];
      dx[v] *= row.upstream;
    }
    if (statistics.wanted) add_statistics(scores, q, statistics, x, y, dx);
  };
  reads ? cells.write(gradient) : cells.fill(gradient);
  return value;
}

}  // namespace lossops::cuda
