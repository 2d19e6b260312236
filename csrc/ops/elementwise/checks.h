// The raw elementwise ops, for any device: checks, allocation, and the translation of tensors into
// an ElementwiseProblem. The Engine defines how a problem is run.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>
#include <utility>

#include "common/elementwise_problem.h"
#include "ops/contract.h"

namespace lossops::ops {

// The arguments common to all elementwise ops.
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
  bool gives_a_number() const { return reduces() && keep_dims == 0; }
  c10::IntArrayRef group_shape() const { return input.sizes().slice(0, reduces() ? keep_dims : 0); }
};

// Checks the call and fills in everything in a problem except its operands.
ElementwiseProblem start_problem(const ElementwiseCall& call);

// Collects the operands of a problem, then orders and merges the dimensions. If there are more
// dimensions than a problem can hold, operands that are not contiguous are copied.
class Layout {
 public:
  Layout(ElementwiseProblem& problem, const ElementwiseCall& call)
      : problem_(problem),
        call_(call),
        sizes_(call.input.sizes()),
        operands_(call.input.device()) {}

  // Adds an input of the same shape as `input`.
  void read(Operand& operand, const Tensor& tensor, const char* name);
  void read(Operand& operand, const OptionalTensor& tensor, const char* name) {
    if (tensor.has_value() && tensor->defined()) read(operand, *tensor, name);
  }
  // Adds an input of the loss's shape, broadcast over the reduced dimensions.
  void read_broadcast(Operand& operand, const Tensor& tensor, const char* name);
  void read_normalizer();
  // Adds a result of the shape of `input`, or of the loss.
  void write(Operand& operand, const Tensor& result);
  void write_broadcast(Operand& operand, const Tensor& result);
  // Adds a tensor of the caller with the shape of `input`, which is overwritten or left as it is.
  void overwrite(Operand& operand, const Tensor& tensor, const char* name);

  // Fixes the order of the dimensions once all operands have been added.
  void settle();
  // Copies results that could not be written in place to their destination.
  void finish();

 private:
  using Strides = c10::SmallVector<int64_t, 8>;  // per logical dimension, outermost first
  struct Entry {
    Operand* operand;
    Strides strides;
  };
  bool fits(const Tensor& tensor) const;
  void check_shape(const Tensor& tensor, const char* name) const;
  Strides broadcast_strides(const Tensor& tensor) const;
  void add(Operand& operand, Tensor tensor, Strides strides);
  void add(Operand& operand, Tensor tensor);
  bool inner_to(int64_t a, int64_t b) const;  // whether dimension a should be inside b

  ElementwiseProblem& problem_;
  const ElementwiseCall& call_;
  c10::IntArrayRef sizes_;
  Operands operands_;
  c10::SmallVector<Entry, 12> entries_;
  c10::SmallVector<std::pair<Tensor, Tensor>, 4> late_;  // from, to
};

// Adds the operands that every op reads.
void read_inputs(Layout& layout, ElementwiseProblem& problem, const ElementwiseCall& call);

// The gradients of input, target and weight; undefined if not wanted.
using Gradients = std::array<Tensor, 3>;

// Allocates and adds the gradients that are wanted.
Gradients add_gradients(Layout& layout, ElementwiseProblem& problem, const ElementwiseCall& call,
                        const bool* mask);

// Adds the gradients to be overwritten, as many as the mask asks for.
void overwrite_gradients(Layout& layout, ElementwiseProblem& problem, const ElementwiseCall& call,
                         at::TensorList grads, const std::array<bool, 3>& mask);

// Allocates and adds the loss. The result of an empty reduction is filled in here: 0, NaN for a
// mean, or 0 divided by the normalizer if there is one.
Tensor add_loss(Layout& layout, ElementwiseProblem& problem, const ElementwiseCall& call,
                at::ScalarType dtype);

// Runs f once all operands have been added, unless the problem is empty.
template <class F>
void run(Layout& layout, const ElementwiseProblem& problem, const F& f) {
  if (problem.numel == 0) return;
  layout.settle();
  f();
  layout.finish();
}

template <class Engine>
std::tuple<Tensor, OptionalTensor, OptionalTensor, OptionalTensor> elementwise_forward(
    const Tensor& input, const Tensor& target, const OptionalTensor& weight,
    const OptionalTensor& normalizer, c10::string_view loss, c10::ArrayRef<double> params,
    c10::string_view reduction, int64_t keep_dims, at::ScalarType out_dtype,
    std::array<bool, 3> output_mask) {
  const ElementwiseCall call{input, target, weight, normalizer, loss, params, reduction, keep_dims};
  ElementwiseProblem problem = start_problem(call);
  const bool wants_gradients = output_mask[0] || output_mask[1] || output_mask[2];
  TORCH_CHECK(!wants_gradients || call.gives_a_number(), kOneNumber, ", and keep_dims 0");
  Layout layout(problem, call);
  read_inputs(layout, problem, call);
  Tensor value = add_loss(layout, problem, call, out_dtype);
  const Gradients grads = add_gradients(layout, problem, call, output_mask.data());
  run(layout, problem, [&] { Engine::forward(problem, input); });
  return {value, optional(grads[0]), optional(grads[1]), optional(grads[2])};
}

template <class Engine>
std::tuple<Tensor, Tensor, Tensor> elementwise_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& target,
    const OptionalTensor& weight, const OptionalTensor& normalizer, c10::string_view loss,
    c10::ArrayRef<double> params, c10::string_view reduction, int64_t keep_dims,
    std::array<bool, 3> output_mask) {
  const ElementwiseCall call{input, target, weight, normalizer, loss, params, reduction, keep_dims};
  ElementwiseProblem problem = start_problem(call);
  Layout layout(problem, call);
  read_inputs(layout, problem, call);
  layout.read_broadcast(problem.grad_output, grad_output, "grad_output");
  const Gradients grads = add_gradients(layout, problem, call, output_mask.data());
  run(layout, problem, [&] { Engine::backward(problem, input, /*skip_if_one=*/false); });
  return {grads[0], grads[1], grads[2]};
}

template <class Engine>
void elementwise_backward_(at::TensorList grads, const Tensor& grad_output, const Tensor& input,
                           const Tensor& target, const OptionalTensor& weight,
                           const OptionalTensor& normalizer, c10::string_view loss,
                           c10::ArrayRef<double> params, c10::string_view reduction,
                           int64_t keep_dims, std::array<bool, 3> output_mask) {
  check_single(grad_output);
  const ElementwiseCall call{input, target, weight, normalizer, loss, params, reduction, keep_dims};
  ElementwiseProblem problem = start_problem(call);
  Layout layout(problem, call);
  read_inputs(layout, problem, call);
  layout.read_broadcast(problem.grad_output, grad_output, "grad_output");
  overwrite_gradients(layout, problem, call, grads, output_mask);
  run(layout, problem, [&] { Engine::backward(problem, input, /*skip_if_one=*/true); });
}

template <class Engine>
void elementwise_rescale_(at::TensorList grads, const Tensor& grad_output) {
  check_single(grad_output);
  Operands operands(grads.empty() ? grad_output.device() : grads[0].device());
  operands.read(grad_output, "grad_output");
  for (const Tensor& grad : grads) operands.write(grad, "a tensor of grads");
  for (const Tensor& grad : grads) {
    if (grad.numel() == 0) continue;
    const bool dense = grad.is_non_overlapping_and_dense();
    const Tensor scaled = dense ? grad : grad.contiguous();
    Engine::rescale(scaled, grad_output);
    if (!dense) grad.copy_(scaled);
  }
}

template <class Engine>
std::tuple<Tensor, Tensor, Tensor, Tensor> elementwise_double_backward(
    const OptionalTensor& grad_output, const Tensor& input, const Tensor& target,
    const OptionalTensor& weight, const OptionalTensor& normalizer,
    const OptionalTensor& tangent_input, const OptionalTensor& tangent_target,
    const OptionalTensor& tangent_weight, c10::string_view loss, c10::ArrayRef<double> params,
    c10::string_view reduction, int64_t keep_dims, at::ScalarType out_dtype,
    std::array<bool, 4> output_mask) {
  const ElementwiseCall call{input, target, weight, normalizer, loss, params, reduction, keep_dims};
  ElementwiseProblem problem = start_problem(call);
  Layout layout(problem, call);
  read_inputs(layout, problem, call);
  layout.read(problem.tangent_input, tangent_input, "tangent_input");
  layout.read(problem.tangent_target, tangent_target, "tangent_target");
  layout.read(problem.tangent_weight, tangent_weight, "tangent_weight");
  TORCH_CHECK(!tangent_weight.has_value() || weight.has_value(),
              "tangent_weight is the tangent of a weight that there is not");
  dtype_of(out_dtype, "out_dtype");
  const bool wants_gradients = output_mask[1] || output_mask[2] || output_mask[3];
  TORCH_CHECK(!wants_gradients || grad_output.has_value(),
              "elementwise_double_backward needs grad_output to give gradients");
  Operand unused;  // if only the derivative along the tangents is wanted
  if (grad_output.has_value()) {
    layout.read_broadcast(wants_gradients ? problem.grad_output : unused, *grad_output,
                          "grad_output");
  }
  Tensor derivative;
  if (output_mask[0]) derivative = add_loss(layout, problem, call, out_dtype);
  const Gradients grads = add_gradients(layout, problem, call, output_mask.data() + 1);
  run(layout, problem, [&] { Engine::double_backward(problem, input); });
  return {derivative, grads[0], grads[1], grads[2]};
}

// Registers the ops for a device: TORCH_LIBRARY_IMPL(lossops, CPU, m) { register_…_ops<…>(m); }
template <class Engine, class Library>
void register_elementwise_ops(Library& library) {
  library.impl("elementwise_forward", &elementwise_forward<Engine>);
  library.impl("elementwise_backward", &elementwise_backward<Engine>);
  library.impl("elementwise_backward_", &elementwise_backward_<Engine>);
  library.impl("elementwise_rescale_", &elementwise_rescale_<Engine>);
  library.impl("elementwise_double_backward", &elementwise_double_backward<Engine>);
}

}  // namespace lossops::ops
