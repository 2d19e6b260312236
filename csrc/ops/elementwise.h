// The raw elementwise ops, for any device: checks, allocation, and the translation of tensors into
// an ElementwiseProblem. An Engine says how a problem is run.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/SmallVector.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

#include "common/problem.h"
#include "ops/tensors.h"

namespace lossops::ops {

// The arguments that every elementwise op has.
struct ElementwiseCall {
  const Tensor& input;
  const Tensor& target;
  const OptionalTensor& weight;
  const OptionalTensor& normalizer;
  std::string_view loss;
  c10::ArrayRef<double> params;
  std::string_view reduction;
  int64_t keep_dims;

  bool reduces() const { return reduction != "none"; }
  c10::IntArrayRef group_shape() const { return input.sizes().slice(0, reduces() ? keep_dims : 0); }
};

DType dtype_of(const Tensor& tensor);

// Checks the call and settles everything in a problem but its operands.
ElementwiseProblem start_problem(const ElementwiseCall& call);

// Collects the operands of a problem, then orders and merges the dimensions.
class Layout {
 public:
  Layout(ElementwiseProblem& problem, const ElementwiseCall& call)
      : problem_(problem), call_(call), sizes_(call.input.sizes()) {}

  // A tensor of the input's shape.
  void add(Operand& operand, const Tensor& tensor, const char* name);
  void add(Operand& operand, const OptionalTensor& tensor, const char* name) {
    if (tensor.has_value() && tensor->defined()) add(operand, *tensor, name);
  }
  // A tensor of the loss's shape, broadcast over what is reduced.
  void add_broadcast(Operand& operand, const Tensor& tensor, const char* name);

  void settle();

 private:
  struct Entry {
    Operand* operand;
    c10::SmallVector<int64_t, 8> strides;  // of the logical dimensions, outermost first
  };
  void add_entry(Operand& operand, const Tensor& tensor, const char* name,
                 c10::SmallVector<int64_t, 8> strides);
  bool inner_to(int64_t a, int64_t b) const;  // should dimension a lie inside of b?

  ElementwiseProblem& problem_;
  const ElementwiseCall& call_;
  c10::IntArrayRef sizes_;
  c10::SmallVector<Entry, 12> entries_;
};

// Adds the operands that every op reads.
void add_inputs(Layout& layout, ElementwiseProblem& problem, const ElementwiseCall& call);

// The gradients of input, target and weight; undefined where not wanted.
using Gradients = std::array<Tensor, 3>;

// Allocates the wanted gradients.
Gradients empty_gradients(const ElementwiseCall& call, const bool* mask);
void add_gradients(Layout& layout, ElementwiseProblem& problem, const Gradients& grads);

// Allocates the loss and adds it. An empty reduction is filled in here: 0, NaN for a mean,
// 0 by the normalizer where there is one.
Tensor add_loss(Layout& layout, ElementwiseProblem& problem, const ElementwiseCall& call,
                at::ScalarType dtype);

// More dimensions than a problem can hold only come with layouts that few use: copy those.
template <class F>
auto with_few_dims(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                   const F& f) {
  if (input.dim() <= kMaxDims) return f(input, target, weight);
  const OptionalTensor dense = weight.has_value() ? OptionalTensor(weight->contiguous()) : weight;
  return f(input.contiguous(), target.contiguous(), dense);
}

template <class Engine>
std::tuple<Tensor, OptionalTensor, OptionalTensor, OptionalTensor> elementwise_forward(
    const Tensor& input_, const Tensor& target_, const OptionalTensor& weight_,
    const OptionalTensor& normalizer, c10::string_view loss, c10::ArrayRef<double> params,
    c10::string_view reduction, int64_t keep_dims, at::ScalarType out_dtype,
    std::array<bool, 3> output_mask) {
  return with_few_dims(
      input_, target_, weight_,
      [&](const Tensor& input, const Tensor& target, const OptionalTensor& weight) {
        const ElementwiseCall call{input, target, weight,    normalizer,
                                   loss,  params, reduction, keep_dims};
        ElementwiseProblem problem = start_problem(call);
        const bool wants_gradients = output_mask[0] || output_mask[1] || output_mask[2];
        TORCH_CHECK(!wants_gradients || problem.groups == 1,
                    "elementwise_forward gives gradients only where the loss is a single number");
        Layout layout(problem, call);
        add_inputs(layout, problem, call);
        Tensor value = add_loss(layout, problem, call, out_dtype);
        const Gradients grads = empty_gradients(call, output_mask.data());
        add_gradients(layout, problem, grads);
        if (problem.numel > 0) {
          layout.settle();
          Engine::forward(problem, input);
        }
        return std::make_tuple(value, optional(grads[0]), optional(grads[1]), optional(grads[2]));
      });
}

template <class Engine>
std::tuple<OptionalTensor, OptionalTensor, OptionalTensor> elementwise_backward(
    const Tensor& grad_output, const Tensor& input_, const Tensor& target_,
    const OptionalTensor& weight_, const OptionalTensor& normalizer, c10::string_view loss,
    c10::ArrayRef<double> params, c10::string_view reduction, int64_t keep_dims,
    std::array<bool, 3> output_mask) {
  return with_few_dims(
      input_, target_, weight_,
      [&](const Tensor& input, const Tensor& target, const OptionalTensor& weight) {
        const ElementwiseCall call{input, target, weight,    normalizer,
                                   loss,  params, reduction, keep_dims};
        ElementwiseProblem problem = start_problem(call);
        Layout layout(problem, call);
        add_inputs(layout, problem, call);
        const Tensor dense = input.dim() > kMaxDims ? grad_output.contiguous() : grad_output;
        layout.add_broadcast(problem.grad_output, dense, "grad_output");
        const Gradients grads = empty_gradients(call, output_mask.data());
        add_gradients(layout, problem, grads);
        if (problem.numel > 0) {
          layout.settle();
          Engine::backward(problem, input, /*skip_if_one=*/false);
        }
        return std::make_tuple(optional(grads[0]), optional(grads[1]), optional(grads[2]));
      });
}

template <class Engine>
void elementwise_backward_(at::TensorList grads, const Tensor& grad_output, const Tensor& input,
                           const Tensor& target, const OptionalTensor& weight,
                           const OptionalTensor& normalizer, c10::string_view loss,
                           c10::ArrayRef<double> params, c10::string_view reduction,
                           int64_t keep_dims, std::array<bool, 3> output_mask) {
  TORCH_CHECK(grad_output.numel() == 1, "grad_output should be a single number, got shape ",
              grad_output.sizes());
  Gradients placed;
  size_t next = 0;
  for (size_t i = 0; i < placed.size(); ++i) {
    if (!output_mask[i]) continue;
    TORCH_CHECK(next < grads.size(), "output_mask asks for more gradients than were given");
    placed[i] = grads[next++];
  }
  if (input.dim() > kMaxDims) {  // through copies, see with_few_dims
    const auto [gx, gy, gw] =
        elementwise_backward<Engine>(grad_output, input, target, weight, normalizer, loss, params,
                                     reduction, keep_dims, output_mask);
    if (gx) placed[0].copy_(*gx);
    if (gy) placed[1].copy_(*gy);
    if (gw) placed[2].copy_(*gw);
    return;
  }
  const ElementwiseCall call{input, target, weight, normalizer, loss, params, reduction, keep_dims};
  ElementwiseProblem problem = start_problem(call);
  Layout layout(problem, call);
  add_inputs(layout, problem, call);
  layout.add_broadcast(problem.grad_output, grad_output, "grad_output");
  add_gradients(layout, problem, placed);
  if (problem.numel == 0) return;
  layout.settle();
  Engine::backward(problem, input, /*skip_if_one=*/true);
}

template <class Engine>
void elementwise_rescale_(at::TensorList grads, const Tensor& grad_output) {
  TORCH_CHECK(grad_output.numel() == 1, "grad_output should be a single number, got shape ",
              grad_output.sizes());
  for (const Tensor& grad : grads) {
    TORCH_CHECK(grad.is_non_overlapping_and_dense(), "gradients to rescale should be dense");
    TORCH_CHECK(grad.device() == grad_output.device(), "grad_output should be on ", grad.device(),
                " like the gradients, got ", grad_output.device());
    if (grad.numel() > 0) Engine::rescale(grad, grad_output);
  }
}

template <class Engine>
std::tuple<OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor>
elementwise_double_backward(const OptionalTensor& grad_output, const Tensor& input_,
                            const Tensor& target_, const OptionalTensor& weight_,
                            const OptionalTensor& normalizer, const OptionalTensor& tangent_input,
                            const OptionalTensor& tangent_target,
                            const OptionalTensor& tangent_weight, c10::string_view loss,
                            c10::ArrayRef<double> params, c10::string_view reduction,
                            int64_t keep_dims, at::ScalarType out_dtype,
                            std::array<bool, 4> output_mask) {
  return with_few_dims(
      input_, target_, weight_,
      [&](const Tensor& input, const Tensor& target, const OptionalTensor& weight) {
        const ElementwiseCall call{input, target, weight,    normalizer,
                                   loss,  params, reduction, keep_dims};
        ElementwiseProblem problem = start_problem(call);
        Layout layout(problem, call);
        add_inputs(layout, problem, call);
        const bool few = input.dim() <= kMaxDims;
        const auto tangent = [&](const OptionalTensor& t) {
          return few || !t.has_value() ? t : OptionalTensor(t->contiguous());
        };
        const OptionalTensor tx = tangent(tangent_input), ty = tangent(tangent_target);
        const OptionalTensor tw = tangent(tangent_weight);
        layout.add(problem.tangent_input, tx, "tangent_input");
        layout.add(problem.tangent_target, ty, "tangent_target");
        layout.add(problem.tangent_weight, tw, "tangent_weight");
        Tensor dense_grad_output;
        Tensor derivative;
        if (output_mask[0]) derivative = add_loss(layout, problem, call, out_dtype);
        Gradients grads;
        const bool wants_gradients = output_mask[1] || output_mask[2] || output_mask[3];
        TORCH_CHECK(!wants_gradients || grad_output.has_value(),
                    "elementwise_double_backward needs grad_output to give gradients");
        if (wants_gradients) {
          dense_grad_output = few ? *grad_output : grad_output->contiguous();
          layout.add_broadcast(problem.grad_output, dense_grad_output, "grad_output");
          grads = empty_gradients(call, output_mask.data() + 1);
          add_gradients(layout, problem, grads);
        }
        if (problem.numel > 0) {
          layout.settle();
          Engine::double_backward(problem, input);
        }
        return std::make_tuple(optional(derivative), optional(grads[0]), optional(grads[1]),
                               optional(grads[2]));
      });
}

// Registers the ops for a device: TORCH_LIBRARY_IMPL(lossops, CPU, m) { register_ops<…>(m); }
template <class Engine, class Library>
void register_elementwise_ops(Library& library) {
  library.impl("elementwise_forward", &elementwise_forward<Engine>);
  library.impl("elementwise_backward", &elementwise_backward<Engine>);
  library.impl("elementwise_backward_", &elementwise_backward_<Engine>);
  library.impl("elementwise_rescale_", &elementwise_rescale_<Engine>);
  library.impl("elementwise_double_backward", &elementwise_double_backward<Engine>);
}

}  // namespace lossops::ops
