#include "ops/softmax.h"

#include <ATen/ops/full.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "ops/large.h"

namespace lossops::ops {
namespace {

struct NamedLoss {
  std::string_view name;
  bool divergence;
  int position;
  bool divides_by_weight;
};

template <class... Losses>
bool find(LossList<Losses...>, std::string_view name, bool divergence, NamedLoss& found) {
  int position = 0;
  const auto matches = [&]<class Loss>() {
    if (Loss::name != name) {
      ++position;
      return false;
    }
    found = {Loss::name, divergence, position, false};
    if constexpr (requires { Loss::divides_by_weight; }) {
      found.divides_by_weight = Loss::divides_by_weight;
    }
    return true;
  };
  return (matches.template operator()<Losses>() || ...);
}

NamedLoss find_loss(std::string_view name) {
  NamedLoss found;
  const bool known =
      find(LabelLosses{}, name, false, found) || find(Divergences{}, name, true, found);
  TORCH_CHECK(known, "unknown softmax loss '", std::string(name), "'");
  return found;
}

Form form_of(std::string_view name, const char* what, bool of_target) {
  if (name == "logits") return Form::logits;
  if (name == "log_probs") return Form::log_probs;
  if (name == "probs") return Form::probs;
  if (name == "labels" && of_target) return Form::labels;
  TORCH_CHECK(false, what, " should be logits, log_probs",
              of_target ? ", probs or labels" : " or probs", ", got '", std::string(name), "'");
}

int64_t product(c10::IntArrayRef sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t(1), std::multiplies<int64_t>());
}

// The one stride that walks through these dimensions, if there is one.
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

SoftmaxTask::SoftmaxTask(const SoftmaxCall& call) : call_(call) {
  const Tensor& input = call.input;
  TORCH_CHECK(input.dim() > 0 && call.dim >= 0 && call.dim < input.dim(),
              "dim should be a dimension of input, of shape ", input.sizes(), ", got ", call.dim);
  const bool is_mean = call.reduction == "mean";
  TORCH_CHECK(is_mean || call.reduction == "sum" || call.reduction == "none",
              "reduction should be none, mean or sum, got '", call.reduction, "'");
  TORCH_CHECK(call.keep_dims >= 0 && call.keep_dims <= call.dim,
              "keep_dims should be between 0 and the dimension of the classes, ", call.dim,
              ", got ", call.keep_dims);
  TORCH_CHECK(call.params.size() == 4 + kMaxParams, "a softmax loss takes ", 4 + kMaxParams,
              " parameters, got ", call.params.size());
  const NamedLoss loss = find_loss(call.loss);
  problem.divergence = loss.divergence;
  problem.loss = loss.position;
  problem.temperature = call.params[0];
  problem.softcap = call.params[1];
  problem.label_smoothing = call.params[2];
  problem.z_loss = call.params[3];
  std::copy_n(call.params.begin() + 4, kMaxParams, problem.params);
  problem.form = form_of(call.form, "form", false);
  problem.target_form = form_of(call.target_form, "target_form", true);
  const bool labels = problem.target_form == Form::labels;
  TORCH_CHECK(loss.divergence || labels ||
                  (loss.name == CrossEntropy::name && problem.target_form == Form::probs),
              "loss '", call.loss, "' takes labels",
              loss.name == CrossEntropy::name ? " or probs" : "", " as target, got ",
              call.target_form);
  TORCH_CHECK(loss.divergence || problem.form != Form::probs, "loss '", call.loss,
              "' takes logits or log_probs, got ", call.form);

  const auto sizes = input.sizes();
  problem.outer = product(sizes.slice(0, call.dim));
  problem.classes = sizes[call.dim];
  problem.inner = product(sizes.slice(call.dim + 1));
  TORCH_CHECK(problem.classes > 0 || problem.rows() == 0, "input has no classes: ", sizes);
  problem.groups = product(call.loss_shape());
  if (!call.reduces()) problem.groups = problem.rows();
  problem.group_size = problem.groups > 0 ? problem.rows() / problem.groups : 0;
  problem.ignore_index = call.ignore_index;
  problem.one_if_none = call.one_if_none;
  problem.double_precision = is_double(input) || (!labels && is_double(call.target)) ||
                             (call.class_weight.has_value() && is_double(*call.class_weight));
  rows_inside_ = problem.inner == 1 && input.stride(call.dim) != 1 &&
                 merged_stride(sizes.slice(0, call.dim), input.strides().slice(0, call.dim)) == 1;
  if (rows_inside_) std::swap(problem.outer, problem.inner);

  problem.input = matrix(input, "input");
  if (labels) {
    const Tensor& target = call.target;
    const auto type = target.scalar_type();
    TORCH_CHECK(type == at::kLong || type == at::kInt || type == at::kByte,
                "labels should be int64, int32 or uint8, got ", type);
    TORCH_CHECK(target.sizes() == c10::IntArrayRef(call.rows_shape()),
                "labels should have the shape of the rows, ", c10::IntArrayRef(call.rows_shape()),
                ", got ", target.sizes());
    TORCH_CHECK(target.device() == input.device(), "target should be on ", input.device(),
                " like input, got ", target.device());
    kept_.push_back(collapses(target, call.dim, 0) ? target : target.contiguous());
    const RowNumbers numbers = this->numbers(kept_.back());
    problem.labels = {kept_.back().data_ptr(), static_cast<int8_t>(target.element_size()),
                      numbers.outer_stride, numbers.inner_stride};
  } else {
    TORCH_CHECK(call.target.sizes() == sizes, "target should have the shape of input, ", sizes,
                ", got ", call.target.sizes());
    problem.target = matrix(call.target, "target");
  }
  if (call.class_weight.has_value()) {
    const Tensor& weight = *call.class_weight;
    TORCH_CHECK(weight.dim() == 1 && weight.size(0) == problem.classes,
                "class_weight should have a number per class, ", problem.classes, ", got shape ",
                weight.sizes());
    TORCH_CHECK(weight.device() == input.device(), "class_weight should be on ", input.device(),
                " like input, got ", weight.device());
    problem.class_weight.data = weight.data_ptr();
    problem.class_weight.dtype = dtype_of(weight);
    problem.class_weight.stride[0] = weight.stride(0);
  }
  problem.count_weights = loss.divides_by_weight && call.class_weight.has_value();
  if (call.normalizer.has_value() && call.reduces()) {
    const Tensor& normalizer = *call.normalizer;
    TORCH_CHECK(
        normalizer.dim() == 0 || (normalizer.sizes() == c10::IntArrayRef(call.loss_shape()) &&
                                  normalizer.is_contiguous()),
        "normalizer should be a number or, contiguous, of the shape of the loss, ",
        c10::IntArrayRef(call.loss_shape()), ", got ", normalizer.sizes());
    TORCH_CHECK(normalizer.device() == input.device(), "normalizer should be on ", input.device(),
                " like input, got ", normalizer.device());
    problem.normalizer.data = normalizer.data_ptr();
    problem.normalizer.dtype = dtype_of(normalizer);
    problem.normalizer_stride = normalizer.dim() == 0 ? 0 : 1;
  } else if (is_mean && !labels && problem.group_size > 0) {
    problem.scale = 1.0 / static_cast<double>(problem.group_size);
  }
}

RowsOperand SoftmaxTask::matrix(const Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.device() == call_.input.device(), name, " should be on ", call_.input.device(),
              " like input, got ", tensor.device());
  kept_.push_back(collapses(tensor, call_.dim, 1) ? tensor : tensor.contiguous());
  const Tensor& kept = kept_.back();
  const auto sizes = kept.sizes(), strides = kept.strides();
  const int64_t outer = *merged_stride(sizes.slice(0, call_.dim), strides.slice(0, call_.dim));
  const int64_t inner = *merged_stride(sizes.slice(call_.dim + 1), strides.slice(call_.dim + 1));
  const int64_t by_class = kept.size(call_.dim) == 1 ? 1 : kept.stride(call_.dim);
  return {kept.data_ptr(), dtype_of(kept), rows_inside_ ? inner : outer, by_class,
          rows_inside_ ? outer : inner};
}

RowNumbers SoftmaxTask::numbers(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const int64_t outer = *merged_stride(sizes.slice(0, call_.dim), strides.slice(0, call_.dim));
  const int64_t inner = *merged_stride(sizes.slice(call_.dim), strides.slice(call_.dim));
  RowNumbers numbers;
  numbers.data = tensor.data_ptr();
  if (tensor.is_floating_point()) numbers.dtype = dtype_of(tensor);
  numbers.outer_stride = rows_inside_ ? inner : outer;
  numbers.inner_stride = rows_inside_ ? outer : inner;
  return numbers;
}

std::pair<Tensor, Tensor> SoftmaxTask::add_loss(at::ScalarType dtype) {
  const auto shape = call_.loss_shape();
  const auto options = call_.input.options();
  Tensor value = large(at::empty(shape, options.dtype(dtype))), denominator;
  problem.count = call_.reduction == "mean" && problem.target_form == Form::labels &&
                  !call_.normalizer.has_value();
  if (problem.count) {
    denominator =
        at::empty(shape, options.dtype(is_double(call_.input) ? at::kDouble : at::kFloat));
    problem.normalizer.data = denominator.data_ptr();
    problem.normalizer.dtype = dtype_of(denominator);
    problem.normalizer_stride = 1;
  }
  if (!empty()) {
    if (call_.reduces()) {
      problem.reduced.data = value.data_ptr();
      problem.reduced.dtype = dtype_of(value);
    } else {
      problem.value = numbers(value);
    }
    return {value, denominator};
  }
  // Nothing to add up: 0, divided by what there is to divide by.
  if (denominator.defined()) denominator.fill_(problem.one_if_none ? 1.0 : 0.0);
  if (call_.reduction == "mean" && call_.normalizer.has_value()) {
    value.copy_(at::zeros_like(*call_.normalizer).div_(*call_.normalizer).expand(shape));
  } else {
    const bool is_number = call_.reduction == "sum" || problem.one_if_none;
    value.fill_(is_number ? 0.0 : std::numeric_limits<double>::quiet_NaN());
  }
  return {value, denominator};
}

Tensor SoftmaxTask::add_row_output(RowNumbers& numbers, bool wanted) {
  if (!wanted) return {};
  TORCH_CHECK(!problem.divergence && problem.form == Form::logits,
              "lse, entropy and accuracy are those of a label loss of logits");
  const auto dtype = is_double(call_.input) ? at::kDouble : at::kFloat;
  Tensor tensor = at::empty(call_.rows_shape(), call_.input.options().dtype(dtype));
  numbers = this->numbers(tensor);
  return tensor;
}

void SoftmaxTask::add_row_input(RowNumbers& numbers, const OptionalTensor& tensor,
                                const char* name) {
  if (!tensor.has_value() || !tensor->defined()) return;
  const auto rows = call_.rows_shape();
  const bool of_the_loss = std::string_view(name) == "grad_output";
  const auto shape = of_the_loss ? call_.loss_shape() : rows;
  TORCH_CHECK(tensor->dim() == 0 || tensor->sizes() == c10::IntArrayRef(shape), name,
              " should be a number or of shape ", c10::IntArrayRef(shape), ", got ",
              tensor->sizes());
  TORCH_CHECK(tensor->device() == call_.input.device(), name, " should be on ",
              call_.input.device(), " like input, got ", tensor->device());
  c10::SmallVector<int64_t, 8> wide(rows.size(), 1);
  std::copy(tensor->sizes().begin(), tensor->sizes().end(), wide.begin());
  const Tensor expanded = tensor->reshape(wide).expand(rows);
  kept_.push_back(collapses(expanded, call_.dim, 0) ? expanded : expanded.contiguous());
  numbers = this->numbers(kept_.back());
}

Tensor SoftmaxTask::add_gradient(RowsOperand& operand, const Tensor& like, const Tensor& grad) {
  TORCH_CHECK(like.is_floating_point(), "labels have no gradient");
  Tensor result = grad.defined() ? grad : large(at::empty_like(like));
  TORCH_CHECK(result.sizes() == like.sizes(), "a gradient should have the shape ", like.sizes(),
              ", got ", result.sizes());
  if (collapses(result, call_.dim, 1)) {
    operand = matrix(result, "a gradient");
    return result;
  }
  const Tensor dense = large(at::empty(like.sizes(), result.options()));
  if (grad.defined()) dense.copy_(grad);  // it stays as it is where grad_output is 1
  operand = matrix(dense, "a gradient");
  late_.emplace_back(dense, result);
  return result;
}

void SoftmaxTask::overwrite_input() {
  TORCH_CHECK(collapses(call_.input, call_.dim, 1),
              "the gradient can be written over an input only where that is dense");
  problem.grad_input = problem.input;
}

void SoftmaxTask::finish() {
  for (const auto& [from, to] : late_) to.copy_(from);
}

}  // namespace lossops::ops
