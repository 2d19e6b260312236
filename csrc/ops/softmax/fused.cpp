// The losses over rows in eager training, if nothing but the loss of a row is wanted, and plain
// calls of them, with or without a gradient.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/custom_class.h>

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "ops/fused.h"
#include "ops/plain.h"

namespace lossops::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Params = c10::ArrayRef<double>;
using Two = std::tuple<Tensor, Tensor>;
using Seven = std::tuple<Tensor, OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor,
                         OptionalTensor, OptionalTensor>;

using Forward = Seven(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                      c10::string_view, int64_t, c10::string_view, c10::string_view, Params,
                      int64_t, bool, c10::string_view, int64_t, at::ScalarType,
                      std::array<bool, 5>);
using Backward = Two(const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                     const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                     c10::string_view, int64_t, c10::string_view, c10::string_view, Params, int64_t,
                     bool, c10::string_view, int64_t, std::array<bool, 2>);
using BackwardInPlace = void(at::TensorList, const Tensor&, const Tensor&, const Tensor&,
                             const OptionalTensor&, const OptionalTensor&, c10::string_view,
                             int64_t, c10::string_view, c10::string_view, Params, int64_t, bool,
                             c10::string_view, int64_t, std::array<bool, 2>);

// What an autograd node stores besides its inputs.
struct State : torch::CustomClassHolder {
  std::string loss, form, target_form, reduction;
  std::vector<double> params;
  int64_t dim = 0, ignore_index = 0, keep_dims = 0;
  bool one_if_none = false;
  at::ScalarType out_dtype = at::kFloat;
  std::array<bool, 2> mask{};
  ReadyGradients<2> grads;
};

// The differentiable backward of lossops/softmax/autograd.py. Never freed: see
// ops/elementwise/fused.cpp.
pybind11::handle differentiable_backward;

variable_list place(const std::array<Tensor, 2>& grads) {
  return {grads[0], grads[1], Tensor(), Tensor(), Tensor()};
}

std::array<Tensor, 2> backward_in_python(const State& state, const Tensor& grad_output,
                                         const variable_list& inputs) {
  const pybind11::gil_scoped_acquire gil;
  return gradients_of<2>(differentiable_backward(
      grad_output, optional(inputs[0]), optional(inputs[1]), optional(inputs[2]),
      optional(inputs[3]), pybind11::make_tuple(state.mask[0], state.mask[1]), state.loss,
      state.dim, state.form, state.target_form, pybind11::tuple(pybind11::cast(state.params)),
      state.ignore_index, state.one_if_none, state.reduction, state.keep_dims, state.out_dtype));
}

struct FusedSoftmax : torch::autograd::Function<FusedSoftmax> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& target,
                        const OptionalTensor& class_weight, const OptionalTensor& normalizer,
                        const c10::intrusive_ptr<State>& state) {
    static const auto op = find_op<Forward>("lossops::softmax_forward");
    state->mask = {input.requires_grad(), target.requires_grad()};
    const bool gives_a_number = state->reduction != "none" && state->keep_dims == 0;
    Tensor value;
    OptionalTensor denominator;
    {
      const at::AutoDispatchBelowADInplaceOrView guard;
      const auto results =
          op.call(input, target, class_weight, normalizer, state->loss, state->dim, state->form,
                  state->target_form, state->params, state->ignore_index, state->one_if_none,
                  state->reduction, state->keep_dims, state->out_dtype,
                  {false, false, false, gives_a_number && state->mask[0],
                   gives_a_number && state->mask[1]});
      value = std::get<0>(results);
      denominator = std::get<4>(results);
      if (gives_a_number) state->grads.keep(defined_results<5, 2>(results));
    }
    ctx->save_for_backward({input, target, class_weight.value_or(Tensor()),
                            denominator ? *denominator : normalizer.value_or(Tensor())});
    ctx->saved_data["state"] = c10::IValue::make_capsule(state);
    return value;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grad_outputs) {
    static const auto op = find_op<Backward>("lossops::softmax_backward");
    static const auto in_place = find_op<BackwardInPlace>("lossops::softmax_backward_");
    auto& state = static_cast<State&>(*ctx->saved_data["state"].toCapsule());
    const Tensor& grad_output = grad_outputs[0];
    const auto inputs = ctx->get_saved_variables();
    const auto grads = state.grads.take();
    if (at::GradMode::is_enabled() || is_transformed(grad_output)) {
      return place(backward_in_python(state, grad_output, inputs));
    }
    const at::AutoDispatchBelowADInplaceOrView guard;
    const OptionalTensor class_weight = optional(inputs[2]), normalizer = optional(inputs[3]);
    if (!grads) {
      return place(as_array(
          op.call(grad_output, {}, {}, inputs[0], inputs[1], class_weight, normalizer, state.loss,
                  state.dim, state.form, state.target_form, state.params, state.ignore_index,
                  state.one_if_none, state.reduction, state.keep_dims, state.mask)));
    }
    scale(*grads, grad_output, [&](at::TensorList present) {
      in_place.call(present, grad_output, inputs[0], inputs[1], class_weight, normalizer,
                    state.loss, state.dim, state.form, state.target_form, state.params,
                    state.ignore_index, state.one_if_none, state.reduction, state.keep_dims,
                    state.mask);
    });
    return place(*grads);
  }
};

Tensor fused_softmax(const Tensor& input, const Tensor& target, const OptionalTensor& class_weight,
                     const OptionalTensor& normalizer, std::string loss, int64_t dim,
                     std::string form, std::string target_form, std::vector<double> params,
                     int64_t ignore_index, bool one_if_none, std::string reduction,
                     int64_t keep_dims, at::ScalarType out_dtype) {
  auto state = c10::make_intrusive<State>();
  state->loss = std::move(loss);
  state->dim = dim;
  state->form = std::move(form);
  state->target_form = std::move(target_form);
  state->params = std::move(params);
  state->ignore_index = ignore_index;
  state->one_if_none = one_if_none;
  state->reduction = std::move(reduction);
  state->keep_dims = keep_dims;
  state->out_dtype = out_dtype;
  return FusedSoftmax::apply(input, target, class_weight, normalizer, state);
}

// Whether there is one label per row: the shape of the scores without the class dimension.
bool has_label_per_row(const Tensor& scores, int64_t dim, const Tensor& labels) {
  const auto type = labels.scalar_type();
  if (type != at::kLong && type != at::kInt && type != at::kByte) return false;
  const auto sizes = scores.sizes(), rows = labels.sizes();
  return rows.size() + 1 == sizes.size() && rows.slice(0, dim) == sizes.slice(0, dim) &&
         rows.slice(dim) == sizes.slice(dim + 1) && labels.device() == scores.device();
}

bool has_number_per_class(const Tensor& scores, int64_t dim, const Tensor& weight) {
  return weight.dim() == 1 && weight.size(0) == scores.size(dim) &&
         weight.device() == scores.device() &&
         !(at::GradMode::is_enabled() && weight.requires_grad());
}

// cross_entropy, or nll_loss of log-probabilities; returns None if the call is not plain.
pybind11::object plain_cross_entropy(pybind11::handle input, pybind11::handle target,
                                     pybind11::handle weight, pybind11::handle ignore_index,
                                     pybind11::handle reduction, pybind11::handle label_smoothing,
                                     pybind11::handle z_loss, pybind11::handle temperature,
                                     const std::string& form) {
  static const auto op = find_op<Forward>("lossops::softmax_forward");
  const Tensor* const scores = plain_scores(input);
  const Tensor* const labels = plain_tensor(target);
  const auto ignored = plain_int(ignore_index);
  auto how = plain_reduction(reduction);
  const auto smoothing = plain_float(label_smoothing), of_lse = plain_float(z_loss);
  const auto divisor = plain_float(temperature);
  if (!scores || !labels || !ignored || !how || !smoothing || !of_lse || !divisor ||
      !nobody_looks_on()) {
    return pybind11::none();
  }
  const int64_t dim = scores->dim() == 1 ? 0 : 1;
  if (scores->numel() == 0 || !has_label_per_row(*scores, dim, *labels) ||
      !(0 <= *smoothing && *smoothing <= 1) || !std::isfinite(*of_lse) || !(*divisor > 0) ||
      !std::isfinite(*divisor)) {
    return pybind11::none();
  }
  OptionalTensor class_weight;
  if (!weight.is_none()) {
    const Tensor* const found = plain_scores(weight);
    if (!found || !has_number_per_class(*scores, dim, *found)) return pybind11::none();
    class_weight = *found;
  }
  std::vector<double> params = {*divisor, 0, *smoothing, *of_lse, 0, 0};
  const auto dtype = scores->scalar_type();
  return run_plain(
      *scores,
      [&] {
        return fused_softmax(*scores, *labels, class_weight, {}, "cross_entropy", dim, form,
                             "labels", std::move(params), *ignored, false, std::move(*how), 0,
                             dtype);
      },
      [&] {
        return op.call(*scores, *labels, class_weight, {}, "cross_entropy", dim, form, "labels",
                       params, *ignored, false, *how, 0, dtype, {});
      });
}

}  // namespace

void bind_fused_softmax(pybind11::module_& module) {
  module.def("fused_softmax", torch::wrap_pybind_function_no_gil(fused_softmax),
             "A loss over rows by the native kernels, attached to the graph.");
  module.def("plain_cross_entropy", torch::wrap_pybind_function(plain_cross_entropy),
             "cross_entropy, or nll_loss of log-probabilities, of a plain call; None for others.");
  module.def(
      "set_differentiable_softmax_backward",
      [](pybind11::function function) { differentiable_backward = function.release(); },
      "Says which function gives gradients that are differentiable themselves.");
}

}  // namespace lossops::ops
