// The raw ops have no derivatives of their own; lossops/core/fused.py defines those of the
// losses. Differentiating a raw op raises an error rather than silently giving no gradient. If an
// op overwrites a tensor, graphs that have saved the tensor must be notified.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace {

using Stack = torch::jit::Stack;

// Calls f with each tensor of the call, and whether it is written.
template <class F>
void each_tensor(const c10::OperatorHandle& op, const Stack& stack, const F& f) {
  const auto& arguments = op.schema().arguments();
  const size_t first = stack.size() - arguments.size();
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto* const alias = arguments[i].alias_info();
    const bool written = alias && alias->isWrite();
    const c10::IValue& value = stack[first + i];
    if (value.isTensor()) {
      f(value.toTensor(), written);
    } else if (value.isTensorList()) {
      for (const at::Tensor& tensor : value.toTensorVector()) f(tensor, written);
    }
  }
}

// Rejects calls of in-place ops that would be differentiated, with torch's own error messages where
// it has some.
void refuse_to_write(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  bool differentiated = false;
  each_tensor(op, *stack, [&](const at::Tensor& tensor, bool) {
    TORCH_CHECK_NOT_IMPLEMENTED(!tensor.defined() || !tensor._fw_grad(/*level=*/0).defined(),
                                "forward mode has no derivative of ", op.operator_name());
    differentiated |= at::GradMode::is_enabled() && tensor.defined() && tensor.requires_grad();
  });
  if (differentiated) {
    each_tensor(op, *stack, [&](const at::Tensor& tensor, bool written) {
      if (written) torch::autograd::check_inplace(tensor, /*requires_grad=*/true);
    });
    TORCH_CHECK(false, op.operator_name(),
                " writes in place and has no derivative, but one of its arguments requires grad.");
  }
  const at::AutoDispatchBelowAutograd guard;
  op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
}

void count_as_written(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  each_tensor(op, *stack, [](const at::Tensor& tensor, bool written) {
    if (written) torch::autograd::increment_version(tensor);
  });
  const at::AutoDispatchBelowADInplaceOrView guard;
  op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
}

// torch's own handling of these views expects an op that writes to return what it has written.
void refuse_lazy_views(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack*) {
  TORCH_CHECK(false, op.operator_name(),
              " writes in place and takes no negative or conjugate views: call resolve_neg() or "
              "resolve_conj() before.");
}

constexpr const char* kInPlace[] = {"elementwise_backward_", "elementwise_rescale_",
                                    "softmax_forward_", "softmax_backward_"};

template <auto kernel>
void register_in_place(torch::Library& library) {
  for (const char* op : kInPlace) {
    library.impl(op, torch::CppFunction::makeFromBoxedFunction<kernel>());
  }
}

void refuse_derivatives(torch::Library& library) {
  for (const char* op :
       {"elementwise_forward", "elementwise_backward", "elementwise_double_backward",
        "softmax_forward", "softmax_backward", "vectors_forward", "vectors_backward"}) {
    library.impl(op, torch::autograd::autogradNotImplementedFallback());
  }
  register_in_place<&refuse_to_write>(library);
}

}  // namespace

// For each namespace.
#define LOSSOPS_OF_ALL_DEVICES(space)                   \
  TORCH_LIBRARY_IMPL(space, Autograd, library) {        \
    refuse_derivatives(library);                        \
  }                                                     \
  TORCH_LIBRARY_IMPL(space, ADInplaceOrView, library) { \
    register_in_place<&count_as_written>(library);      \
  }                                                     \
  TORCH_LIBRARY_IMPL(space, Negative, library) {        \
    register_in_place<&refuse_lazy_views>(library);     \
  }                                                     \
  TORCH_LIBRARY_IMPL(space, Conjugate, library) {       \
    register_in_place<&refuse_lazy_views>(library);     \
  }

LOSSOPS_OF_ALL_DEVICES(lossops)
LOSSOPS_OF_ALL_DEVICES(lossops_triton)
