// What is known of a row, and the loop over rows: shared by the kernels of the softmax family.
#pragma once

#include "common/softmax_problem.h"
#include "cuda/common/groups.cuh"
#include "cuda/common/labels.cuh"
#include "cuda/common/team.cuh"

namespace lossops::cuda {

// How rows are spread over threads; `splits` counts clusters where there are any.
struct RowSchedule : Schedule {
  int64_t rows_per_scale = 1;  // that one number normalizes
  bool forward = false;        // gradients are those for grad_output == 1
  int width = 1;               // threads that share a row
  int cluster = 1;             // blocks that do
  int kept = 0;                // steps of a thread along its row that fit into shared memory
};

// A row, with what is multiplied to its derivatives.
template <class T>
struct Row {
  int64_t outer, inner;
  int64_t label = 0;
  bool counts = true, outside = false;  // a label to be ignored does not count, nor one outside
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

// Calls f(row), which returns the row's loss, for all rows of this team, and adds up the losses.
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

// The scores y = cap tanh(x / cap) of logits; the softmax is of y / temperature. The temperature
// divides differences of scores only: where all are large, a quotient would have lost its digits.
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
      const bool there = c + v >= 0 && c + v < classes;  // a cap would make numbers of what is not
      y[v] = there ? cap * tanh(x[v] * inverse_cap) : -T(kInfinity);
    }
  }
  // dy/dx: 1 - tanh², without its cancellation.
  __device__ __forceinline__ T slope(T x) const {
    if (!capped) return 1;
    const T e = exp(T(-2) * abs(x * inverse_cap)), sum = T(1) + e;
    return T(4) * e / (sum * sum);
  }
};

// Log-probabilities and probabilities of a row. Of logits, it needs the maximum and the sum of
// exponentials first; log-probabilities are taken as they are, which is with 0 and 1.
template <class T>
struct Distribution {
  Form form;
  T inverse_temperature, maximum = 0, log_sum = 0, inverse_sum = 1;

  __device__ __forceinline__ explicit Distribution(Form form, T inverse_temperature)
      : form(form), inverse_temperature(inverse_temperature) {}
  // `others`: the sum of exponentials, less that of the maximum, which is 1.
  __device__ __forceinline__ void settle(T highest, T others, int64_t classes) {
    maximum = highest;
    if (level() && others == others) others = static_cast<T>(classes - 1);  // a NaN stays one
    log_sum = log1p(others);
    inverse_sum = T(1) / (T(1) + others);
  }
  // Scores that are all -infinity are equal, and so is then what is beyond the row.
  __device__ __forceinline__ bool level() const { return maximum == -T(kInfinity); }
  __device__ __forceinline__ T log_sum_exp() const {
    return maximum * inverse_temperature + log_sum;
  }
  // Whether a score is the highest of the row, where there is such a thing: not beside NaN.
  __device__ __forceinline__ bool reached(T score, T highest) const {
    return score >= highest && (inverse_sum == inverse_sum || highest == T(kInfinity));
  }
  // The logarithm relative to the maximum; of what is a probability already, as it is. Of infinite
  // scores the limit: they are equal, and nothing else is possible.
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

// What a thread has seen of a row's scores: the highest, and the sum of exponentials relative to
// it, apart from those that are 1, of which it knows how many there are, less one.
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
