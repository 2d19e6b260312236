// The elementwise losses in eager training.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/custom_class.h>

#include <string>
#include <tuple>
#include <vector>

#include "ops/fused.h"

namespace lossops::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Params = c10::ArrayRef<double>;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Four = std::tuple<Tensor, OptionalTensor, OptionalTensor, OptionalTensor>;

using Forward = Four(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                     c10::string_view, Params, c10::string_view, int64_t, at::ScalarType,
                     std::array<bool, 3>);
using Backward = Three(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                       const OptionalTensor&, c10::string_view, Params, c10::string_view, int64_t,
                       std::array<bool, 3>);
using BackwardInPlace = void(at::TensorList, const Tensor&, const Tensor&, const Tensor&,
                             const OptionalTensor&, const OptionalTensor&, c10::string_view, Params,
                             c10::string_view, int64_t, std::array<bool, 3>);

// What an autograd node stores besides its inputs.
struct State : torch::CustomClassHolder {
  std::string loss, reduction;
  std::vector<double> params;
  int64_t keep_dims = 0;
  at::ScalarType out_dtype = at::kFloat;
  std::array<bool, 3> mask{};
  ReadyGradients<3> grads;
};

// The differentiable backward of lossops/elementwise/autograd.py. Never freed: the interpreter may
// already be gone by then.
pybind11::handle differentiable_backward;

variable_list place(const std::array<Tensor, 3>& grads) {
  return {grads[0], grads[1], grads[2], Tensor(), Tensor()};
}

std::array<Tensor, 3> backward_in_python(const State& state, const Tensor& grad_output,
                                         const variable_list& inputs) {
  const pybind11::gil_scoped_acquire gil;
  return gradients_of<3>(differentiable_backward(
      grad_output, optional(inputs[0]), optional(inputs[1]), optional(inputs[2]),
      optional(inputs[3]), state.loss, pybind11::tuple(pybind11::cast(state.params)),
      state.reduction, state.keep_dims, state.out_dtype,
      pybind11::make_tuple(state.mask[0], state.mask[1], state.mask[2])));
}

struct FusedElementwise : torch::autograd::Function<FusedElementwise> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& target,
                        const OptionalTensor& weight, const OptionalTensor& normalizer,
                        const c10::intrusive_ptr<State>& state) {
    static const auto op = find_op<Forward>("lossops::elementwise_forward");
    const auto wants = [](const Tensor& t) { return t.requires_grad(); };
    state->mask = {wants(input), wants(target), weight.has_value() && wants(*weight)};
    const bool gives_a_number = state->reduction != "none" && state->keep_dims == 0;
    const auto in_forward = gives_a_number ? state->mask : std::array<bool, 3>{};
    Tensor value;
    {
      const at::AutoDispatchBelowADInplaceOrView guard;
      const auto results =
          op.call(input, target, weight, normalizer, state->loss, state->params, state->reduction,
                  state->keep_dims, state->out_dtype, in_forward);
      value = std::get<0>(results);
      if (gives_a_number) state->grads.keep(defined_results<1, 3>(results));
    }
    ctx->save_for_backward(
        {input, target, weight.value_or(Tensor()), normalizer.value_or(Tensor())});
    ctx->saved_data["state"] = c10::IValue::make_capsule(state);
    return value;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    static const auto op = find_op<Backward>("lossops::elementwise_backward");
    static const auto in_place = find_op<BackwardInPlace>("lossops::elementwise_backward_");
    auto& state = static_cast<State&>(*ctx->saved_data["state"].toCapsule());
    const Tensor& grad_output = grad_outputs[0];
    const auto inputs = ctx->get_saved_variables();
    const auto grads = state.grads.take();
    if (at::GradMode::is_enabled() || is_transformed(grad_output)) {
      return place(backward_in_python(state, grad_output, inputs));
    }
    const at::AutoDispatchBelowADInplaceOrView guard;
    const OptionalTensor weight = optional(inputs[2]), normalizer = optional(inputs[3]);
    if (!grads) {
      return place(
          as_array(op.call(grad_output, inputs[0], inputs[1], weight, normalizer, state.loss,
                           state.params, state.reduction, state.keep_dims, state.mask)));
    }
    scale(*grads, grad_output, [&](at::TensorList present) {
      in_place.call(present, grad_output, inputs[0], inputs[1], weight, normalizer, state.loss,
                    state.params, state.reduction, state.keep_dims, state.mask);
    });
    return place(*grads);
  }
};

Tensor fused_elementwise(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                         const OptionalTensor& normalizer, std::string loss,
                         std::vector<double> params, std::string reduction, int64_t keep_dims,
                         at::ScalarType out_dtype) {
  auto state = c10::make_intrusive<State>();
  state->loss = std::move(loss);
  state->params = std::move(params);
  state->reduction = std::move(reduction);
  state->keep_dims = keep_dims;
  state->out_dtype = out_dtype;
  return FusedElementwise::apply(input, target, weight, normalizer, state);
}

}  // namespace

void bind_fused_elementwise(pybind11::module_& module) {
  module.def("fused_elementwise", torch::wrap_pybind_function_no_gil(fused_elementwise),
             "A loss by the native kernels, attached to the graph.");
  module.def(
      "set_differentiable_backward",
      [](pybind11::function function) { differentiable_backward = function.release(); },
      "Says which function gives gradients that are differentiable themselves.");
}

}  // namespace lossops::ops
