// The raw ops on CPU tensors, computed by the CUDA kernels on the device of device.h. What a
// problem does not name, kernels may not touch; what it wants, they must write.
#include <torch/library.h>

#include "cuda/elementwise.h"
#include "device.h"
#include "ops/elementwise.cpp"  // checks and layouts

namespace lossops::ops {
namespace {

enum class Role { input, output, in_place };

class Memory {
 public:
  explicit Memory(const ElementwiseProblem& problem) : problem_(problem) { cuda_on_cpu_forget(); }

  void add(const void* data, int64_t bytes, Role role) {
    cuda_on_cpu_memory(const_cast<void*>(data), bytes, role != Role::output, role == Role::input);
  }
  void add(std::initializer_list<Operand> operands, Role role) {
    for (const Operand& operand : operands) {
      each(operand, [&](char* data, int size) { add(data, size, role); });
    }
  }
  void check(std::initializer_list<Operand> operands) const {
    for (const Operand& operand : operands) {
      each(operand, [](char* data, int size) { check(data, size); });
    }
  }
  static void check(const void* data, int64_t bytes) {
    const int64_t at = cuda_on_cpu_unwritten(data, bytes);
    TORCH_CHECK(at < 0, "cuda_on_cpu: the kernel leaves a result unwritten");
  }

 private:
  template <class F>
  void each(const Operand& operand, const F& f) const {
    if (!operand.defined()) return;
    int64_t index[kMaxDims] = {}, offset = 0;
    const int size = size_of(operand.dtype);
    for (int64_t i = 0; i < problem_.numel; ++i) {
      f(static_cast<char*>(operand.data) + offset * size, size);
      for (int d = 0; d < problem_.ndim; ++d) {
        offset += operand.stride[d];
        if (++index[d] < problem_.size[d]) break;
        offset -= index[d] * operand.stride[d];
        index[d] = 0;
      }
    }
  }

  const ElementwiseProblem& problem_;
};

struct CudaOnCpuEngine {
  template <class F>
  static void run(const ElementwiseProblem& p, Role role, int64_t workspace_bytes, const F& f) {
    Memory memory(p);
    memory.add({p.input, p.target, p.weight, p.grad_output, p.tangent_input, p.tangent_target,
                p.tangent_weight},
               Role::input);
    memory.add({p.value, p.grad_input, p.grad_target, p.grad_weight}, role);
    const int64_t reduced_bytes = p.reduced.defined() ? p.groups * size_of(p.reduced.dtype) : 0;
    memory.add(p.reduced.data, reduced_bytes, role);
    if (p.normalizer.defined()) {
      const int64_t count = p.normalizer_stride == 0 ? 1 : p.groups;
      memory.add(p.normalizer.data, count * size_of(p.normalizer.dtype), Role::input);
    }
    const Tensor workspace = at::empty({workspace_bytes}, at::kByte);
    memory.add(workspace.data_ptr(), workspace_bytes, Role::output);
    f(workspace_bytes > 0 ? workspace.data_ptr() : nullptr);
    memory.check({p.value, p.grad_input, p.grad_target, p.grad_weight});
    Memory::check(p.reduced.data, reduced_bytes);
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
    const ElementwiseProblem none;
    Memory memory(none);
    memory.add(grad.data_ptr(), grad.numel() * grad.element_size(), Role::in_place);
    memory.add(factor.data_ptr(), factor.element_size(), Role::input);
    cuda::elementwise_rescale(grad.data_ptr(), dtype_of(grad), grad.numel(), factor.data_ptr(),
                              dtype_of(factor), nullptr);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(lossops_cuda_on_cpu, CPU, library) {
  register_elementwise_ops<CudaOnCpuEngine>(library);
}

}  // namespace lossops::ops
