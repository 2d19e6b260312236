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

// The arguments common to all softmax ops, in the order of the schemas.
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

// In order: the loss; lse, entropy, accuracy and the denominator; the gradients by input and
// target.
using RowResults =
    std::tuple<Tensor, OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor>;
using RowResultsAndGradients = std::tuple<Tensor, OptionalTensor, OptionalTensor, OptionalTensor,
                                          OptionalTensor, OptionalTensor, OptionalTensor>;

// A problem and the tensors that its operands point to.
class SoftmaxTask {
 public:
  // Checks the call, fills in the problem and adds the operands that every op reads. With
  // `overwrites_input`, the gradient is written over the input.
  explicit SoftmaxTask(const SoftmaxCall& call, bool overwrites_input = false);

  // Adds the loss, the outputs per row that are wanted (lse, entropy and accuracy) and, for a mean
  // over labels, its denominator.
  RowResults add_results(at::ScalarType dtype, bool lse, bool entropy, bool accuracy);
  // For the backward passes, which do not count labels themselves.
  void require_denominator() const;
  // Adds an input of the backward pass: one number per row, per group, or for all rows.
  void add_row_input(RowNumbers& numbers, const OptionalTensor& tensor, const char* name);
  // Adds the gradients by input and target that are wanted: new tensors, or the caller's.
  std::array<Tensor, 2> add_gradients(bool by_input, bool by_target);
  void overwrite_gradients(at::TensorList grads, const std::array<bool, 2>& mask);
  const Tensor& input() const { return call_.input; }
  // Whether there is nothing to compute. If there are no classes, add_results has set the results.
  bool empty() const { return problem.rows() == 0 || problem.classes == 0; }
  // Copies gradients that could not be written in place to their destination.
  void finish();

  SoftmaxProblem problem;

 private:
  // Whether rows have a log-sum-exp, an entropy and an accuracy.
  bool has_row_outputs() const { return !problem.divergence && problem.form == Form::logits; }
  void settle_shape();
  void settle_loss();
  void check_loss() const;
  void add_input(bool overwrites);
  void add_target();
  void add_labels();
  void add_class_weight();
  void add_normalizer();
  std::pair<Tensor, Tensor> add_loss(at::ScalarType dtype);
  Tensor add_row_output(RowNumbers& numbers, bool wanted);
  void add_gradient(RowsOperand& operand, const Tensor& grad, bool keeps);
  Tensor losses_of_nothing() const;
  std::pair<int64_t, int64_t> row_strides(const Tensor& tensor, int64_t class_dims) const;
  RowsOperand matrix(const Tensor& tensor);
  RowNumbers numbers(const Tensor& tensor);

  const SoftmaxCall& call_;
  Operands operands_;
  c10::SmallVector<std::pair<Tensor, Tensor>, 2> late_;  // from, to
  bool rows_inside_ = false;  // adjacent rows are contiguous, so they are the inner dimension
};

// The ops of a device. `Call` are the types of SoftmaxCall.
template <class Engine, class... Call>
struct SoftmaxOpsOf {
  static RowResultsAndGradients forward(Call... arguments, at::ScalarType out_dtype,
                                        std::array<bool, 5> output_mask) {
    const auto [lse, entropy, accuracy, by_input, by_target] = output_mask;
    const SoftmaxCall call{arguments...};
    SoftmaxTask task(call);
    TORCH_CHECK(!(by_input || by_target) || call.gives_a_number(),
                "softmax_forward gives gradients only where the loss is a single number");
    RowResults results = task.add_results(out_dtype, lse, entropy, accuracy);
    const auto grads = task.add_gradients(by_input, by_target);
    run_forward(task);
    return std::tuple_cat(std::move(results), std::tuple(optional(grads[0]), optional(grads[1])));
  }

  static RowResults forward_(Call... arguments, at::ScalarType out_dtype,
                             std::array<bool, 3> output_mask) {
    const auto [lse, entropy, accuracy] = output_mask;
    const SoftmaxCall call{arguments...};
    SoftmaxTask task(call, /*overwrites_input=*/true);
    TORCH_CHECK(call.gives_a_number(),
                "softmax_forward_ gives gradients only where the loss is a single number");
    RowResults results = task.add_results(out_dtype, lse, entropy, accuracy);
    run_forward(task);
    return results;
  }

  static std::tuple<Tensor, Tensor> backward(const OptionalTensor& grad_output,
                                             const OptionalTensor& grad_lse,
                                             const OptionalTensor& grad_entropy, Call... arguments,
                                             std::array<bool, 2> output_mask) {
    const SoftmaxCall call{arguments...};
    SoftmaxTask task(call);
    task.require_denominator();
    task.add_row_input(task.problem.grad_output, grad_output, "grad_output");
    task.add_row_input(task.problem.grad_lse, grad_lse, "grad_lse");
    task.add_row_input(task.problem.grad_entropy, grad_entropy, "grad_entropy");
    auto [grad_input, grad_target] = task.add_gradients(output_mask[0], output_mask[1]);
    const bool any = grad_output.has_value() || grad_lse.has_value() || grad_entropy.has_value();
    TORCH_CHECK(any, "softmax_backward needs a gradient of the loss, of lse or of the entropy");
    if (!task.empty()) Engine::backward(task.problem, call.input, /*skip_if_one=*/false);
    task.finish();
    return {grad_input, grad_target};
  }

  static void backward_(at::TensorList grads, const Tensor& grad_output, Call... arguments,
                        std::array<bool, 2> output_mask) {
    const SoftmaxCall call{arguments...};
    check_single(grad_output);
    check_given(grads, output_mask);
    SoftmaxTask task(call);
    task.require_denominator();
    task.add_row_input(task.problem.grad_output, grad_output, "grad_output");
    task.overwrite_gradients(grads, output_mask);
    if (!task.empty()) Engine::backward(task.problem, call.input, /*skip_if_one=*/true);
    task.finish();
  }

 private:
  static void run_forward(SoftmaxTask& task) {
    Engine::check(task.problem);
    if (!task.empty()) Engine::forward(task.problem, task.input());
    task.finish();
  }
};

template <class Engine>
using SoftmaxOps =
    SoftmaxOpsOf<Engine, const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                 c10::string_view, int64_t, c10::string_view, c10::string_view,
                 c10::ArrayRef<double>, int64_t, bool, c10::string_view, int64_t>;

// Registers the ops for a device.
template <class Engine, class Library>
void register_softmax_ops(Library& library) {
  library.impl("softmax_forward", &SoftmaxOps<Engine>::forward);
  library.impl("softmax_forward_", &SoftmaxOps<Engine>::forward_);
  library.impl("softmax_backward", &SoftmaxOps<Engine>::backward);
  library.impl("softmax_backward_", &SoftmaxOps<Engine>::backward_);
}

}  // namespace lossops::ops
