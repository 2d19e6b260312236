// The raw softmax ops, for any device: checks, allocation, and the translation of tensors into a
// SoftmaxProblem. An Engine says how a problem is run.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>
#include <utility>

#include "common/softmax_problem.h"
#include "ops/elementwise.h"

namespace lossops::ops {

// The arguments that every softmax op has.
struct SoftmaxCall {
  const Tensor& input;
  const Tensor& target;
  const OptionalTensor& class_weight;
  const OptionalTensor& normalizer;
  std::string_view loss;
  int64_t dim;
  std::string_view form, target_form;
  c10::ArrayRef<double> params;
  int64_t ignore_index;
  bool one_if_none;
  std::string_view reduction;
  int64_t keep_dims;

  bool reduces() const { return reduction != "none"; }
  c10::SmallVector<int64_t, 8> rows_shape() const;
  c10::SmallVector<int64_t, 8> loss_shape() const;
};

// A problem and the tensors that its operands point into.
class SoftmaxTask {
 public:
  // Checks the call, settles the problem and adds what every op reads.
  explicit SoftmaxTask(const SoftmaxCall& call);

  // The loss and, where it is a mean over labels, its denominator.
  std::pair<Tensor, Tensor> add_loss(at::ScalarType dtype);
  // A number per row, undefined where it is not wanted.
  Tensor add_row_output(RowNumbers& numbers, bool wanted);
  // What the backward pass is given; one number per row, per group, or for all.
  void add_row_input(RowNumbers& numbers, const OptionalTensor& tensor, const char* name);
  // A gradient of this tensor's shape, newly made where `grad` is undefined.
  Tensor add_gradient(RowsOperand& operand, const Tensor& like, const Tensor& grad = {});
  // Lets the gradient be written over the input.
  void overwrite_input();

  // Whether there is anything to compute.
  bool empty() const { return problem.rows() == 0; }
  // Copies the gradients that could not be written in place to where they belong.
  void finish();

  SoftmaxProblem problem;

 private:
  RowsOperand matrix(const Tensor& tensor, const char* name);
  RowNumbers numbers(const Tensor& tensor);

  const SoftmaxCall& call_;
  c10::SmallVector<Tensor, 6> kept_;                     // copies that operands point into
  c10::SmallVector<std::pair<Tensor, Tensor>, 2> late_;  // from, to
  bool rows_inside_ = false;  // the rows lie side by side: they are the inner dimension
};

// The loss; lse, entropy, accuracy and the denominator; the gradients by input and target.
using RowResults =
    std::tuple<Tensor, OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor>;
using RowResultsAndGradients = std::tuple<Tensor, OptionalTensor, OptionalTensor, OptionalTensor,
                                          OptionalTensor, OptionalTensor, OptionalTensor>;

template <class Engine>
RowResultsAndGradients softmax_forward(const Tensor& input, const Tensor& target,
                                       const OptionalTensor& class_weight,
                                       const OptionalTensor& normalizer, c10::string_view loss,
                                       int64_t dim, c10::string_view form,
                                       c10::string_view target_form, c10::ArrayRef<double> params,
                                       int64_t ignore_index, bool one_if_none,
                                       c10::string_view reduction, int64_t keep_dims,
                                       at::ScalarType out_dtype, std::array<bool, 5> output_mask) {
  const SoftmaxCall call{input,       target, class_weight, normalizer,  loss,      dim,      form,
                         target_form, params, ignore_index, one_if_none, reduction, keep_dims};
  SoftmaxTask task(call);
  SoftmaxProblem& problem = task.problem;
  TORCH_CHECK(!(output_mask[3] || output_mask[4]) || problem.groups == 1,
              "softmax_forward gives gradients only where the loss is a single number");
  auto [value, denominator] = task.add_loss(out_dtype);
  Tensor lse = task.add_row_output(problem.lse, output_mask[0]);
  Tensor entropy = task.add_row_output(problem.entropy, output_mask[1]);
  Tensor accuracy = task.add_row_output(problem.accuracy, output_mask[2]);
  Tensor grad_input, grad_target;
  if (output_mask[3]) grad_input = task.add_gradient(problem.grad_input, input);
  if (output_mask[4]) grad_target = task.add_gradient(problem.grad_target, target);
  if (!task.empty()) Engine::forward(problem, input);
  task.finish();
  return {value,
          optional(lse),
          optional(entropy),
          optional(accuracy),
          optional(denominator),
          optional(grad_input),
          optional(grad_target)};
}

template <class Engine>
RowResults softmax_forward_(Tensor& input, const Tensor& target, const OptionalTensor& class_weight,
                            const OptionalTensor& normalizer, c10::string_view loss, int64_t dim,
                            c10::string_view form, c10::string_view target_form,
                            c10::ArrayRef<double> params, int64_t ignore_index, bool one_if_none,
                            c10::string_view reduction, int64_t keep_dims, at::ScalarType out_dtype,
                            std::array<bool, 3> output_mask) {
  const SoftmaxCall call{input,       target, class_weight, normalizer,  loss,      dim,      form,
                         target_form, params, ignore_index, one_if_none, reduction, keep_dims};
  SoftmaxTask task(call);
  SoftmaxProblem& problem = task.problem;
  TORCH_CHECK(problem.groups == 1,
              "softmax_forward_ gives gradients only where the loss is a single number");
  auto [value, denominator] = task.add_loss(out_dtype);
  Tensor lse = task.add_row_output(problem.lse, output_mask[0]);
  Tensor entropy = task.add_row_output(problem.entropy, output_mask[1]);
  Tensor accuracy = task.add_row_output(problem.accuracy, output_mask[2]);
  task.overwrite_input();
  if (!task.empty()) Engine::forward(problem, input);
  return {value, optional(lse), optional(entropy), optional(accuracy), optional(denominator)};
}

template <class Engine>
std::tuple<OptionalTensor, OptionalTensor> softmax_backward(
    const OptionalTensor& grad_output, const OptionalTensor& grad_lse,
    const OptionalTensor& grad_entropy, const Tensor& input, const Tensor& target,
    const OptionalTensor& class_weight, const OptionalTensor& normalizer, c10::string_view loss,
    int64_t dim, c10::string_view form, c10::string_view target_form, c10::ArrayRef<double> params,
    int64_t ignore_index, bool one_if_none, c10::string_view reduction, int64_t keep_dims,
    std::array<bool, 2> output_mask) {
  const SoftmaxCall call{input,       target, class_weight, normalizer,  loss,      dim,      form,
                         target_form, params, ignore_index, one_if_none, reduction, keep_dims};
  SoftmaxTask task(call);
  SoftmaxProblem& problem = task.problem;
  task.add_row_input(problem.grad_output, grad_output, "grad_output");
  task.add_row_input(problem.grad_lse, grad_lse, "grad_lse");
  task.add_row_input(problem.grad_entropy, grad_entropy, "grad_entropy");
  Tensor grad_input, grad_target;
  if (output_mask[0]) grad_input = task.add_gradient(problem.grad_input, input);
  if (output_mask[1]) grad_target = task.add_gradient(problem.grad_target, target);
  const bool any = grad_output.has_value() || grad_lse.has_value() || grad_entropy.has_value();
  TORCH_CHECK(any, "softmax_backward needs a gradient of the loss, of lse or of the entropy");
  if (!task.empty()) Engine::backward(problem, input, false);
  task.finish();
  return {optional(grad_input), optional(grad_target)};
}

template <class Engine>
void softmax_backward_(at::TensorList grads, const Tensor& grad_output, const Tensor& input,
                       const Tensor& target, const OptionalTensor& class_weight,
                       const OptionalTensor& normalizer, c10::string_view loss, int64_t dim,
                       c10::string_view form, c10::string_view target_form,
                       c10::ArrayRef<double> params, int64_t ignore_index, bool one_if_none,
                       c10::string_view reduction, int64_t keep_dims,
                       std::array<bool, 2> output_mask) {
  const SoftmaxCall call{input,       target, class_weight, normalizer,  loss,      dim,      form,
                         target_form, params, ignore_index, one_if_none, reduction, keep_dims};
  TORCH_CHECK(grad_output.numel() == 1, "grad_output should be a single number, got shape ",
              grad_output.sizes());
  TORCH_CHECK(grads.size() == size_t(output_mask[0]) + size_t(output_mask[1]),
              "softmax_backward_ needs a gradient for each that output_mask asks for, got ",
              grads.size());
  SoftmaxTask task(call);
  SoftmaxProblem& problem = task.problem;
  task.add_row_input(problem.grad_output, grad_output.reshape({}), "grad_output");
  size_t next = 0;
  if (output_mask[0]) task.add_gradient(problem.grad_input, input, grads[next++]);
  if (output_mask[1]) task.add_gradient(problem.grad_target, target, grads[next++]);
  if (!task.empty()) Engine::backward(problem, input, true);
  task.finish();
}

// Registers the ops for a device.
template <class Engine, class Library>
void register_softmax_ops(Library& library) {
  library.impl("softmax_forward", &softmax_forward<Engine>);
  library.impl("softmax_forward_", &softmax_forward_<Engine>);
  library.impl("softmax_backward", &softmax_backward<Engine>);
  library.impl("softmax_backward_", &softmax_backward_<Engine>);
}

}  // namespace lossops::ops
