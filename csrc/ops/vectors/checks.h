// The raw vector ops, for any device: checks, allocation, and the translation of tensors into a
// VectorsProblem. The Engine defines how a problem is run.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

#include "common/vectors_problem.h"
#include "ops/contract.h"

namespace lossops::ops {

// The arguments common to both vector ops.
struct VectorsCall {
  at::TensorList vectors;
  const OptionalTensor& label;
  const OptionalTensor& row_weight;
  std::string_view loss;
  c10::ArrayRef<double> params;
  std::string_view reduction;

  bool reduces() const { return reduction != "none"; }
};

// A problem and the tensors that its operands point to.
class VectorsTask {
 public:
  // Checks the call, fills in the problem and adds the operands that both ops read.
  explicit VectorsTask(const VectorsCall& call);

  bool empty() const { return problem.rows == 0; }
  const Tensor& first() const { return call_.vectors[0]; }

  // Adds the values of the rows, in the dtype used for sums.
  Tensor add_values();
  void add_grad_output(const Tensor& grad_output);
  std::array<Tensor, kMaxVectors> add_gradients(const std::array<bool, kMaxVectors>& mask);

  VectorsProblem problem;

 private:
  void add_vectors();
  void add_labels(const Tensor& labels, bool lists);
  RowNumbers numbers(const Tensor& tensor, const char* name);

  const VectorsCall& call_;
  Operands operands_;
};

template <class Engine>
std::tuple<Tensor, OptionalTensor, OptionalTensor, OptionalTensor> vectors_forward(
    at::TensorList vectors, const OptionalTensor& label, const OptionalTensor& row_weight,
    c10::string_view loss, c10::ArrayRef<double> params, c10::string_view reduction,
    at::ScalarType out_dtype, std::array<bool, kMaxVectors> output_mask) {
  const VectorsCall call{vectors, label, row_weight, loss, params, reduction};
  TORCH_CHECK(call.reduces() || !(output_mask[0] || output_mask[1] || output_mask[2]), kOneNumber);
  VectorsTask task(call);
  dtype_of(out_dtype, "out_dtype");
  const Tensor values = task.add_values();
  const auto grads = task.add_gradients(output_mask);
  if (!task.empty()) Engine::run(task.problem, task.first(), /*check_labels=*/true);
  const double over = reduction == "mean" ? static_cast<double>(task.problem.rows) : 1;
  Tensor value =
      call.reduces() ? Engine::sum(task.problem, values, over, out_dtype) : values.to(out_dtype);
  return {std::move(value), optional(grads[0]), optional(grads[1]), optional(grads[2])};
}

template <class Engine>
std::tuple<Tensor, Tensor, Tensor> vectors_backward(
    const Tensor& grad_output, at::TensorList vectors, const OptionalTensor& label,
    const OptionalTensor& row_weight, c10::string_view loss, c10::ArrayRef<double> params,
    c10::string_view reduction, std::array<bool, kMaxVectors> output_mask) {
  const VectorsCall call{vectors, label, row_weight, loss, params, reduction};
  VectorsTask task(call);
  task.add_grad_output(grad_output);
  const auto grads = task.add_gradients(output_mask);
  if (!task.empty()) Engine::run(task.problem, task.first(), /*check_labels=*/false);
  return {grads[0], grads[1], grads[2]};
}

// Registers the ops for a device.
template <class Engine, class Library>
void register_vector_ops(Library& library) {
  library.impl("vectors_forward", &vectors_forward<Engine>);
  library.impl("vectors_backward", &vectors_backward<Engine>);
}

}  // namespace lossops::ops
