#include "ops/elementwise/checks.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "losses/elementwise.h"
#include "ops/large.h"
#include "ops/losses.h"

namespace lossops::ops {
ElementwiseProblem start_problem(const ElementwiseCall& call) {
  ElementwiseProblem problem;
  TORCH_CHECK(call.input.defined(), "input should be a tensor, got none");
  TORCH_CHECK(call.target.defined(), "target should be a tensor, got none");
  const auto loss = find(ElementwiseLosses{}, call.loss);
  TORCH_CHECK(loss, "unknown elementwise loss '", std::string(call.loss), "'");
  problem.loss = *loss;
  visit(ElementwiseLosses{}, *loss, [&]<class Loss>() {
    TORCH_CHECK(static_cast<int>(call.params.size()) == Loss::num_params, "params of loss '",
                call.loss, "' should have ", Loss::num_params, " entries, got ",
                call.params.size());
  });
  std::copy(call.params.begin(), call.params.end(), problem.params);
  check_reduction(call.reduction);
  TORCH_CHECK(call.keep_dims >= 0 && call.keep_dims <= call.input.dim(),
              "keep_dims should be between 0 and ", call.input.dim(), ", got ", call.keep_dims);
  const auto is_double = [](const Tensor& t) { return t.scalar_type() == at::kDouble; };
  problem.double_precision = is_double(call.input) || is_double(call.target) ||
                             (call.weight.has_value() && is_double(*call.weight));
  problem.numel = call.input.numel();
  problem.groups = count(call.group_shape());
  problem.group_size = problem.groups > 0 ? problem.numel / problem.groups : 0;
  if (call.reduction == "mean" && !call.normalizer.has_value()) {
    problem.scale = 1.0 / static_cast<double>(problem.group_size);
  }
  return problem;
}

bool Layout::fits(const Tensor& tensor) const {
  return sizes_.size() <= kMaxDims || tensor.is_contiguous();
}

void Layout::check_shape(const Tensor& tensor, const char* name) const {
  TORCH_CHECK(tensor.sizes() == sizes_, name, " should have the shape of input, ", sizes_, ", got ",
              tensor.sizes());
}

Layout::Strides Layout::broadcast_strides(const Tensor& tensor) const {
  Strides strides(sizes_.size(), 0);
  std::copy(tensor.strides().begin(), tensor.strides().end(), strides.begin());
  return strides;
}

void Layout::add(Operand& operand, Tensor tensor, Strides strides) {
  operand.dtype = dtype_of(tensor);
  operand.data = operands_.keep(std::move(tensor));
  entries_.push_back({&operand, std::move(strides)});
}

void Layout::add(Operand& operand, Tensor tensor) {
  const auto strides = tensor.strides();
  add(operand, tensor, {strides.begin(), strides.end()});
}

void Layout::read(Operand& operand, const Tensor& tensor, const char* name) {
  operands_.read(tensor, name);
  check_shape(tensor, name);
  add(operand, fits(tensor) ? tensor : tensor.contiguous());
}

void Layout::read_broadcast(Operand& operand, const Tensor& tensor, const char* name) {
  if (!call_.reduces()) return read(operand, tensor, name);
  operands_.read(tensor, name);
  check_number_or(tensor, name, call_.group_shape(), "the loss");
  const Tensor fitting = fits(tensor) ? tensor : tensor.contiguous();
  add(operand, fitting, broadcast_strides(fitting));
}

void Layout::read_normalizer() {
  const Tensor& normalizer = *call_.normalizer;
  operands_.read(normalizer, "normalizer");
  check_number_or(normalizer, "normalizer", call_.group_shape(), "the loss");
  if (!call_.reduces()) return;
  const Tensor dense = normalizer.contiguous();
  add(problem_.normalizer, dense, broadcast_strides(dense));
  problem_.normalizer_stride = normalizer.dim() == 0 ? 0 : 1;
}

void Layout::write(Operand& operand, const Tensor& result) {
  if (fits(result)) return add(operand, result);
  late_.emplace_back(large(at::empty(sizes_, result.options())), result);
  add(operand, late_.back().first);
}

void Layout::write_broadcast(Operand& operand, const Tensor& result) {
  add(operand, result, broadcast_strides(result));
}

void Layout::overwrite(Operand& operand, const Tensor& tensor, const char* name) {
  operands_.write(tensor, name);
  check_shape(tensor, name);
  if (fits(tensor)) return add(operand, tensor);
  late_.emplace_back(tensor.contiguous(), tensor);
  add(operand, late_.back().first);
}

void Layout::finish() {
  for (const auto& [from, to] : late_) to.copy_(from);
}

bool Layout::inner_to(int64_t a, int64_t b) const {
  for (const Entry& entry : entries_) {
    const int64_t stride_a = entry.strides[a], stride_b = entry.strides[b];
    if (stride_a == 0 || stride_b == 0 || stride_a == stride_b) continue;
    return stride_a < stride_b;
  }
  return false;
}

void Layout::settle() {
  // Innermost dimension first; dimensions of size 1 are left out.
  c10::SmallVector<int64_t, 8> order;
  for (int64_t d = static_cast<int64_t>(sizes_.size()) - 1; d >= 0; --d) {
    if (sizes_[d] != 1) order.push_back(d);
  }
  // The dimensions inside a group may be in any order, so they follow memory. This is an insertion
  // sort because inner_to() is not a strict weak ordering: broadcast dimensions compare with
  // nothing.
  const int64_t kept = static_cast<int64_t>(call_.group_shape().size());
  for (size_t i = 1; i < order.size() && order[i] >= kept; ++i) {
    for (size_t j = i; j > 0 && inner_to(order[j], order[j - 1]); --j) {
      std::swap(order[j], order[j - 1]);
    }
  }
  // Merge a dimension into the one before if it continues that one's stride in every operand.
  int ndim = 0;
  for (const int64_t d : order) {
    const bool merges =
        ndim > 0 && std::all_of(entries_.begin(), entries_.end(), [&](const Entry& entry) {
          return entry.strides[d] == entry.operand->stride[ndim - 1] * problem_.size[ndim - 1];
        });
    if (merges) {
      problem_.size[ndim - 1] *= sizes_[d];
      continue;
    }
    TORCH_INTERNAL_ASSERT(ndim < kMaxDims);
    problem_.size[ndim] = sizes_[d];
    for (Entry& entry : entries_) entry.operand->stride[ndim] = entry.strides[d];
    ++ndim;
  }
  if (ndim == 0) {  // a single element
    problem_.size[0] = 1;
    for (Entry& entry : entries_) entry.operand->stride[0] = 1;
    ndim = 1;
  }
  problem_.ndim = ndim;
}

void read_inputs(Layout& layout, ElementwiseProblem& problem, const ElementwiseCall& call) {
  layout.read(problem.input, call.input, "input");
  layout.read(problem.target, call.target, "target");
  layout.read(problem.weight, call.weight, "weight");
  if (call.normalizer.has_value()) layout.read_normalizer();
}

Gradients add_gradients(Layout& layout, ElementwiseProblem& problem, const ElementwiseCall& call,
                        const bool* mask) {
  if (mask[2]) check_is_given(call.weight, "weight");
  const auto add = [&](bool wanted, Operand& operand, const Tensor& like) {
    if (!wanted) return Tensor();
    const Tensor grad = large(at::empty_like(like));
    layout.write(operand, grad);
    return grad;
  };
  return {add(mask[0], problem.grad_input, call.input),
          add(mask[1], problem.grad_target, call.target),
          add(mask[2], problem.grad_weight, call.weight.value_or(Tensor()))};
}

void overwrite_gradients(Layout& layout, ElementwiseProblem& problem, const ElementwiseCall& call,
                         at::TensorList grads, const std::array<bool, 3>& mask) {
  check_given(grads, mask);
  if (mask[2]) check_is_given(call.weight, "weight");
  size_t next = 0;
  if (mask[0]) layout.overwrite(problem.grad_input, grads[next++], "the gradient of input");
  if (mask[1]) layout.overwrite(problem.grad_target, grads[next++], "the gradient of target");
  if (mask[2]) layout.overwrite(problem.grad_weight, grads[next++], "the gradient of weight");
}

Tensor add_loss(Layout& layout, ElementwiseProblem& problem, const ElementwiseCall& call,
                at::ScalarType dtype) {
  dtype_of(dtype, "out_dtype");
  if (!call.reduces()) {
    Tensor value = large(at::empty_like(call.input, call.input.options().dtype(dtype)));
    layout.write(problem.value, value);
    return value;
  }
  const auto options = call.input.options().dtype(dtype);
  if (problem.numel == 0) {
    const bool is_sum = call.reduction == "sum";
    if (call.normalizer.has_value()) {
      return at::zeros(call.group_shape(), options).div_(*call.normalizer);
    }
    return at::full(call.group_shape(), is_sum ? 0.0 : std::numeric_limits<double>::quiet_NaN(),
                    options);
  }
  Tensor reduced = at::empty(call.group_shape(), options);
  if (problem.group_size == 1 && problem.groups > 1 && !problem.normalizer.defined()) {
    layout.write_broadcast(problem.value, reduced);  // nothing to reduce
    return reduced;
  }
  problem.reduced.data = reduced.data_ptr();
  problem.reduced.dtype = dtype_of(reduced);
  return reduced;
}

}  // namespace lossops::ops
