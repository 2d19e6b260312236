// The raw softmax ops, for any device: checks, allocation, and the translation of tensors into a
// SoftmaxProblem. The Engine defines how a problem is run.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>
#include <utility>

#include "common/softmax_problem.h"
#include "ops/contract.h"

namespace lossops::ops {

// The arguments common to all softmax ops.
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
  bool gives_a_number() const { return reduces() && keep_dims == 0; }
  c10::SmallVector<int64_t, 8> rows_shape() const;
  c10::SmallVector<int64_t, 8> loss_shape() const;
};

// A problem and the tensors that its operands point to.
class SoftmaxTask {
 public:
  // Checks the call, fills in the problem and adds the operands that every op reads. With
  // `overwrites_input`, the gradient is written over the input.
  explicit SoftmaxTask(const SoftmaxCall& call, bool overwrites_input = false);

  // Adds the loss and, if it is a mean over labels, its denominator.
  std::pair<Tensor, Tensor> add_loss(at::ScalarType dtype);
  // Only label targets have an accuracy.
  void require_labels(bool wanted) const;
  // Adds one number per row; returns an undefined tensor if it is not wanted.
  Tensor add_row_output(RowNumbers& numbers, bool wanted);
  // For the backward passes, which do not count labels themselves.
  void require_denominator() const;
  // Adds an input of the backward pass: one number per row, per group, or for all rows.
  void add_row_input(RowNumbers& numbers, const OptionalTensor& tensor, const char* name);
  // Adds a gradient of this tensor's shape: a new tensor, or one of the caller's.
  Tensor add_gradient(RowsOperand& operand, const Tensor& like);
  void overwrite_gradient(RowsOperand& operand, const Tensor& like, const Tensor& grad,
                          const char* name);
  // Whether there is nothing to compute. If there are no classes, add_loss has set the results.
  bool empty() const { return problem.rows() == 0 || problem.classes == 0; }
  // Copies gradients that could not be written in place to their destination.
  void finish();

  SoftmaxProblem problem;

 private:
  // Whether rows have a log-sum-exp, an entropy and an accuracy.
  bool has_row_outputs() const { return !problem.divergence && problem.form == Form::logits; }
  void settle_shape();
  void settle_loss();
  void add_labels();
  void add_class_weight();
  void add_normalizer();
  Tensor losses_of_nothing() const;
  RowsOperand matrix(const Tensor& tensor);
  RowNumbers numbers(const Tensor& tensor);
  void check_rows(const Tensor& tensor, const char* name) const;

  const SoftmaxCall& call_;
  Operands operands_;
  c10::SmallVector<std::pair<Tensor, Tensor>, 2> late_;  // from, to
  bool rows_inside_ = false;  // adjacent rows are contiguous, so they are the inner dimension
};

// In order: the loss; lse, entropy, accuracy and the denominator; the gradients by input and
// target.
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
  TORCH_CHECK(!(output_mask[3] || output_mask[4]) || call.gives_a_number(), kOneNumber,
              ", and keep_dims 0");
  auto [value, denominator] = task.add_loss(out_dtype);
  task.require_labels(output_mask[2]);
  Tensor lse = task.add_row_output(problem.lse, output_mask[0]);
  Tensor entropy = task.add_row_output(problem.entropy, output_mask[1]);
  Tensor accuracy = task.add_row_output(problem.accuracy, output_mask[2]);
  Tensor grad_input, grad_target;
  if (output_mask[3]) grad_input = task.add_gradient(problem.grad_input, input);
  if (output_mask[4]) grad_target = task.add_gradient(problem.grad_target, target);
  Engine::check(problem);
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
  SoftmaxTask task(call, /*overwrites_input=*/true);
  SoftmaxProblem& problem = task.problem;
  TORCH_CHECK(call.gives_a_number(), kOneNumber, ", and keep_dims 0");
  auto [value, denominator] = task.add_loss(out_dtype);
  task.require_labels(output_mask[2]);
  Tensor lse = task.add_row_output(problem.lse, output_mask[0]);
  Tensor entropy = task.add_row_output(problem.entropy, output_mask[1]);
  Tensor accuracy = task.add_row_output(problem.accuracy, output_mask[2]);
  Engine::check(problem);
  if (!task.empty()) Engine::forward(problem, input);
  task.finish();
  return {value, optional(lse), optional(entropy), optional(accuracy), optional(denominator)};
}

template <class Engine>
std::tuple<Tensor, Tensor> softmax_backward(
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
  task.require_denominator();
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
  return {grad_input, grad_target};
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
  check_single(grad_output);
  check_given(grads, output_mask);
  SoftmaxTask task(call);
  SoftmaxProblem& problem = task.problem;
  task.require_denominator();
  task.add_row_input(problem.grad_output, grad_output, "grad_output");
  size_t next = 0;
  if (output_mask[0]) {
    task.overwrite_gradient(problem.grad_input, input, grads[next++], "the gradient of input");
  }
  if (output_mask[1]) {
    task.overwrite_gradient(problem.grad_target, target, grads[next++], "the gradient of target");
  }
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
