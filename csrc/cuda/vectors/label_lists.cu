#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/common/labels.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/memory.cuh"
#include "cuda/common/team.cuh"
#include "cuda/vectors/engine.h"

namespace lossops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 8;             // per multiprocessor
constexpr int64_t kMostOfWarp = 1024;  // classes; a longer row gets a whole block
constexpr int64_t kBits = 32;          // marks per word

// Reduces nonnegative numbers to their minimum across threads.
struct Least {
  template <int n>
  __device__ __forceinline__ static void clear(int (&numbers)[n]) {
    for (int& each : numbers) each = 0x7fffffff;
  }
  template <int n>
  __device__ __forceinline__ void reduce(int (&numbers)[n], unsigned mask, int width) const {
    for (int distance = width / 2; distance > 0; distance /= 2) {
      for (int& each : numbers) {
        const int other = __shfl_xor_sync(mask, each, distance);
        each = other < each ? other : each;
      }
    }
  }
};

// A row. The team's shared memory has a mark for every class that is a label.
template <class Loss, class S>
class LabelList {
 public:
  using T = Compute<S>;
  static constexpr int kKept = 16 / sizeof(T);  // classes of a thread at a time

  __device__ __forceinline__ LabelList(const VectorsProblem& problem, LanesOrBlock& team, int64_t r,
                                       unsigned* marks, T* leads)
      : problem_(problem),
        team_(team),
        r_(r),
        marks_(marks),
        leads_(leads),
        x_(static_cast<const S*>(problem.vectors[0].data) + r * problem.vectors[0].row_stride),
        grad_(problem.grads[0].defined()
                  ? static_cast<S*>(problem.grads[0].data) + r * problem.grads[0].row_stride
                  : nullptr) {}

  __device__ __forceinline__ void run() {
    if (!read_labels()) return leave_out();
    const double share = 1.0 / static_cast<double>(problem_.length);
    const double weight = number(problem_.row_weight), upstream = number(problem_.grad_output);
    const T factor = static_cast<T>(share * problem_.scale * weight * upstream);
    double sum[1] = {0};
    for (int64_t first = 0; first < problem_.length; first += int64_t(team_.width()) * kKept) {
      sum[0] += add_classes(first + team_.index(), factor);
    }
    team_.reduce(Sums<double>{}, sum);
    write_value(sum[0] * share * weight);
    if (grad_ != nullptr) differentiate_by_labels(factor);
  }

 private:
  __device__ __forceinline__ double number(const RowNumbers& numbers) const {
    if (!numbers.defined()) return 1;
    return load_number<double>(numbers.data, numbers.dtype, r_ * numbers.outer_stride);
  }
  __device__ __forceinline__ void write_value(double value) const {
    if (!problem_.value.defined() || team_.index() != 0) return;
    store_number(problem_.value.data, problem_.value.dtype, r_, value);
  }
  __device__ __forceinline__ int64_t label(int64_t i) const {
    return load_label(problem_.labels,
                      r_ * problem_.labels.outer_stride + i * problem_.labels.inner_stride);
  }
  __device__ __forceinline__ bool marked(int64_t c) const {
    return marks_[c / kBits] >> (c % kBits) & 1;
  }
  __device__ __forceinline__ T lead(int64_t label) const { return Loss::lead(widen<T>(x_[label])); }

  // Counts and marks the labels. Returns whether all of them are classes.
  __device__ __forceinline__ bool read_labels() {
    const int width = team_.width(), index = team_.index();
    team_.sync();  // with those who still read what is of the row before
    for (int64_t i = index; i * kBits < problem_.length; i += width) marks_[i] = 0;
    team_.sync();
    int outside[1] = {0};
    for (bool ended = false; !ended && count_ < problem_.length;) {
      const int64_t i = count_ + index;
      const int64_t own = i < problem_.length ? label(i) : -1;
      int listed[1] = {own < 0 ? index : width};  // before the first negative label
      team_.reduce(Least{}, listed);
      if (index < listed[0]) {
        if (own >= problem_.length) {
          outside[0] = 1;
        } else {
          unsigned* word = marks_ + own / kBits;
          atomicOr(word, 1u << (own % kBits));
        }
      }
      count_ += listed[0];
      ended = listed[0] < width;
    }
    team_.sync();
    team_.reduce(Sums<int>{}, outside);
    return outside[0] == 0;
  }

  __device__ __forceinline__ void leave_out() const {
    write_value(kNaN);
    if (grad_ == nullptr) return;
    for (int64_t c = team_.index(); c < problem_.length; c += team_.width()) {
      grad_[c] = narrow<S>(T(0));
    }
  }

  // Computes the hinges of every width-th class from `first` on that is not a label, and writes the
  // derivatives by the scores of these classes. Returns the sum of the hinges.
  __device__ __forceinline__ double add_classes(int64_t first, T factor) const {
    const int width = team_.width();
    T x[kKept], open[kKept] = {};
    bool counts[kKept];
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      const int64_t c = first + k * width;
      counts[k] = c < problem_.length && !marked(c);
      x[k] = counts[k] ? widen<T>(x_[c]) : T(0);
    }
    double sum = 0;
    for (int64_t begin = 0; begin < count_; begin += width) {
      const int64_t own = begin + team_.index();
      team_.sync();
      if (own < count_) leads_[team_.index()] = lead(label(own));
      team_.sync();
      const int n = static_cast<int>(count_ - begin < width ? count_ - begin : width);
      T hinges[kKept] = {}, of_label(0);
      for (int l = 0; l < n; ++l) {
        const T of_one = leads_[l];
#pragma unroll
        for (int k = 0; k < kKept; ++k) Loss::add(x[k], of_one, hinges[k], open[k], of_label);
      }
#pragma unroll
      for (int k = 0; k < kKept; ++k) sum += counts[k] ? hinges[k] : T(0);
    }
    if (grad_ != nullptr) {
#pragma unroll
      for (int k = 0; k < kKept; ++k) {
        if (counts[k]) grad_[first + k * width] = narrow<S>(open[k] * factor);
      }
    }
    return sum;
  }

  // Each label is handled by a single warp, and only once, however often it is listed.
  __device__ __forceinline__ void differentiate_by_labels(T factor) const {
    const int lane = team_.index() % kWarp, warps = team_.width() / kWarp;
    for (int64_t l = team_.index() / kWarp; l < count_; l += warps) {
      const int64_t own = label(l);
      int times[2] = {0, 0};  // how often it is listed, in total and before l
      for (int64_t i = lane; i < count_; i += kWarp) {
        const bool same = label(i) == own;
        times[0] += same;
        times[1] += same && i < l;
      }
      Sums<int>{}.reduce(times, 0xffffffffu, kWarp);
      if (times[1] > 0) continue;
      const T of_label = lead(own);
      T hinges(0), of_class(0), open[1] = {0};
      for (int64_t c = lane; c < problem_.length; c += kWarp) {
        if (!marked(c)) Loss::add(widen<T>(x_[c]), of_label, hinges, of_class, open[0]);
      }
      Sums<T>{}.reduce(open, 0xffffffffu, kWarp);
      if (lane == 0) grad_[own] = narrow<S>(-factor * (static_cast<T>(times[0]) * open[0]));
    }
  }

  const VectorsProblem& problem_;
  LanesOrBlock& team_;
  const int64_t r_;
  unsigned* marks_;
  T* leads_;
  const S* x_;
  S* grad_;
  int64_t count_ = 0;
};

template <class Loss, class S>
__global__ void __launch_bounds__(kThreads, 2)
    label_lists(const __grid_constant__ VectorsProblem problem, int width) {
  LOSSOPS_DYNAMIC_SHARED(memory);
  __shared__ Compute<S> leads[kThreads];
  LanesOrBlock team(width);
  const int64_t words = (problem.length + kBits - 1) / kBits;
  unsigned* marks = reinterpret_cast<unsigned*>(memory) + team.number() * words;
  const int64_t step = int64_t(gridDim.x) * team.per_block();
  for (int64_t r = int64_t(blockIdx.x) * team.per_block() + team.number(); r < problem.rows;
       r += step) {
    LabelList<Loss, S>(problem, team, r, marks, leads + team.number() * width).run();
  }
}

template <class S>
void run(const VectorsProblem& problem, cudaStream_t stream) {
  const int width = problem.length <= kMostOfWarp ? kWarp : kThreads;
  const int per_block = kThreads / width;
  const int64_t blocks = std::min<int64_t>((problem.rows + per_block - 1) / per_block,
                                           int64_t(multiprocessors()) * kBlocks);
  const int64_t marks = (problem.length + kBits - 1) / kBits * int64_t(sizeof(unsigned));
  // Minus the memory that is declared statically: leads, and what teams reduce in.
  const int64_t most = device_attribute<cudaDevAttrMaxSharedMemoryPerBlockOptin>() - 8192;
  if (marks > most) {
    throw std::runtime_error("lossops: CUDA: lists of labels are for at most " +
                             std::to_string(most * 8) + " classes, got " +
                             std::to_string(problem.length));
  }
  Grid grid{blocks, kThreads, stream};
  grid.dynamic_shared = static_cast<int>(per_block * marks);
  visit(VectorLosses{}, problem.loss, [&]<class Loss>() {
    if constexpr (kHasList<Loss>) {
      launch("kernel label_lists", Loss::name, label_lists<Loss, S>, grid, problem, width);
    }
  });
}

}  // namespace

void label_lists_run(const VectorsProblem& problem, cudaStream_t stream) {
  with_dtype(problem.dtype, [&]<class S>() { run<S>(problem, stream); });
}

}  // namespace lossops::cuda
