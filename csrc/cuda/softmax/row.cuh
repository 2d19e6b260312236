// Per-row state and the loop over rows, shared by the kernels of the softmax family.
#pragma once

#include "common/softmax_problem.h"
#include "cuda/common/groups.cuh"
#include "cuda/common/labels.cuh"
#include "cuda/common/team.cuh"

namespace lossops::cuda {

// How rows are distributed over threads. If there are clusters, `splits` counts clusters.
struct RowSchedule : Schedule {
  int64_t rows_per_scale = 1;  // rows that share one normalizer
  bool forward = false;        // gradients are for grad_output == 1
  int width = 1;               // threads that share a row
  int cluster = 1;             // blocks that share a row
  int kept = 0;                // steps of a thread along its row that fit into shared memory
};

// A row, with the factors on its derivatives.
template <class T>
struct Row {
  int64_t outer, inner;
  int64_t label = 0;
  bool counts = true, outside = false;  // a label that is ignored or outside does not count
  T factor, upstream;                   // scale over normalizer; grad_output
  T grad_lse = 0, grad_entropy = 0;

  template <class Operand>
  __device__ __forceinline__ int64_t in(const Operand& operand) const {
    return outer * operand.outer_stride + inner * operand.inner_stride;
  }
};

template <class T>
__device__ __forceinline__ void write(const RowNumbers& numbers, const Row<T>& row, T number) {
  if (numbers.defined()) store_number(numbers.data, numbers.dtype, row.in(numbers), number);
}

template <class T, class Team>
__device__ __forceinline__ T number(const RowNumbers& numbers, const Row<T>& row, const Team& team,
                                    T if_absent) {
  if (!numbers.defined()) return if_absent;
  return team.once([&] { return load_number<T>(numbers.data, numbers.dtype, row.in(numbers)); });
}

template <class T, class Team>
__device__ __forceinline__ Row<T> read_row(const SoftmaxProblem& p, const RowSchedule& schedule,
                                           const Team& team, int64_t index) {
  Row<T> row;
  row.outer = p.inner == 1 ? index : index / p.inner;
  row.inner = index - row.outer * p.inner;
  row.factor = team.once([&] {
    const int64_t group = p.normalizer_stride == 0 ? 0 : index / schedule.rows_per_scale;
    return static_cast<T>(scale_of(p, group));
  });
  if (p.labels.defined()) {
    row.label = team.once([&] { return load_label(p.labels, row.in(p.labels)); });
    row.counts = row.label >= 0 && row.label < p.classes && row.label != p.ignore_index;
    row.outside = !row.counts && row.label != p.ignore_index;
  }
  row.upstream = 1;
  if (!schedule.forward) {
    row.upstream = number<T>(p.grad_output, row, team, 0);
    row.grad_lse = number<T>(p.grad_lse, row, team, 0);
    row.grad_entropy = number<T>(p.grad_entropy, row, team, 0);
  }
  return row;
}

// Calls f(row), which returns the row's loss, for all rows of this team, and sums the losses.
template <class T, class Team, class F>
__device__ __forceinline__ void for_rows(const SoftmaxProblem& problem, const RowSchedule& schedule,
                                         const Team& team, const F& f) {
  const int cluster = blockIdx.x / schedule.cluster;
  const int split = cluster % schedule.splits;
  const int64_t step = int64_t(schedule.splits) * team.per_block();
  for (int64_t group = cluster / schedule.splits; group < problem.groups;
       group += gridDim.x / schedule.cluster / schedule.splits) {
    const int64_t end = (group + 1) * problem.group_size;
    double sum = 0;
    for (int64_t r = group * problem.group_size + int64_t(split) * team.per_block() + team.number();
         r < end; r += step) {
      const T loss = f(read_row<T>(problem, schedule, team, r));
      if (team.index() == 0) sum += loss;
    }
    if (problem.reduced.defined() && team.in_first_block()) {
      reduce_group(problem, schedule, group, split, sum);
    }
  }
  team.leave();
}

// The scores y = cap tanh(x / cap) of logits; the softmax is that of y / temperature. Only
// differences of scores are divided by the temperature: if all scores are large, a quotient would
// have lost its digits.
template <class T>
struct Scores {
  bool capped;
  int64_t classes;
  T cap, inverse_cap, inverse_temperature;

  __device__ __forceinline__ Scores(const SoftmaxProblem& p, Form form, bool plain = false)
      : capped(!plain && p.softcap != 0 && form == Form::logits),
        classes(p.classes),
        cap(static_cast<T>(p.softcap)),
        inverse_cap(static_cast<T>(1 / p.softcap)),
        inverse_temperature(form == Form::logits ? static_cast<T>(1 / p.temperature) : T(1)) {}

  template <int N>
  __device__ __forceinline__ void of(int64_t c, const T (&x)[N], T (&y)[N]) const {
#pragma unroll
    for (int v = 0; v < N; ++v) y[v] = x[v];
    if (!capped) return;
#pragma unroll
    for (int v = 0; v < N; ++v) {
      const bool there = c + v >= 0 && c + v < classes;  // a cap would make padding finite
      y[v] = there ? cap * tanh(x[v] * inverse_cap) : -T(kInfinity);
    }
  }
  // dy/dx = 1 - tanh², without its cancellation.
  __device__ __forceinline__ T slope(T x) const {
    if (!capped) return 1;
    const T e = exp(T(-2) * abs(x * inverse_cap)), sum = T(1) + e;
    return T(4) * e / (sum * sum);
  }
};

// The log-probabilities and probabilities of a row. Logits need the maximum and the sum of
// exponentials first. Log-probabilities are used as they are, with a maximum of 0 and a sum of 1.
template <class T>
struct Distribution {
  Form form;
  T inverse_temperature, maximum = 0, log_sum = 0, inverse_sum = 1;

  __device__ __forceinline__ explicit Distribution(Form form, T inverse_temperature)
      : form(form), inverse_temperature(inverse_temperature) {}
  // `others`: the sum of exponentials, minus that of the maximum, which is 1.
  __device__ __forceinline__ void settle(T highest, T others, int64_t classes) {
    maximum = highest;
    if (level() && others == others) others = static_cast<T>(classes - 1);  // preserves NaN
    log_sum = log1p(others);
    inverse_sum = T(1) / (T(1) + others);
  }
  // Scores that are all -infinity are equal. The padding beyond the row then equals them, too.
  __device__ __forceinline__ bool level() const { return maximum == -T(kInfinity); }
  __device__ __forceinline__ T log_sum_exp() const {
    return maximum * inverse_temperature + log_sum;
  }
  // Whether a score is the highest of the row. If the row has a NaN, no score is.
  __device__ __forceinline__ bool reached(T score, T highest) const {
    return score >= highest && (inverse_sum == inverse_sum || highest == T(kInfinity));
  }
  // The logarithm relative to the maximum; for probabilities, the logarithm itself. For infinite
  // scores, the limit: they are equal, and no other class is possible.
  __device__ __forceinline__ T above(T y) const {
    if (form == Form::probs) return y > T(0) ? log(y) : -T(kInfinity);
    return y == maximum ? T(0) : (y - maximum) * inverse_temperature;
  }
  __device__ __forceinline__ void at(T y, T& p, T& log_p) const {
    const T d = above(y);
    log_p = d - log_sum;
    p = form == Form::probs ? y : exp(d) * inverse_sum;
  }
};

// What a thread has seen of a row's scores: the highest, the sum of exponentials relative to it
// without those that are 1, and the number of the latter, minus 1.
template <class T>
struct Seen {
  T highest = -T(kInfinity), lower = 0, equal = -1;

  template <int N>
  __device__ __forceinline__ void look(const T (&y)[N]) {
#pragma unroll
    for (int v = 0; v < N; ++v) highest = y[v] > highest ? y[v] : highest;
  }
  template <int N>
  __device__ __forceinline__ void add(const T (&y)[N], T inverse_temperature) {
    const T base = highest == -T(kInfinity) ? T(0) : highest;
#pragma unroll
    for (int v = 0; v < N; ++v) {
      const bool same = y[v] == base;
      lower += same ? T(0) : exp((y[v] - base) * inverse_temperature);
      equal += same ? T(1) : T(0);
    }
  }
  __device__ __forceinline__ T others() const { return lower + equal; }
};

}  // namespace lossops::cuda
