#include "cuda/vectors/engine.h"

#include <algorithm>

#include "cuda/common/labels.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/memory.cuh"
#include "cuda/common/team.cuh"

namespace lossops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 8;     // per multiprocessor
constexpr int kMostPacks = 8;  // per lane; a longer row gets a whole block

// A row of one tensor, in vectors of 16 bytes, aligned to 16 bytes. The first and last vector of a
// row may be partial; they are then accessed one number at a time.
template <class S>
class PackedRow {
 public:
  static constexpr int N = 16 / sizeof(S);
  using T = Compute<S>;

  __device__ __forceinline__ PackedRow(const RowVectors& vectors, int64_t r, int64_t length)
      : first_(vectors.defined() ? static_cast<S*>(vectors.data) + r * vectors.row_stride
                                 : nullptr),
        length_(length) {}

  __device__ __forceinline__ bool defined() const { return first_ != nullptr; }
  // How far the row begins behind a 16-byte boundary, in elements.
  __device__ __forceinline__ int shift() const {
    return static_cast<int>(reinterpret_cast<uintptr_t>(first_) % 16 / sizeof(S));
  }
  __device__ __forceinline__ T at(int64_t i) const { return widen<T>(first_[i]); }

  // The N numbers starting at i; those outside the row are 0.
  __device__ __forceinline__ void load(int64_t i, T (&numbers)[N]) const {
    if (whole(i)) {
      Pack<S, N> pack;
      // A plain load: unlike with other losses, a row is read again and should stay in the cache.
      pack.word = *reinterpret_cast<const decltype(pack.word)*>(first_ + i);
      return pack.unpack(numbers);
    }
#pragma unroll
    for (int v = 0; v < N; ++v) numbers[v] = inside(i + v) ? at(i + v) : T(0);
  }
  __device__ __forceinline__ void store(int64_t i, const T (&numbers)[N]) const {
    if (whole(i)) return Pack<S, N>::of(numbers).store(first_ + i);
#pragma unroll
    for (int v = 0; v < N; ++v) {
      if (inside(i + v)) first_[i + v] = narrow<S>(numbers[v]);
    }
  }
  __device__ __forceinline__ bool inside(int64_t i) const { return i >= 0 && i < length_; }

 private:
  __device__ __forceinline__ bool whole(int64_t i) const {
    return i >= 0 && i + N <= length_ && reinterpret_cast<uintptr_t>(first_ + i) % 16 == 0;
  }

  S* first_;
  int64_t length_;
};

__device__ __forceinline__ double number(const RowNumbers& numbers, int64_t r, double missing) {
  if (!numbers.defined()) return missing;
  return load_number<double>(numbers.data, numbers.dtype, r * numbers.outer_stride);
}

template <class Loss, class S>
class VectorRow {
 public:
  static constexpr int N = PackedRow<S>::N;
  using T = Compute<S>;

  __device__ __forceinline__ VectorRow(const VectorsProblem& problem, LanesOrBlock& team, int64_t r)
      : problem_(problem), team_(team), r_(r), shift_(vector(0).shift()) {}

  __device__ __forceinline__ void run() {
    RowGiven row{0, problem_.length};
    bool known = true;
    if constexpr (kHasIndex<Loss>) {
      own_ = load_label(problem_.labels, r_ * problem_.labels.outer_stride);
      known = own_ >= 0 && own_ < row.length;
      if (!known) own_ = -1;
    } else {
      row.label = number(problem_.signs, r_, 0);
    }
    if constexpr (requires { Loss::template constant<T>(problem_.params, T()); }) {
      constant_ = Loss::template constant<T>(problem_.params, own_ < 0 ? T(0) : vector(0).at(own_));
    }
    double sums[Loss::sums] = {};
    add(sums);
    team_.reduce(Sums<double>{}, sums);
    double factors[Loss::factors];
    double value = Loss::finish(sums, row, problem_.params, factors);
    const double weight = number(problem_.row_weight, r_, 1);
    if (!known) value = kNaN;
    if (problem_.value.defined() && team_.index() == 0) {
      store_number(problem_.value.data, problem_.value.dtype, r_, value * weight);
    }
    const double scale = problem_.scale * weight * number(problem_.grad_output, r_, 1);
    T scaled[Loss::factors];
#pragma unroll
    for (int k = 0; k < Loss::factors; ++k) {
      scaled[k] = known ? static_cast<T>(factors[k] * scale) : T(0);
    }
    differentiate(scaled);
  }

 private:
  __device__ __forceinline__ PackedRow<S> vector(int i) const {
    return {problem_.vectors[i], r_, problem_.length};
  }
  __device__ __forceinline__ int64_t begin() const { return int64_t(team_.index()) * N - shift_; }
  __device__ __forceinline__ int64_t step() const { return int64_t(team_.width()) * N; }

  __device__ __forceinline__ void load(int64_t i, T (&x)[Loss::vectors][N]) const {
#pragma unroll
    for (int k = 0; k < Loss::vectors; ++k) vector(k).load(i, x[k]);
  }

  __device__ __forceinline__ void add(double (&sums)[Loss::sums]) const {
    for (int64_t i = begin(); i < problem_.length; i += step()) {
      T x[Loss::vectors][N];
      load(i, x);
      T part[Loss::sums] = {};
#pragma unroll
      for (int v = 0; v < N; ++v) {
        if (i + v < 0 || i + v >= problem_.length) continue;
        if (kHasIndex<Loss> && i + v == own_) continue;
        T element[Loss::vectors];
#pragma unroll
        for (int k = 0; k < Loss::vectors; ++k) element[k] = x[k][v];
        Loss::add(element, constant_, part);
      }
#pragma unroll
      for (int k = 0; k < Loss::sums; ++k) sums[k] += part[k];
    }
  }

  __device__ __forceinline__ void differentiate(const T (&factors)[Loss::factors]) const {
    bool any = false;
#pragma unroll
    for (int k = 0; k < Loss::vectors; ++k) any |= problem_.grads[k].defined();
    if (!any) return;
    for (int64_t i = begin(); i < problem_.length; i += step()) {
      T x[Loss::vectors][N], grads[Loss::vectors][N];
      load(i, x);
#pragma unroll
      for (int v = 0; v < N; ++v) {
        T element[Loss::vectors], grad[Loss::vectors];
#pragma unroll
        for (int k = 0; k < Loss::vectors; ++k) element[k] = x[k][v];
        Loss::gradient(element, constant_, factors, grad);
        if (kHasIndex<Loss> && i + v == own_) grad[0] = factors[Loss::factors - 1];
#pragma unroll
        for (int k = 0; k < Loss::vectors; ++k) grads[k][v] = grad[k];
      }
#pragma unroll
      for (int k = 0; k < Loss::vectors; ++k) {
        const PackedRow<S> to{problem_.grads[k], r_, problem_.length};
        if (to.defined()) to.store(i, grads[k]);
      }
    }
  }

  const VectorsProblem& problem_;
  LanesOrBlock& team_;
  const int64_t r_;
  const int shift_;
  int64_t own_ = -1;
  T constant_{};
};

template <class Loss, class S>
__global__ void __launch_bounds__(kThreads, 4)
    vector_rows(const __grid_constant__ VectorsProblem problem, int width) {
  LanesOrBlock team(width);
  const int64_t step = int64_t(gridDim.x) * team.per_block();
  for (int64_t r = int64_t(blockIdx.x) * team.per_block() + team.number(); r < problem.rows;
       r += step) {
    VectorRow<Loss, S>(problem, team, r).run();
  }
}

template <class S>
void run(const VectorsProblem& problem, cudaStream_t stream) {
  const int64_t packs = problem.length * int64_t(sizeof(S)) / 16 + 2;
  int width = 1;
  while (width < kWarp && width < packs) width *= 2;
  if (packs > kWarp * kMostPacks) width = kThreads;
  const int64_t per_block = kThreads / width;
  const int64_t blocks = std::min<int64_t>((problem.rows + per_block - 1) / per_block,
                                           int64_t(multiprocessors()) * kBlocks);
  visit(VectorLosses{}, problem.loss, [&]<class Loss>() {
    if constexpr (!kHasList<Loss>) {
      launch("kernel vector_rows", Loss::name, vector_rows<Loss, S>, Grid{blocks, kThreads, stream},
             problem, width);
    }
  });
}

}  // namespace

void vectors_run(const VectorsProblem& problem, cudaStream_t stream) {
  if (problem.has_lists()) return label_lists_run(problem, stream);
  with_dtype(problem.dtype, [&]<class S>() { run<S>(problem, stream); });
}

}  // namespace lossops::cuda
