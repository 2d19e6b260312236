// The common layout: every tensor is in iteration order, without gaps and aligned to 16 bytes. Uses
// vectors of 16 bytes, several of them in flight per thread.
#include <algorithm>

#include "cuda/elementwise/schedule.cuh"

namespace lossops::cuda {
namespace {

// What a kernel computes. The first three are the calls of training and evaluation, without
// weights; nothing in them is decided at run time. `any` is the rest: weights, gradients other than
// the input's, a backward pass with a single number as grad_output.
enum class Pass {
  value,     // reads input, target; writes value or reduced
  step,      // reads input, target; writes reduced, grad_input
  backward,  // reads input, target, grad_output; writes grad_input
  any
};

// A vector holds N elements, and a thread loads `unroll` vectors of each operand before it uses the
// first one: 48 to 64 bytes in flight per thread, as many as fit without register spills.
template <class X, class Y, Pass pass>
struct Shape {
  static constexpr int widest = std::max(sizeof(X), sizeof(Y));
  static constexpr int N = pass == Pass::any ? std::min(16 / widest, 4) : 16 / widest;
  static constexpr bool many = pass == Pass::backward || (pass == Pass::any && widest > 2);
  static constexpr int unroll = many ? 1 : 2;
};

// N consecutive elements of all operands; X is the input's type, Y the target's.
template <class X, class Y, int N>
struct Elements {
  Pack<X, N> input, weight;
  Pack<Y, N> target, grad_output;
};

template <class S, int N>
__device__ __forceinline__ void read(const Operand& operand, int64_t i, Pack<S, N>& pack) {
  pack = Pack<S, N>::load(static_cast<const S*>(operand.data) + i);
}

template <class S, int N, class T>
__device__ __forceinline__ void write(const Operand& operand, int64_t i, const T (&numbers)[N]) {
  if (operand.defined()) Pack<S, N>::of(numbers).store(static_cast<S*>(operand.data) + i);
}

template <class Loss, class X, class Y, Pass pass>
class Evaluator {
 public:
  using T = Compute<X>;

  __device__ __forceinline__ explicit Evaluator(const ElementwiseProblem& problem)
      : problem_(problem),
        has_weight_(pass == Pass::any && problem.weight.defined()),
        has_grad_output_(pass == Pass::backward ||
                         (pass == Pass::any && problem.grad_output.defined() &&
                          problem.grad_output.stride[0] != 0)) {
    for (int i = 0; i < kMaxParams; ++i) params_[i] = static_cast<T>(problem.params[i]);
  }

  template <int N>
  __device__ __forceinline__ Elements<X, Y, N> load(int64_t i) const {
    Elements<X, Y, N> e;
    read(problem_.input, i, e.input);
    read(problem_.target, i, e.target);
    if (has_weight_) read(problem_.weight, i, e.weight);
    if (has_grad_output_) read(problem_.grad_output, i, e.grad_output);
    return e;
  }

  // Writes the outputs that are wanted and returns the sum of the values. `scale` multiplies the
  // derivatives. grad_output multiplies them last, as when it rescales a gradient of the forward
  // pass, so the results are bitwise identical.
  template <int N>
  __device__ __forceinline__ T run(const Elements<X, Y, N>& e, int64_t i, T scale,
                                   T single_grad_output) const {
    T x[N], y[N], weight[N], upstream[N];
    e.input.unpack(x);
    e.target.unpack(y);
    if (has_weight_) e.weight.unpack(weight);
    if (has_grad_output_) e.grad_output.unpack(upstream);
    T value[N], dx[N], dy[N], unweighted[N], sum = 0;
#pragma unroll
    for (int v = 0; v < N; ++v) {
      constexpr int order = pass == Pass::value ? 0 : 1;
      const Jet<T> f = Loss::template at<order>(x[v], y[v], params_);
      if (!has_weight_) weight[v] = 1;
      if (!has_grad_output_) upstream[v] = single_grad_output;
      const T weighted = scale * weight[v];
      value[v] = weight[v] * f.value;
      sum += value[v];
      unweighted[v] = scale * f.value * upstream[v];
      dx[v] = weighted * f.dx * upstream[v];
      dy[v] = weighted * f.dy * upstream[v];
    }
    if constexpr (pass == Pass::value || pass == Pass::any) write<Y>(problem_.value, i, value);
    if constexpr (pass != Pass::value) write<X>(problem_.grad_input, i, dx);
    if constexpr (pass == Pass::any) {
      write<Y>(problem_.grad_target, i, dy);
      write<X>(problem_.grad_weight, i, unweighted);
    }
    return sum;
  }

 private:
  const ElementwiseProblem& problem_;
  const bool has_weight_, has_grad_output_;
  T params_[kMaxParams];
};

// grad_output if it is a single number. Otherwise 1, and the evaluator reads it per element.
__device__ __forceinline__ double single_grad_output(const ElementwiseProblem& problem) {
  const Operand& grad_output = problem.grad_output;
  if (!grad_output.defined() || grad_output.stride[0] != 0) return 1;
  return load_number<double>(grad_output.data, grad_output.dtype, 0);
}

// The number of blocks that a multiprocessor should hold, which limits their registers.
template <class Loss, class X, Pass pass>
constexpr int blocks_at_once() {
  if (kIsLong<Loss>) return sizeof(X) == 8 ? 2 : 3;
  return pass == Pass::any ? 3 : 4;
}

template <class Loss, class X, class Y, Pass pass>
__global__ void __launch_bounds__(kThreads, blocks_at_once<Loss, X, pass>())
    dense(const __grid_constant__ ElementwiseProblem problem,
          const __grid_constant__ Schedule schedule) {
  using T = Compute<X>;
  constexpr int N = Shape<X, Y, pass>::N, unroll = Shape<X, Y, pass>::unroll;
  if (pass == Pass::any && nothing_to_do(problem, schedule)) return;
  const Evaluator<Loss, X, Y, pass> evaluator(problem);
  const int split = blockIdx.x % schedule.splits;
  const int64_t step = int64_t(schedule.splits) * blockDim.x;

  for (int64_t group = blockIdx.x / schedule.splits; group < problem.groups;
       group += gridDim.x / schedule.splits) {
    double scale = 1;
    if constexpr (pass != Pass::value) scale = scale_of(problem, group);
    const T factor = static_cast<T>(scale);
    T upstream = 1;
    if constexpr (pass == Pass::any) upstream = static_cast<T>(single_grad_output(problem));
    const int64_t begin = group * problem.group_size, end = begin + problem.group_size;
    const int64_t first = (begin + N - 1) / N, last = end / N;  // the group's whole vectors
    double sum = 0;
    for (int64_t at = first + split * blockDim.x + threadIdx.x; at < last; at += unroll * step) {
      Elements<X, Y, N> elements[unroll];
#pragma unroll
      for (int u = 0; u < unroll; ++u) {
        if (at + u * step < last) elements[u] = evaluator.template load<N>((at + u * step) * N);
      }
#pragma unroll
      for (int u = 0; u < unroll; ++u) {
        if (at + u * step < last)
          sum += evaluator.run(elements[u], (at + u * step) * N, factor, upstream);
      }
    }
    if (split == 0) {  // the elements before and after whole vectors, fewer than a warp
      const int64_t head = first * N < end ? first * N : end;
      const int64_t tail = last * N > head ? last * N : head;
      int64_t i = begin + threadIdx.x;
      if (i >= head) i += tail - head;
      if (i < end) sum += evaluator.run(evaluator.template load<1>(i), i, factor, upstream);
    }
    if constexpr (pass != Pass::backward) {
      if (problem.reduced.defined()) reduce_group(problem, schedule, group, split, sum);
    }
  }
}

// Whether the operand is absent, or has this type and can be accessed in vectors.
template <class S>
bool fits(const Operand& operand) {
  return !operand.defined() ||
         (operand.dtype == dtype_of<S> && operand.stride[0] == 1 && aligned(operand.data, 16));
}

template <class X, class Y>
bool fits(const ElementwiseProblem& problem) {
  const Operand& grad_output = problem.grad_output;
  return problem.ndim == 1 && problem.double_precision == std::is_same_v<Compute<X>, double> &&
         fits<X>(problem.input) && fits<X>(problem.weight) && fits<X>(problem.grad_input) &&
         fits<X>(problem.grad_weight) && fits<Y>(problem.target) && fits<Y>(problem.grad_target) &&
         fits<Y>(problem.value) && (fits<Y>(grad_output) || grad_output.stride[0] == 0);
}

Pass pass_of(const ElementwiseProblem& problem, bool skip_if_one) {
  if (skip_if_one || problem.weight.defined() || problem.grad_target.defined() ||
      problem.grad_weight.defined()) {
    return Pass::any;
  }
  if (!problem.grad_input.defined()) return Pass::value;
  if (problem.value.defined()) return Pass::any;
  if (problem.reduced.defined()) return Pass::step;
  return problem.grad_output.stride[0] == 1 ? Pass::backward : Pass::any;
}

template <class X, class Y>
bool run(const ElementwiseProblem& problem, const Schedule& schedule, const Grid& grid) {
  if (!fits<X, Y>(problem)) return false;
  visit(ElementwiseLosses{}, problem.loss, [&]<class Loss>() {
    auto kernel = dense<Loss, X, Y, Pass::any>;
    if constexpr (std::is_same_v<X, Y> && sizeof(X) <= 4) {  // the types that must be fast
      const Pass pass = pass_of(problem, schedule.skip_if_one);
      if (pass == Pass::value) kernel = dense<Loss, X, Y, Pass::value>;
      if (pass == Pass::step) kernel = dense<Loss, X, Y, Pass::step>;
      if (pass == Pass::backward) kernel = dense<Loss, X, Y, Pass::backward>;
    }
    launch("kernel elementwise_dense", Loss::name, kernel, grid, problem, schedule);
  });
  return true;
}

}  // namespace

bool elementwise_dense(const ElementwiseProblem& problem, const Schedule& schedule,
                       const Grid& grid) {
  return run<float, float>(problem, schedule, grid) ||
         run<double, double>(problem, schedule, grid) ||
         run<__nv_bfloat16, __nv_bfloat16>(problem, schedule, grid) ||
         run<__half, __half>(problem, schedule, grid) ||
         run<__nv_bfloat16, float>(problem, schedule, grid) ||
         run<__half, float>(problem, schedule, grid);
}

}  // namespace lossops::cuda
