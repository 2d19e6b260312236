// Training in plain eager mode: the loss, and an autograd node that has its gradient ready. These
// are the C++ counterparts of FusedElementwise, FusedSoftmax and FusedVectors in
// lossops/<family>/autograd.py. On small tensors, the Python code of an autograd.Function takes
// longer than everything else together.
//
// Only the first derivative is handled here. If a gradient must itself be differentiable, or is a
// batch under vmap, a Python function is called.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <optional>

#include "ops/tensors.h"

namespace lossops::ops {

template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// Whether the result will be differentiated or is a batch: under torch.func, in forward mode, or
// under the older vmap behind torch.autograd.grad(is_grads_batched=True).
inline bool is_transformed(const at::Tensor& grad_output) {
  const auto keys = grad_output.key_set();
  return keys.has(c10::DispatchKey::FuncTorchBatched) ||
         keys.has(c10::DispatchKey::FuncTorchGradWrapper) || keys.has(c10::DispatchKey::Batched) ||
         grad_output._fw_grad(/*level=*/0).defined();
}

// Gradients that the forward pass computed for grad_output = 1. The first backward pass takes them.
// They are not saved variables, because autograd checks those for in-place changes and these are
// scaled in place.
template <size_t count>
class ReadyGradients {
 public:
  void keep(std::array<at::Tensor, count> grads) {
    grads_ = std::move(grads);
    ready_ = true;
  }
  // The gradients, if they are still there: they can be taken only once.
  std::optional<std::array<at::Tensor, count>> take() {
    if (!std::exchange(ready_, false)) return std::nullopt;
    return std::exchange(grads_, {});
  }

 private:
  std::array<at::Tensor, count> grads_;
  bool ready_ = false;
};

// Multiplies the gradients of a forward pass by grad_output, in place. If there is a float16
// gradient, the gradients are recomputed by again(the defined ones) instead: scaling would lose
// digits, see lossops.elementwise.autograd.
template <size_t count, class Again>
void scale(const std::array<at::Tensor, count>& grads, const at::Tensor& grad_output,
           const Again& again) {
  static const auto rescale =
      find_op<void(at::TensorList, const at::Tensor&)>("lossops::elementwise_rescale_");
  c10::SmallVector<at::Tensor, count> present;
  bool half = false;
  for (const at::Tensor& grad : grads) {
    if (!grad.defined()) continue;
    present.push_back(grad);
    half = half || grad.scalar_type() == at::kHalf;
  }
  half ? again(at::TensorList(present)) : rescale.call(present, grad_output);
}

// The gradients that a Python function returns as a tuple, with None for a missing one.
template <size_t count>
std::array<at::Tensor, count> gradients_of(const pybind11::tuple& found) {
  std::array<at::Tensor, count> grads;
  for (size_t i = 0; i < count; ++i) {
    if (!found[i].is_none()) grads[i] = found[i].template cast<at::Tensor>();
  }
  return grads;
}

void bind_fused_elementwise(pybind11::module_& module);
void bind_fused_softmax(pybind11::module_& module);
void bind_fused_vectors(pybind11::module_& module);

}  // namespace lossops::ops
