// Training in plain eager mode: the loss, and an autograd node that has its gradient ready. This is
// the C++ counterpart of lossops/core/fused.py. On small tensors, the Python code of an
// autograd.Function takes longer than everything else together.
//
// Only the first derivative is handled here. If a gradient must itself be differentiable, or is a
// batch under vmap, a Python function is called.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/custom_class.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "ops/tensors.h"

namespace lossops::ops {

// What the functions below know of a family of losses, which derives from this. It also defines
//
//   name               with which the names of its ops begin
//   kTensors           number of its tensors, which are undefined where they are missing
//   kMoving            number of those that may require a gradient; they come first
//   Arguments          a tuple of the ops' other arguments up to out_dtype, as in the schemas
//   Forward, Backward  the signatures of its ops
//   BackwardInPlace    likewise of the op that recomputes float16 gradients, if there is one
//   op_tensors         the tensors as the ops take them, in a tuple
//   gives_a_number     whether the loss of these arguments is a single number
struct FamilyDefaults {
  // Where the gradients are among the results of Forward.
  static constexpr size_t first_gradient = 1;
  // The output_mask of Forward that asks for these gradients.
  static const auto& op_mask(const auto& mask) { return mask; }
  // The upstream gradients that Backward takes, in a tuple.
  static auto op_cotangents(const Tensor& grad_output) { return std::tie(grad_output); }
  // Replaces tensors by results of Forward that Backward takes in their place.
  static void replace(auto& /*tensors*/, const auto& /*results*/) {}
};

// For the signatures of ops, which are templates: decltype(elementwise_forward<AnyEngine>).
struct AnyEngine;

template <class Family>
using TensorsOf = std::array<Tensor, Family::kTensors>;
template <class Family>
using MaskOf = std::array<bool, Family::kMoving>;
template <class Family>
using GradientsOf = std::array<Tensor, Family::kMoving>;

template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "").typed<Signature>();
}

// Calls an op with the elements of several tuples.
template <class Op, class... Tuples>
auto call(const Op& op, const Tuples&... tuples) {
  const auto refer = [](const auto& tuple) {
    return std::apply([](const auto&... elements) { return std::tie(elements...); }, tuple);
  };
  return std::apply([&](const auto&... arguments) { return op.call(arguments...); },
                    std::tuple_cat(refer(tuples)...));
}

// The results of the forward op, computed below autograd.
template <class Family>
auto forward(const TensorsOf<Family>& tensors, const typename Family::Arguments& arguments,
             at::ScalarType out_dtype, const MaskOf<Family>& mask) {
  static const auto op =
      find_op<typename Family::Forward>("lossops::" + std::string(Family::name) + "_forward");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return call(op, Family::op_tensors(tensors), arguments,
              std::make_tuple(out_dtype, Family::op_mask(mask)));
}

// Whether the result will be differentiated or is a batch: under torch.func, in forward mode, or
// under the older vmap behind torch.autograd.grad(is_grads_batched=True).
inline bool is_transformed(const at::Tensor& grad_output) {
  const auto keys = grad_output.key_set();
  return keys.has(c10::DispatchKey::FuncTorchBatched) ||
         keys.has(c10::DispatchKey::FuncTorchGradWrapper) || keys.has(c10::DispatchKey::Batched) ||
         grad_output._fw_grad(/*level=*/0).defined();
}

// The Python function that gives differentiable gradients of all families. Never freed: the
// interpreter may already be gone by then.
inline pybind11::handle differentiable_backward;

template <class Family>
class Fused : public torch::autograd::Function<Fused<Family>> {
 public:
  using AutogradContext = torch::autograd::AutogradContext;
  using variable_list = torch::autograd::variable_list;
  using Arguments = typename Family::Arguments;

  // What a node stores besides its tensors.
  struct State : torch::CustomClassHolder {
    State(Arguments arguments, at::ScalarType out_dtype)
        : arguments(std::move(arguments)), out_dtype(out_dtype) {}

    const Arguments arguments;
    const at::ScalarType out_dtype;
    MaskOf<Family> mask{};
    // The gradients for grad_output = 1, until the first backward pass takes them. They are not
    // saved variables, because autograd checks those for in-place changes and these are scaled in
    // place.
    std::optional<GradientsOf<Family>> ready;
  };

  // The loss, attached to the graph.
  static Tensor attached(const TensorsOf<Family>& tensors, Arguments arguments,
                         at::ScalarType out_dtype) {
    auto state = c10::make_intrusive<State>(std::move(arguments), out_dtype);
    return std::apply(
        [&](const auto&... tensor) { return Fused::apply(state, optional(tensor)...); }, tensors);
  }

  // The tensors are arguments of their own, where autograd finds them.
  template <class... Optional>
  static Tensor forward(AutogradContext* ctx, const c10::intrusive_ptr<State>& state,
                        const Optional&... given) {
    TensorsOf<Family> tensors = {given.value_or(Tensor())...};
    for (size_t i = 0; i < Family::kMoving; ++i) {
      state->mask[i] = tensors[i].defined() && tensors[i].requires_grad();
    }
    const bool ready = has_gradients_ready(tensors, *state);
    const auto results = ops::forward<Family>(tensors, state->arguments, state->out_dtype,
                                              ready ? state->mask : MaskOf<Family>{});
    if (ready) state->ready = defined_results<Family::first_gradient, Family::kMoving>(results);
    Family::replace(tensors, results);
    ctx->save_for_backward(
        {std::move_iterator(tensors.begin()), std::move_iterator(tensors.end())});
    ctx->saved_data["state"] = c10::IValue::make_capsule(state);
    return std::get<0>(results);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    auto& state = static_cast<State&>(*ctx->saved_data["state"].toCapsule());
    TensorsOf<Family> tensors;
    std::ranges::move(ctx->get_saved_variables(), tensors.begin());
    auto ready = std::exchange(state.ready, std::nullopt);
    auto grads = gradients(state, grad_outputs[0], tensors, ready);
    variable_list result(1 + Family::kTensors);  // the state has none
    std::ranges::move(grads, result.begin() + 1);
    return result;
  }

 private:
  // Without an op that recomputes float16 gradients in place, they are left to the backward pass.
  static constexpr bool kRecomputesHalves = requires { typename Family::BackwardInPlace; };

  static bool has_gradients_ready(const TensorsOf<Family>& tensors, const State& state) {
    return Family::gives_a_number(state.arguments) &&
           (kRecomputesHalves || tensors[0].scalar_type() != at::kHalf);
  }

  static GradientsOf<Family> gradients(const State& state, const Tensor& grad_output,
                                       const TensorsOf<Family>& tensors,
                                       std::optional<GradientsOf<Family>>& ready) {
    static const auto op =
        find_op<typename Family::Backward>("lossops::" + std::string(Family::name) + "_backward");
    if (at::GradMode::is_enabled() || is_transformed(grad_output)) {
      return differentiable_gradients(state, grad_output, tensors);
    }
    const at::AutoDispatchBelowADInplaceOrView guard;
    if (!ready) {
      return as_array(call(op, Family::op_cotangents(grad_output), Family::op_tensors(tensors),
                           state.arguments, std::tie(state.mask)));
    }
    scale(state, grad_output, tensors, *ready);
    return std::move(*ready);
  }

  // Multiplies the gradients by grad_output, in place. float16 gradients are recomputed instead:
  // those of a mean may be so small that scaling them afterwards would lose digits, which loss
  // scaling is meant to avoid.
  static void scale(const State& state, const Tensor& grad_output, const TensorsOf<Family>& tensors,
                    const GradientsOf<Family>& ready) {
    static const auto rescale =
        find_op<void(at::TensorList, const Tensor&)>("lossops::elementwise_rescale_");
    c10::SmallVector<Tensor, Family::kMoving> present;
    std::ranges::copy_if(ready, std::back_inserter(present), &Tensor::defined);
    if constexpr (kRecomputesHalves) {
      static const auto op = find_op<typename Family::BackwardInPlace>(
          "lossops::" + std::string(Family::name) + "_backward_");
      const auto is_half = [](const Tensor& grad) { return grad.scalar_type() == at::kHalf; };
      if (std::ranges::any_of(present, is_half)) {
        call(op, std::make_tuple(at::TensorList(present), grad_output), Family::op_tensors(tensors),
             state.arguments, std::tie(state.mask));
        return;
      }
    }
    rescale.call(present, grad_output);
  }

  static GradientsOf<Family> differentiable_gradients(const State& state, const Tensor& grad_output,
                                                      const TensorsOf<Family>& tensors) {
    const pybind11::gil_scoped_acquire gil;
    std::array<OptionalTensor, Family::kTensors> given;
    std::ranges::transform(tensors, given.begin(), optional);
    const pybind11::tuple found = differentiable_backward(Family::name, given, state.arguments,
                                                          state.out_dtype, grad_output, state.mask);
    GradientsOf<Family> grads;
    for (size_t i = 0; i < grads.size(); ++i) {
      if (!found[i].is_none()) grads[i] = found[i].template cast<Tensor>();
    }
    return grads;
  }
};

// The loss, attached to the graph if a gradient is wanted; None if one is wanted by a tensor that
// has no gradient.
template <class Family>
OptionalTensor fused_loss(const TensorsOf<Family>& tensors, typename Family::Arguments arguments,
                          at::ScalarType out_dtype) {
  const auto moves = [](const Tensor& tensor) {
    return tensor.defined() && tensor.requires_grad();
  };
  const auto* const others = tensors.begin() + Family::kMoving;
  if (at::GradMode::is_enabled()) {
    if (std::any_of(others, tensors.end(), moves)) return std::nullopt;
    if (std::any_of(tensors.begin(), others, moves)) {
      return Fused<Family>::attached(tensors, std::move(arguments), out_dtype);
    }
  }
  return std::get<0>(forward<Family>(tensors, arguments, out_dtype, MaskOf<Family>{}));
}

template <size_t, class T>
using Indexed = T;

// Adds the function fused_<family> to the module, of the tensors, the Arguments and out_dtype.
template <class Family, size_t... tensors, class... Arguments>
void bind_fused(pybind11::module_& module, std::index_sequence<tensors...>,
                std::type_identity<std::tuple<Arguments...>>) {
  const auto function = [](const Indexed<tensors, OptionalTensor>&... given, Arguments... arguments,
                           at::ScalarType out_dtype) {
    return fused_loss<Family>({given.value_or(Tensor())...}, {std::move(arguments)...}, out_dtype);
  };
  module.def(("fused_" + std::string(Family::name)).c_str(),
             torch::wrap_pybind_function_no_gil(function),
             "A loss by the native kernels, attached to the graph if a gradient is wanted. None if "
             "one is wanted by a tensor that has no gradient.");
}
template <class Family>
void bind_fused(pybind11::module_& module) {
  bind_fused<Family>(module, std::make_index_sequence<Family::kTensors>(),
                     std::type_identity<typename Family::Arguments>());
}

void bind_elementwise(pybind11::module_& module);
void bind_softmax(pybind11::module_& module);
void bind_vectors(pybind11::module_& module);

}  // namespace lossops::ops
