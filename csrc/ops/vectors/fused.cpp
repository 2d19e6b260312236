// The losses over rows of vectors in eager training, and plain calls of one of them.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/custom_class.h>

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "common/vectors_problem.h"
#include "ops/fused.h"
#include "ops/plain.h"

namespace lossops::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Params = c10::ArrayRef<double>;
using Mask = std::array<bool, kMaxVectors>;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Four = std::tuple<Tensor, OptionalTensor, OptionalTensor, OptionalTensor>;

using Forward = Four(at::TensorList, const OptionalTensor&, const OptionalTensor&, c10::string_view,
                     Params, c10::string_view, at::ScalarType, Mask);
using Backward = Three(const Tensor&, at::TensorList, const OptionalTensor&, const OptionalTensor&,
                       c10::string_view, Params, c10::string_view, Mask);

// What an autograd node stores besides its inputs.
struct State : torch::CustomClassHolder {
  std::string loss, reduction;
  std::vector<double> params;
  at::ScalarType out_dtype = at::kFloat;
  size_t vectors = 0;
  Mask mask{};
  ReadyGradients<kMaxVectors> grads;
};

// The differentiable backward of lossops/vectors/autograd.py. Never freed: see
// ops/elementwise/fused.cpp.
pybind11::handle differentiable_backward;

variable_list place(const std::array<Tensor, kMaxVectors>& grads) {
  return {grads[0], grads[1], grads[2], Tensor(), Tensor(), Tensor()};
}

std::array<Tensor, kMaxVectors> backward_in_python(const State& state, const Tensor& grad_output,
                                                   const variable_list& inputs) {
  const pybind11::gil_scoped_acquire gil;
  pybind11::list vectors;
  for (size_t i = 0; i < state.vectors; ++i) vectors.append(inputs[i]);
  return gradients_of<kMaxVectors>(differentiable_backward(
      grad_output, vectors, pybind11::cast(state.mask), optional(inputs[kMaxVectors]),
      optional(inputs[kMaxVectors + 1]), state.loss, pybind11::tuple(pybind11::cast(state.params)),
      state.reduction, state.out_dtype));
}

struct FusedVectors : torch::autograd::Function<FusedVectors> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const OptionalTensor& y,
                        const OptionalTensor& z, const OptionalTensor& label,
                        const OptionalTensor& row_weight, const c10::intrusive_ptr<State>& state) {
    static const auto op = find_op<Forward>("lossops::vectors_forward");
    const Tensor inputs[kMaxVectors] = {x, y.value_or(Tensor()), z.value_or(Tensor())};
    c10::SmallVector<Tensor, kMaxVectors> vectors;
    for (int i = 0; i < kMaxVectors && inputs[i].defined(); ++i) {
      vectors.push_back(inputs[i]);
      state->mask[i] = inputs[i].requires_grad();
    }
    state->vectors = vectors.size();
    // float16 gradients would lose digits when scaled, so the backward pass computes them.
    const bool ready = state->reduction != "none" && x.scalar_type() != at::kHalf;
    Tensor value;
    {
      const at::AutoDispatchBelowADInplaceOrView guard;
      const auto results =
          op.call(vectors, label, row_weight, state->loss, state->params, state->reduction,
                  state->out_dtype, ready ? state->mask : Mask{});
      value = std::get<0>(results);
      if (ready) state->grads.keep(defined_results<1, kMaxVectors>(results));
    }
    ctx->save_for_backward(
        {inputs[0], inputs[1], inputs[2], label.value_or(Tensor()), row_weight.value_or(Tensor())});
    ctx->saved_data["state"] = c10::IValue::make_capsule(state);
    return value;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    static const auto op = find_op<Backward>("lossops::vectors_backward");
    auto& state = static_cast<State&>(*ctx->saved_data["state"].toCapsule());
    const Tensor& grad_output = grad_outputs[0];
    const auto inputs = ctx->get_saved_variables();
    const auto grads = state.grads.take();
    if (at::GradMode::is_enabled() || is_transformed(grad_output)) {
      return place(backward_in_python(state, grad_output, inputs));
    }
    const at::AutoDispatchBelowADInplaceOrView guard;
    if (!grads) {
      return place(
          as_array(op.call(grad_output, at::TensorList(inputs.data(), state.vectors),
                           optional(inputs[kMaxVectors]), optional(inputs[kMaxVectors + 1]),
                           state.loss, state.params, state.reduction, state.mask)));
    }
    scale(*grads, grad_output, [](at::TensorList) {});  // float16 gradients are not kept
    return place(*grads);
  }
};

Tensor fused_vectors(const std::vector<Tensor>& vectors, const OptionalTensor& label,
                     const OptionalTensor& row_weight, std::string loss, std::vector<double> params,
                     std::string reduction, at::ScalarType out_dtype) {
  auto state = c10::make_intrusive<State>();
  state->loss = std::move(loss);
  state->params = std::move(params);
  state->reduction = std::move(reduction);
  state->out_dtype = out_dtype;
  const auto given = [&](size_t i) {
    return i < vectors.size() ? OptionalTensor(vectors[i]) : std::nullopt;
  };
  return FusedVectors::apply(vectors.at(0), given(1), given(2), label, row_weight, state);
}

// multi_margin_loss; returns None if the call is not plain.
pybind11::object plain_multi_margin(pybind11::handle input, pybind11::handle target,
                                    pybind11::handle p, pybind11::handle margin,
                                    pybind11::handle reduction) {
  static const auto op = find_op<Forward>("lossops::vectors_forward");
  const Tensor* const scores = plain_scores(input);
  const Tensor* const labels = plain_tensor(target);
  const auto power = plain_int(p);
  const auto distance = plain_float(margin);
  const auto how = plain_reduction(reduction);
  if (!scores || !labels || !power || !distance || !how || !nobody_looks_on()) {
    return pybind11::none();
  }
  if (scores->dim() != 2 || scores->numel() == 0 || labels->dim() != 1 ||
      labels->size(0) != scores->size(0) || labels->scalar_type() != at::kLong ||
      labels->device() != scores->device() || (*power != 1 && *power != 2) ||
      std::isnan(*distance)) {
    return pybind11::none();
  }
  const char* const name = *power == 1 ? "multi_margin" : "multi_margin_squared";
  const auto dtype = scores->scalar_type();
  return run_plain(
      *scores,
      [&] { return fused_vectors({*scores}, *labels, {}, name, {*distance}, *how, dtype); },
      [&] { return op.call(*scores, *labels, {}, name, *distance, *how, dtype, {}); });
}

}  // namespace

void bind_fused_vectors(pybind11::module_& module) {
  module.def("fused_vectors", torch::wrap_pybind_function_no_gil(fused_vectors),
             "A loss over rows of vectors by the native kernels, attached to the graph.");
  module.def("plain_multi_margin", torch::wrap_pybind_function(plain_multi_margin),
             "multi_margin_loss of a plain call; None for others.");
  module.def(
      "set_differentiable_vectors_backward",
      [](pybind11::function function) { differentiable_backward = function.release(); },
      "Says which function gives gradients that are differentiable themselves.");
}

}  // namespace lossops::ops
