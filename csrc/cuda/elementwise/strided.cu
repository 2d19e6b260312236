// Any layout: the dtype and strides of every operand are known at run time only.
#include "cuda/elementwise/schedule.cuh"

namespace lossops::cuda {
namespace {

// The position of the i-th element of a problem in its operands.
class Position {
 public:
  __device__ __forceinline__ Position(const ElementwiseProblem& problem, int64_t i)
      : ndim_(problem.ndim) {
    // Unrolled, with early exits: an array that is indexed at run time would be in local memory.
    unsigned long long rest = i;
#pragma unroll
    for (int d = 0; d < kMaxDims; ++d) {
      index_[d] = rest;
      if (d + 1 >= ndim_) break;
      index_[d] = rest % static_cast<unsigned long long>(problem.size[d]);
      rest /= static_cast<unsigned long long>(problem.size[d]);
    }
  }

  __device__ __forceinline__ int64_t in(const Operand& operand) const {
    int64_t offset = index_[0] * operand.stride[0];
#pragma unroll
    for (int d = 1; d < kMaxDims; ++d) {
      if (d >= ndim_) break;
      offset += index_[d] * operand.stride[d];
    }
    return offset;
  }

 private:
  const int ndim_;
  int64_t index_[kMaxDims];
};

__device__ __forceinline__ Bits read(const Operand& operand, const Position& position) {
  return operand.defined() ? load_bits(operand.data, operand.dtype, position.in(operand)) : 0;
}

template <class T>
__device__ __forceinline__ T number(const Operand& operand, Bits bits, T if_absent) {
  return operand.defined() ? decode<T>(bits, operand.dtype) : if_absent;
}

template <class T>
__device__ __forceinline__ void write(const Operand& operand, const Position& position, T number) {
  if (!operand.defined()) return;
  store_number(operand.data, operand.dtype, position.in(operand), number);
}

// Forward or backward of one element; returns what is to be reduced.
template <class Loss, class T>
__device__ __forceinline__ T first_order(const ElementwiseProblem& p, const T* params, T scale,
                                         const Position& at) {
  const Bits input = read(p.input, at), target = read(p.target, at);
  const Bits weight = read(p.weight, at), grad_output = read(p.grad_output, at);
  const Jet<T> f = Loss::template at<1>(decode<T>(input, p.input.dtype),
                                        decode<T>(target, p.target.dtype), params);
  const T w = number<T>(p.weight, weight, 1);
  const T factor = scale * w, upstream = number<T>(p.grad_output, grad_output, 1);
  write(p.value, at, w * f.value);
  write(p.grad_input, at, factor * f.dx * upstream);
  write(p.grad_target, at, factor * f.dy * upstream);
  write(p.grad_weight, at, scale * f.value * upstream);
  return w * f.value;
}

// Double backward of one element, in the direction (a, b, c); returns what is to be reduced.
template <class Loss, class T>
__device__ __forceinline__ T second_order(const ElementwiseProblem& p, const T* params, T scale,
                                          const Position& at) {
  const Bits input = read(p.input, at), target = read(p.target, at);
  const Bits weight = read(p.weight, at), grad_output = read(p.grad_output, at);
  const Bits tangent_input = read(p.tangent_input, at);
  const Bits tangent_target = read(p.tangent_target, at);
  const Bits tangent_weight = read(p.tangent_weight, at);
  const Jet<T> f = Loss::template at<2>(decode<T>(input, p.input.dtype),
                                        decode<T>(target, p.target.dtype), params);
  const T w = number<T>(p.weight, weight, 1);
  const T g = scale * number<T>(p.grad_output, grad_output, 1);
  const T a = number<T>(p.tangent_input, tangent_input, 0);
  const T b = number<T>(p.tangent_target, tangent_target, 0);
  const T c = number<T>(p.tangent_weight, tangent_weight, 0);
  // If a tangent is absent, an infinite derivative by it gives 0, not NaN.
  const auto part = [](const Operand& tangent, T by, T derivative) {
    return tangent.defined() ? by * derivative : T(0);
  };
  const auto along_both = [&](T dx, T dy) {
    return part(p.tangent_input, a, dx) + part(p.tangent_target, b, dy);
  };
  const auto all = [&](T by_both, T by_c) { return w * by_both + part(p.tangent_weight, c, by_c); };
  const T along = along_both(f.dx, f.dy);  // the unweighted loss along (a, b)
  const T directional = all(along, f.value);
  write(p.value, at, directional);
  write(p.grad_input, at, g * all(along_both(f.dxx, f.dxy), f.dx));
  write(p.grad_target, at, g * all(along_both(f.dxy, f.dyy), f.dy));
  write(p.grad_weight, at, g * along);
  return directional;
}

// The number of blocks that a multiprocessor should hold, which limits their registers.
template <class Loss, class T, int order>
constexpr int blocks_at_once() {
  if (kIsLong<Loss> || order == 2) return sizeof(T) == 8 ? 2 : 3;
  return sizeof(T) == 8 ? 3 : 4;
}

template <class Loss, class T, int order>
__global__ void __launch_bounds__(kThreads, blocks_at_once<Loss, T, order>())
    strided(const __grid_constant__ ElementwiseProblem problem,
            const __grid_constant__ Schedule schedule) {
  if (order == 1 && nothing_to_do(problem, schedule)) return;
  T params[kMaxParams];
  for (int i = 0; i < kMaxParams; ++i) params[i] = static_cast<T>(problem.params[i]);
  const int split = blockIdx.x % schedule.splits;
  const int64_t step = int64_t(schedule.splits) * blockDim.x;

  for (int64_t group = blockIdx.x / schedule.splits; group < problem.groups;
       group += gridDim.x / schedule.splits) {
    const T scale = static_cast<T>(scale_of(problem, group));
    const int64_t begin = group * problem.group_size, end = begin + problem.group_size;
    double sum = 0;
    for (int64_t i = begin + split * blockDim.x + threadIdx.x; i < end; i += step) {
      const Position position(problem, i);
      sum += order == 1 ? first_order<Loss>(problem, params, scale, position)
                        : second_order<Loss>(problem, params, scale, position);
    }
    if (problem.reduced.defined()) reduce_group(problem, schedule, group, split, sum);
  }
}

template <class Loss>
auto kernel_of(bool double_precision, int order) {
  if (double_precision) return order == 1 ? strided<Loss, double, 1> : strided<Loss, double, 2>;
  return order == 1 ? strided<Loss, float, 1> : strided<Loss, float, 2>;
}

}  // namespace

void elementwise_strided(const ElementwiseProblem& problem, int order, const Schedule& schedule,
                         const Grid& grid) {
  visit(ElementwiseLosses{}, problem.loss, [&]<class Loss>() {
    const auto kernel = kernel_of<Loss>(problem.double_precision, order);
    launch("kernel elementwise_strided", Loss::name, kernel, grid, problem, schedule);
  });
}

}  // namespace lossops::cuda
