// The raw ops on CPU tensors, computed by the CUDA kernels on the device of device.h. What a
// problem does not name, kernels may not touch; what it wants, they must write.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cuda/elementwise/engine.h"
#include "cuda/softmax/engine.h"
#include "cuda/vectors/engine.h"
#include "device.h"
#include "ops/checks.cpp"

namespace lossops::ops {
namespace {

enum class Role { input, output, in_place };

// Where the elements of an operand lie: calls f(address, bytes) for each.
template <class F>
void each(const ElementwiseProblem& problem, const Operand& operand, const F& f) {
  int64_t index[kMaxDims] = {}, offset = 0;
  const int size = size_of(operand.dtype);
  for (int64_t i = 0; operand.defined() && i < problem.numel; ++i) {
    f(static_cast<char*>(operand.data) + offset * size, size);
    for (int d = 0; d < problem.ndim; ++d) {
      offset += operand.stride[d];
      if (++index[d] < problem.size[d]) break;
      offset -= index[d] * operand.stride[d];
      index[d] = 0;
    }
  }
}

template <class F>
void each_row(const SoftmaxProblem& problem, const F& f) {
  for (int64_t outer = 0; outer < problem.outer; ++outer) {
    for (int64_t inner = 0; inner < problem.inner; ++inner) f(outer, inner);
  }
}

template <class F>
void each(const SoftmaxProblem& problem, const RowsOperand& rows, const F& f) {
  if (!rows.defined()) return;
  const int size = size_of(rows.dtype);
  each_row(problem, [&](int64_t outer, int64_t inner) {
    const int64_t first = outer * rows.outer_stride + inner * rows.inner_stride;
    for (int64_t c = 0; c < problem.classes; ++c) {
      f(static_cast<char*>(rows.data) + (first + c * rows.class_stride) * size, size);
    }
  });
}

template <class F>
void each(const SoftmaxProblem& problem, const RowNumbers& numbers, const F& f) {
  if (!numbers.defined()) return;
  const int size = size_of(numbers.dtype);
  each_row(problem, [&](int64_t outer, int64_t inner) {
    const int64_t at = outer * numbers.outer_stride + inner * numbers.inner_stride;
    f(static_cast<char*>(numbers.data) + at * size, size);
  });
}

template <class F>
void each(const SoftmaxProblem& problem, const RowLabels& labels, const F& f) {
  if (!labels.defined()) return;
  each_row(problem, [&](int64_t outer, int64_t inner) {
    const int64_t at = outer * labels.outer_stride + inner * labels.inner_stride;
    f(static_cast<char*>(const_cast<void*>(labels.data)) + at * labels.bytes, labels.bytes);
  });
}

// The same of rows of vectors, and of what there is one of per row.
template <class F>
void each(const VectorsProblem& problem, const RowVectors& vectors, const F& f) {
  if (!vectors.defined()) return;
  const int size = size_of(problem.dtype);
  for (int64_t r = 0; r < problem.rows; ++r) {
    for (int64_t i = 0; i < problem.length; ++i) {
      f(static_cast<char*>(vectors.data) + (r * vectors.row_stride + i) * size, size);
    }
  }
}

template <class F>
void each(const VectorsProblem& problem, const RowNumbers& numbers, const F& f) {
  if (!numbers.defined()) return;
  const int size = size_of(numbers.dtype);
  for (int64_t r = 0; r < problem.rows; ++r) {
    f(static_cast<char*>(numbers.data) + r * numbers.outer_stride * size, size);
  }
}

template <class F>
void each(const VectorsProblem& problem, const RowLabels& labels, const F& f) {
  if (!labels.defined()) return;
  const int64_t per_row = problem.has_lists() ? problem.length : 1;
  for (int64_t r = 0; r < problem.rows; ++r) {
    for (int64_t i = 0; i < per_row; ++i) {
      const int64_t at = r * labels.outer_stride + i * labels.inner_stride;
      f(static_cast<char*>(const_cast<void*>(labels.data)) + at * labels.bytes, labels.bytes);
    }
  }
}

// What the device may touch, and has to write.
struct Memory {
  Memory() { cuda_on_cpu_forget(); }

  static void add(const void* data, int64_t bytes, Role role) {
    cuda_on_cpu_memory(const_cast<void*>(data), bytes, role != Role::output, role == Role::input);
  }
  template <class Problem, class... Operands>
  static void add(Role role, const Problem& problem, const Operands&... operands) {
    (each(problem, operands, [&](char* data, int size) { add(data, size, role); }), ...);
  }
  static void check(const void* data, int64_t bytes) {
    const int64_t at = cuda_on_cpu_unwritten(data, bytes);
    TORCH_CHECK(at < 0, "cuda_on_cpu: the kernel leaves a result unwritten");
  }
  template <class Problem, class... Operands>
  static void check_all(const Problem& problem, const Operands&... operands) {
    (each(problem, operands, [](char* data, int size) { check(data, size); }), ...);
  }
};

template <class Problem>
int64_t reduced_bytes(const Problem& p) {
  return p.reduced.defined() ? p.groups * size_of(p.reduced.dtype) : 0;
}

template <class Problem>
int64_t normalizer_bytes(const Problem& p) {
  if (!p.normalizer.defined()) return 0;
  return (p.normalizer_stride == 0 ? 1 : p.groups) * size_of(p.normalizer.dtype);
}

// Calls f with memory for a workspace.
template <class F>
void with_workspace(int64_t bytes, const F& f) {
  const Tensor workspace = at::empty({bytes}, at::kByte);
  Memory::add(workspace.data_ptr(), bytes, Role::output);
  f(bytes > 0 ? workspace.data_ptr() : nullptr);
}

struct CudaOnCpuEngine {
  template <class F>
  static void run(const ElementwiseProblem& p, Role role, int64_t workspace_bytes, const F& f) {
    Memory memory;
    memory.add(Role::input, p, p.input, p.target, p.weight, p.grad_output, p.tangent_input,
               p.tangent_target, p.tangent_weight);
    memory.add(role, p, p.value, p.grad_input, p.grad_target, p.grad_weight);
    memory.add(p.reduced.data, reduced_bytes(p), role);
    memory.add(p.normalizer.data, normalizer_bytes(p), Role::input);
    with_workspace(workspace_bytes, f);
    memory.check_all(p, p.value, p.grad_input, p.grad_target, p.grad_weight);
    memory.check(p.reduced.data, reduced_bytes(p));
  }

  static void forward(const ElementwiseProblem& problem, const Tensor&) {
    run(problem, Role::output, cuda::elementwise_workspace_bytes(problem),
        [&](void* workspace) { cuda::elementwise_forward(problem, workspace, nullptr); });
  }
  static void backward(const ElementwiseProblem& problem, const Tensor&, bool skip_if_one) {
    run(problem, skip_if_one ? Role::in_place : Role::output, 0,
        [&](void*) { cuda::elementwise_backward(problem, skip_if_one, nullptr); });
  }
  static void double_backward(const ElementwiseProblem& problem, const Tensor&) {
    run(problem, Role::output, cuda::elementwise_workspace_bytes(problem),
        [&](void* workspace) { cuda::elementwise_double_backward(problem, workspace, nullptr); });
  }
  static void rescale(const Tensor& grad, const Tensor& factor) {
    Memory memory;
    memory.add(grad.data_ptr(), grad.numel() * grad.element_size(), Role::in_place);
    memory.add(factor.data_ptr(), factor.element_size(), Role::input);
    cuda::elementwise_rescale(grad.data_ptr(), dtype_of(grad), grad.numel(), factor.data_ptr(),
                              dtype_of(factor), nullptr);
  }
};

struct SoftmaxOnCpuEngine {
  template <class F>
  static void run(const SoftmaxProblem& p, Role role, const F& f) {
    Memory memory;
    memory.add(Role::input, p, p.input, p.target, p.labels, p.grad_output, p.grad_lse,
               p.grad_entropy);
    const Operand& weight = p.class_weight;
    for (int64_t c = 0; weight.defined() && c < p.classes; ++c) {
      const int size = size_of(weight.dtype);
      memory.add(static_cast<char*>(weight.data) + c * weight.stride[0] * size, size, Role::input);
    }
    memory.add(role, p, p.grad_input, p.grad_target);  // the first may be where the input is
    memory.add(Role::output, p, p.value, p.lse, p.entropy, p.accuracy);
    memory.add(p.reduced.data, reduced_bytes(p), Role::output);
    memory.add(p.normalizer.data, normalizer_bytes(p), p.count ? Role::output : Role::input);
    with_workspace(cuda::softmax_workspace_bytes(p), f);
    memory.check_all(p, p.value, p.lse, p.entropy, p.accuracy, p.grad_input, p.grad_target);
    memory.check(p.reduced.data, reduced_bytes(p));
    memory.check(p.normalizer.data, normalizer_bytes(p));
  }

  static void check(const SoftmaxProblem&) {}
  static void forward(const SoftmaxProblem& problem, const Tensor&) {
    run(problem, Role::output,
        [&](void* workspace) { cuda::softmax_forward(problem, workspace, nullptr); });
  }
  static void backward(const SoftmaxProblem& problem, const Tensor&, bool skip_if_one) {
    run(problem, skip_if_one ? Role::in_place : Role::output,
        [&](void*) { cuda::softmax_backward(problem, skip_if_one, nullptr); });
  }
};

struct VectorsOnCpuEngine {
  static void run(const VectorsProblem& p, const Tensor&, bool) {
    Memory memory;
    memory.add(Role::input, p, p.vectors[0], p.vectors[1], p.vectors[2], p.labels, p.signs,
               p.row_weight, p.grad_output);
    memory.add(Role::output, p, p.value, p.grads[0], p.grads[1], p.grads[2]);
    cuda::vectors_run(p, nullptr);
    memory.check_all(p, p.value, p.grads[0], p.grads[1], p.grads[2]);
  }
  static Tensor sum(const VectorsProblem&, const Tensor& values, double over,
                    at::ScalarType dtype) {
    return values.sum(at::kDouble).div(over).to(dtype);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(lossops_cuda_on_cpu, CPU, library) {
  register_elementwise_ops<CudaOnCpuEngine>(library);
  register_softmax_ops<SoftmaxOnCpuEngine>(library);
  register_vector_ops<VectorsOnCpuEngine>(library);
}

}  // namespace lossops::ops
