#include "ops/vectors/checks.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>

#include "ops/large.h"
#include "ops/losses.h"

namespace lossops::ops {
VectorsTask::VectorsTask(const VectorsCall& call)
    : call_(call), operands_(call.vectors.empty() ? at::kCPU : call.vectors[0].device()) {
  const auto loss = find(VectorLosses{}, call.loss);
  TORCH_CHECK(loss, "unknown vector loss '", std::string(call.loss), "'");
  problem.loss = *loss;
  bool has_label = false, has_number = false;
  visit(VectorLosses{}, *loss, [&]<class Loss>() {
    TORCH_CHECK(call.vectors.size() == size_t(Loss::vectors), "vectors of loss '", call.loss,
                "' should have ", Loss::vectors, " entries, got ", call.vectors.size());
    TORCH_CHECK(call.params.size() == size_t(Loss::num_params), "params of loss '", call.loss,
                "' should have ", Loss::num_params, " entries, got ", call.params.size());
    has_number = kHasNumber<Loss>;
    has_label = has_number || kHasIndex<Loss> || kHasList<Loss>;
  });
  TORCH_CHECK(call.label.has_value() == has_label, "loss '", call.loss, "' takes ",
              call.label.has_value() ? "no" : "a", " label");
  check_reduction(call.reduction);
  std::copy(call.params.begin(), call.params.end(), problem.params);
  add_vectors();
  if (call.reduction == "mean" && problem.rows > 0) {
    problem.scale = 1.0 / static_cast<double>(problem.rows);
  }
  if (has_number) {
    problem.signs = numbers(*call.label, "label");
    check_number_or(*call.label, "label", {problem.rows}, "the rows");
  } else if (has_label) {
    add_labels(*call.label, problem.has_lists());
  }
  if (call.row_weight.has_value()) {
    problem.row_weight = numbers(*call.row_weight, "row_weight");
    check_number_or(*call.row_weight, "row_weight", {problem.rows}, "the rows");
  }
}

void VectorsTask::add_vectors() {
  TORCH_CHECK(first().dim() == 2, "vectors should have the shape (rows, length), got ",
              first().sizes());
  problem.rows = first().size(0);
  problem.length = first().size(1);
  for (size_t i = 0; i < call_.vectors.size(); ++i) {
    const Tensor& tensor = call_.vectors[i];
    operands_.read(tensor, "a tensor of vectors");
    TORCH_CHECK(tensor.sizes() == first().sizes(),
                "a tensor of vectors should have the shape of the first, ", first().sizes(),
                ", got ", tensor.sizes());
    TORCH_CHECK(tensor.scalar_type() == first().scalar_type(),
                "vectors should have one dtype, got ", printed(first().scalar_type()), " and ",
                printed(tensor.scalar_type()));
    const bool lies_right = tensor.stride(1) == 1 || problem.length == 1;
    const Tensor walked = lies_right ? tensor : tensor.contiguous();
    problem.vectors[i] = {operands_.keep(walked), walked.stride(0)};
  }
  problem.dtype = dtype_of(first());
}

void VectorsTask::add_labels(const Tensor& labels, bool lists) {
  operands_.read_labels(labels, "label");
  if (lists) {
    TORCH_CHECK(labels.sizes() == first().sizes(), "label should have the shape of the vectors, ",
                first().sizes(), ", got ", labels.sizes());
  } else {
    check_number_or(labels, "label", {problem.rows}, "the rows");
  }
  problem.labels.data = operands_.keep(labels);
  problem.labels.bytes = static_cast<int8_t>(labels.element_size());
  problem.labels.outer_stride = labels.dim() == 0 ? 0 : labels.stride(0);
  problem.labels.inner_stride = lists ? labels.stride(1) : 0;
}

RowNumbers VectorsTask::numbers(const Tensor& tensor, const char* name) {
  operands_.read(tensor, name);
  RowNumbers numbers;
  numbers.data = operands_.keep(tensor);
  numbers.dtype = dtype_of(tensor);
  numbers.outer_stride = tensor.dim() == 0 ? 0 : tensor.stride(0);
  return numbers;
}

Tensor VectorsTask::add_values() {
  const bool wide = problem.dtype == DType::float64;
  Tensor values =
      at::empty({problem.rows}, first().options().dtype(wide ? at::kDouble : at::kFloat));
  problem.value.data = operands_.keep(values);
  problem.value.dtype = dtype_of(values);
  problem.value.outer_stride = 1;
  return values;
}

void VectorsTask::add_grad_output(const Tensor& grad_output) {
  problem.grad_output = numbers(grad_output, "grad_output");
  const c10::IntArrayRef rows = first().sizes().slice(0, 1);
  check_number_or(grad_output, "grad_output", call_.reduces() ? rows.slice(1) : rows, "the loss");
}

std::array<Tensor, kMaxVectors> VectorsTask::add_gradients(
    const std::array<bool, kMaxVectors>& mask) {
  std::array<Tensor, kMaxVectors> grads;
  for (size_t i = 0; i < grads.size(); ++i) {
    if (!mask[i]) continue;
    check_is_given(i < call_.vectors.size() ? OptionalTensor(first()) : std::nullopt,
                   "a tensor of vectors");
    grads[i] = large(at::empty(first().sizes(), first().options()));
    problem.grads[i] = {operands_.keep(grads[i]), problem.length};
  }
  return grads;
}

}  // namespace lossops::ops
