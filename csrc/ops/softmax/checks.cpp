#include "ops/softmax/checks.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>

#include "ops/large.h"
#include "ops/losses.h"

namespace lossops::ops {
namespace {

Form form_of(std::string_view name, const char* what, bool of_target) {
  if (name == "logits") return Form::logits;
  if (name == "log_probs") return Form::log_probs;
  if (name == "probs") return Form::probs;
  if (name == "labels" && of_target) return Form::labels;
  TORCH_CHECK(false, what, " should be logits, log_probs",
              of_target ? ", probs or labels" : " or probs", ", got '", std::string(name), "'");
}

// The single stride that walks through these dimensions, if there is one.
std::optional<int64_t> merged_stride(c10::IntArrayRef sizes, c10::IntArrayRef strides) {
  std::optional<int64_t> inner;
  int64_t count = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    if (sizes[d] == 1) continue;
    if (!inner) {
      inner = strides[d];
    } else if (strides[d] != *inner * count) {
      return std::nullopt;
    }
    count *= sizes[d];
  }
  return inner.value_or(0);
}

bool collapses(const Tensor& tensor, int64_t split, int64_t skip) {
  if (tensor.numel() == 0) return true;
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  return merged_stride(sizes.slice(0, split), strides.slice(0, split)) &&
         merged_stride(sizes.slice(split + skip), strides.slice(split + skip));
}

bool is_double(const Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble;
}

}  // namespace

c10::SmallVector<int64_t, 8> SoftmaxCall::rows_shape() const {
  c10::SmallVector<int64_t, 8> shape(input.sizes().begin(), input.sizes().end());
  shape.erase(shape.begin() + dim);
  return shape;
}

c10::SmallVector<int64_t, 8> SoftmaxCall::loss_shape() const {
  auto shape = rows_shape();
  if (reduces()) shape.resize(keep_dims);
  return shape;
}

SoftmaxTask::SoftmaxTask(const SoftmaxCall& call, bool overwrites_input)
    : call_(call), operands_(call.input.device()) {
  settle_shape();
  settle_loss();
  add_input(overwrites_input);
  problem.target_form == Form::labels ? add_labels() : add_target();
  if (call.class_weight.has_value()) add_class_weight();
  if (call.normalizer.has_value()) add_normalizer();
  if (call.reduction == "mean" && problem.target_form != Form::labels &&
      !call.normalizer.has_value() && problem.group_size > 0) {
    problem.scale = 1.0 / static_cast<double>(problem.group_size);
  }
}

void SoftmaxTask::settle_shape() {
  const auto sizes = call_.input.sizes();
  const auto classes_in = call_.dim;
  TORCH_CHECK(call_.input.dim() > 0 && classes_in >= 0 && classes_in < call_.input.dim(),
              "dim should be a dimension of input, of shape ", sizes, ", got ", classes_in);
  check_reduction(call_.reduction);
  TORCH_CHECK(call_.keep_dims >= 0 && call_.keep_dims <= classes_in,
              "keep_dims should be between 0 and the dimension of the classes, ", classes_in,
              ", got ", call_.keep_dims);
  const int64_t rows = count(call_.rows_shape());
  problem.outer = count(sizes.slice(0, classes_in));
  problem.classes = sizes[classes_in];
  problem.inner = count(sizes.slice(classes_in + 1));
  problem.groups = count(call_.loss_shape());
  problem.group_size = problem.groups > 0 ? rows / problem.groups : 0;
}

void SoftmaxTask::settle_loss() {
  TORCH_CHECK(call_.params.size() == 4 + kMaxParams, "a softmax loss takes ", 4 + kMaxParams,
              " parameters, got ", call_.params.size());
  const auto of_labels = find(LabelLosses{}, call_.loss);
  const auto loss = of_labels ? of_labels : find(Divergences{}, call_.loss);
  TORCH_CHECK(loss, "unknown softmax loss '", std::string(call_.loss), "'");
  problem.divergence = !of_labels;
  problem.loss = *loss;
  problem.temperature = call_.params[0];
  problem.softcap = call_.params[1];
  problem.label_smoothing = call_.params[2];
  problem.z_loss = call_.params[3];
  std::copy_n(call_.params.begin() + 4, kMaxParams, problem.params);
  problem.form = form_of(call_.form, "form", false);
  problem.target_form = form_of(call_.target_form, "target_form", true);
  check_loss();
  problem.ignore_index = call_.ignore_index;
  problem.one_if_none = call_.one_if_none;
  if (!of_labels) return;
  visit(LabelLosses{}, *loss, [&]<class Loss>() {
    problem.count_weights = Loss::divides_by_weight && call_.class_weight.has_value();
  });
}

void SoftmaxTask::check_loss() const {
  const bool of_labels = !problem.divergence;
  const bool cross_entropy = call_.loss == CrossEntropy::name;
  TORCH_CHECK(!of_labels || problem.target_form == Form::labels ||
                  (cross_entropy && problem.target_form == Form::probs),
              "loss '", call_.loss, "' takes labels", cross_entropy ? " or probs" : "",
              " as target, got ", call_.target_form);
  TORCH_CHECK(!of_labels || problem.form != Form::probs, "loss '", call_.loss,
              "' takes logits or log_probs, got ", call_.form);
  TORCH_CHECK(problem.label_smoothing == 0 || cross_entropy, "loss '", call_.loss,
              "' takes no label_smoothing");
  TORCH_CHECK((problem.softcap == 0 && problem.z_loss == 0) || has_row_outputs(),
              "softcap and z_loss are for label losses of logits");
  TORCH_CHECK(!call_.class_weight.has_value() || of_labels, "loss '", call_.loss,
              "' takes no class_weight");
}

void SoftmaxTask::add_input(bool overwrites) {
  const Tensor& input = call_.input;
  overwrites ? operands_.write(input, "input") : operands_.read(input, "input");
  problem.double_precision = is_double(input) ||
                             (problem.target_form != Form::labels && is_double(call_.target)) ||
                             (call_.class_weight.has_value() && is_double(*call_.class_weight));
  const auto before = input.sizes().slice(0, call_.dim);
  rows_inside_ = problem.inner == 1 && input.stride(call_.dim) != 1 && !empty() &&
                 merged_stride(before, input.strides().slice(0, call_.dim)) == 1;
  if (rows_inside_) std::swap(problem.outer, problem.inner);
  const bool walks = collapses(input, call_.dim, 1);
  const Tensor walked = walks ? input : input.contiguous();
  problem.input = matrix(walked);
  if (!overwrites) return;
  problem.grad_input = problem.input;
  if (!walks) late_.emplace_back(walked, input);
}

void SoftmaxTask::add_target() {
  const Tensor& target = call_.target;
  operands_.read(target, "target");
  TORCH_CHECK(target.sizes() == call_.input.sizes(), "target should have the shape of input, ",
              call_.input.sizes(), ", got ", target.sizes());
  problem.target = matrix(collapses(target, call_.dim, 1) ? target : target.contiguous());
}

void SoftmaxTask::add_labels() {
  const Tensor& target = call_.target;
  operands_.read_labels(target, "target");
  const auto rows = call_.rows_shape();
  TORCH_CHECK(target.sizes() == c10::IntArrayRef(rows),
              "target should have the shape of the rows, ", c10::IntArrayRef(rows), ", got ",
              target.sizes());
  const RowNumbers walked = numbers(collapses(target, call_.dim, 0) ? target : target.contiguous());
  problem.labels = {walked.data, static_cast<int8_t>(target.element_size()), walked.outer_stride,
                    walked.inner_stride};
}

void SoftmaxTask::add_class_weight() {
  const Tensor& weight = *call_.class_weight;
  operands_.read(weight, "class_weight");
  TORCH_CHECK(weight.dim() == 1 && weight.size(0) == problem.classes,
              "class_weight should have a number per class, ", problem.classes, ", got shape ",
              weight.sizes());
  problem.class_weight.data = operands_.keep(weight);
  problem.class_weight.dtype = dtype_of(weight);
  problem.class_weight.stride[0] = weight.stride(0);
}

void SoftmaxTask::add_normalizer() {
  const Tensor& normalizer = *call_.normalizer;
  operands_.read(normalizer, "normalizer");
  const auto shape = call_.loss_shape();
  TORCH_CHECK(
      normalizer.dim() == 0 || (call_.reduces() && normalizer.sizes() == c10::IntArrayRef(shape)),
      "normalizer should be a number or have the shape of the loss, ", c10::IntArrayRef(shape),
      ", got ", normalizer.sizes());
  if (!call_.reduces()) return;
  problem.normalizer.data = operands_.keep(normalizer.contiguous());
  problem.normalizer.dtype = dtype_of(normalizer);
  problem.normalizer_stride = normalizer.dim() == 0 ? 0 : 1;
}

// The outer and inner strides of rows, which have this many class dimensions.
std::pair<int64_t, int64_t> SoftmaxTask::row_strides(const Tensor& tensor,
                                                     int64_t class_dims) const {
  if (tensor.numel() == 0) return {0, 0};
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const int64_t end = call_.dim + class_dims;
  const int64_t outer = *merged_stride(sizes.slice(0, call_.dim), strides.slice(0, call_.dim));
  const int64_t inner = *merged_stride(sizes.slice(end), strides.slice(end));
  return rows_inside_ ? std::pair(inner, outer) : std::pair(outer, inner);
}

RowsOperand SoftmaxTask::matrix(const Tensor& tensor) {
  const auto [outer, inner] = row_strides(tensor, 1);
  const int64_t by_class = tensor.size(call_.dim) == 1 ? 1 : tensor.stride(call_.dim);
  return {operands_.keep(tensor), dtype_of(tensor), outer, by_class, inner};
}

RowNumbers SoftmaxTask::numbers(const Tensor& tensor) {
  const auto [outer, inner] = row_strides(tensor, 0);
  const DType dtype = tensor.is_floating_point() ? dtype_of(tensor) : DType::float32;
  return {operands_.keep(tensor), dtype, outer, inner};
}

RowResults SoftmaxTask::add_results(at::ScalarType dtype, bool lse, bool entropy, bool accuracy) {
  auto [value, denominator] = add_loss(dtype);
  TORCH_CHECK(!accuracy || problem.target_form == Form::labels, "accuracy is that of labels");
  const Tensor lse_of_rows = add_row_output(problem.lse, lse);
  const Tensor entropy_of_rows = add_row_output(problem.entropy, entropy);
  const Tensor accuracy_of_rows = add_row_output(problem.accuracy, accuracy);
  return {value, optional(lse_of_rows), optional(entropy_of_rows), optional(accuracy_of_rows),
          optional(denominator)};
}

std::pair<Tensor, Tensor> SoftmaxTask::add_loss(at::ScalarType dtype) {
  dtype_of(dtype, "out_dtype");
  const auto shape = call_.loss_shape();
  const auto options = call_.input.options();
  Tensor value = large(at::empty(shape, options.dtype(dtype))), denominator;
  problem.count = call_.reduction == "mean" && problem.target_form == Form::labels &&
                  !call_.normalizer.has_value();
  if (problem.count) {
    denominator =
        at::empty(shape, options.dtype(is_double(call_.input) ? at::kDouble : at::kFloat));
  }
  if (empty()) {
    if (denominator.defined()) denominator.fill_(problem.one_if_none ? 1.0 : 0.0);
    value.copy_(losses_of_nothing());
    return {value, denominator};
  }
  if (problem.count) {
    problem.normalizer.data = operands_.keep(denominator);
    problem.normalizer.dtype = dtype_of(denominator);
    problem.normalizer_stride = 1;
  }
  if (call_.reduces()) {
    problem.reduced.data = operands_.keep(value);
    problem.reduced.dtype = dtype_of(value);
  } else {
    problem.value = numbers(value);
  }
  return {value, denominator};
}

// Without rows or classes there is nothing to sum: the result is 0, divided by the denominator.
// Without classes, no label is valid. The mean cross entropy of distributions is also taken over
// the classes, so its denominator is 0.
Tensor SoftmaxTask::losses_of_nothing() const {
  const auto options = call_.input.options().dtype(at::kDouble);
  Tensor rows = at::zeros(call_.rows_shape(), options);
  const bool labels = problem.target_form == Form::labels;
  const bool cross_entropy = !labels && !problem.divergence;
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (problem.z_loss != 0 && !problem.divergence) rows.fill_(problem.z_loss * kInfinity);
  if (labels) {
    const Tensor ignored = call_.target.to(at::kLong).eq(problem.ignore_index);
    rows = rows.masked_fill(ignored, 0).masked_fill(ignored.logical_not(), kNaN);
  }
  if (!call_.reduces()) return rows;
  const Tensor sums =
      rows.reshape({problem.groups, problem.group_size}).sum(1).reshape(call_.loss_shape());
  if (call_.normalizer.has_value()) return sums.div(*call_.normalizer);
  if (call_.reduction == "sum") return sums;
  const double number = labels || cross_entropy ? 0 : static_cast<double>(problem.group_size);
  return sums.div(number == 0 && problem.one_if_none ? 1 : number);
}

Tensor SoftmaxTask::add_row_output(RowNumbers& numbers, bool wanted) {
  if (!wanted) return {};
  TORCH_CHECK(has_row_outputs(), "lse, entropy and accuracy are those of a label loss of logits");
  const auto options = call_.input.options();
  Tensor tensor = at::empty(call_.rows_shape(),
                            options.dtype(is_double(call_.input) ? at::kDouble : at::kFloat));
  if (problem.classes == 0) {
    tensor.fill_(&numbers == &problem.lse ? -std::numeric_limits<double>::infinity() : 0.0);
  }
  numbers = this->numbers(tensor);
  return tensor;
}

void SoftmaxTask::add_row_input(RowNumbers& numbers, const OptionalTensor& tensor,
                                const char* name) {
  if (!tensor.has_value()) return;
  operands_.read(*tensor, name);
  const auto rows = call_.rows_shape();
  const bool of_the_loss = std::string_view(name) == "grad_output";
  TORCH_CHECK(of_the_loss || has_row_outputs(), name, " is of a label loss of logits");
  const auto shape = of_the_loss ? call_.loss_shape() : rows;
  TORCH_CHECK(tensor->dim() == 0 || tensor->sizes() == c10::IntArrayRef(shape), name,
              " should be a number or of shape ", c10::IntArrayRef(shape), ", got ",
              tensor->sizes());
  c10::SmallVector<int64_t, 8> wide(rows.size(), 1);
  std::copy(tensor->sizes().begin(), tensor->sizes().end(), wide.begin());
  const Tensor expanded = tensor->reshape(wide).expand(rows);
  numbers = this->numbers(collapses(expanded, call_.dim, 0) ? expanded : expanded.contiguous());
}

std::array<Tensor, 2> SoftmaxTask::add_gradients(bool by_input, bool by_target) {
  const auto add = [this](RowsOperand& operand, const Tensor& like) {
    TORCH_CHECK(like.is_floating_point(), "labels have no gradient");
    const Tensor grad = large(at::empty_like(like));
    add_gradient(operand, grad, /*keeps=*/false);
    return grad;
  };
  std::array<Tensor, 2> grads;
  if (by_input) grads[0] = add(problem.grad_input, call_.input);
  if (by_target) grads[1] = add(problem.grad_target, call_.target);
  return grads;
}

void SoftmaxTask::overwrite_gradients(at::TensorList grads, const std::array<bool, 2>& mask) {
  const auto overwrite = [this](RowsOperand& operand, const Tensor& like, const Tensor& grad,
                                const char* name) {
    TORCH_CHECK(like.is_floating_point(), "labels have no gradient");
    operands_.write(grad, name);
    TORCH_CHECK(grad.sizes() == like.sizes(), name, " should have the shape ", like.sizes(),
                ", got ", grad.sizes());
    add_gradient(operand, grad, /*keeps=*/true);
  };
  if (mask[0]) overwrite(problem.grad_input, call_.input, grads[0], "the gradient of input");
  if (mask[1]) {
    overwrite(problem.grad_target, call_.target, grads.back(), "the gradient of target");
  }
}

// Adds a gradient; with `keeps`, its numbers stay as they are if grad_output is 1.
void SoftmaxTask::add_gradient(RowsOperand& operand, const Tensor& grad, bool keeps) {
  if (collapses(grad, call_.dim, 1)) {
    operand = matrix(grad);
    return;
  }
  const Tensor walked = keeps ? grad.contiguous() : large(at::empty(grad.sizes(), grad.options()));
  operand = matrix(walked);
  late_.emplace_back(walked, grad);
}

void SoftmaxTask::require_denominator() const {
  TORCH_CHECK(call_.reduction != "mean" || problem.target_form != Form::labels ||
                  call_.normalizer.has_value(),
              "the gradients of a mean over labels need its denominator, which softmax_forward "
              "gives, as normalizer");
}

void SoftmaxTask::finish() {
  for (const auto& [from, to] : late_) to.copy_(from);
}

}  // namespace lossops::ops
