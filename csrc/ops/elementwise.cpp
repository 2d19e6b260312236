#include "ops/elementwise.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>

#include "losses/elementwise.h"
#include "ops/large.h"

namespace lossops::ops {
namespace {

struct NamedLoss {
  std::string_view name;
  int num_params;
};

template <class... Losses>
const std::array<NamedLoss, sizeof...(Losses)>& table_of(LossList<Losses...>) {
  static constexpr std::array<NamedLoss, sizeof...(Losses)> table{
      NamedLoss{Losses::name, Losses::num_params}...};
  return table;
}

int find_loss(std::string_view name) {
  const auto& table = table_of(ElementwiseLosses{});
  for (size_t i = 0; i < table.size(); ++i) {
    if (table[i].name == name) return static_cast<int>(i);
  }
  TORCH_CHECK(false, "unknown elementwise loss '", std::string(name), "'");
}

}  // namespace

DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return DType::float64;
    case at::kFloat:
      return DType::float32;
    case at::kBFloat16:
      return DType::bfloat16;
    case at::kHalf:
      return DType::float16;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(false,
                                  "lossops kernels take float64, float32, bfloat16 and "
                                  "float16 tensors, got ",
                                  tensor.scalar_type());
  }
}

ElementwiseProblem start_problem(const ElementwiseCall& call) {
  ElementwiseProblem problem;
  problem.loss = find_loss(call.loss);
  const auto& loss = table_of(ElementwiseLosses{})[problem.loss];
  TORCH_CHECK(static_cast<int>(call.params.size()) == loss.num_params, "loss '", call.loss,
              "' takes ", loss.num_params, " parameters, got ", call.params.size());
  std::copy(call.params.begin(), call.params.end(), problem.params);
  const bool is_mean = call.reduction == "mean";
  TORCH_CHECK(is_mean || call.reduction == "sum" || call.reduction == "none",
              "reduction should be none, mean or sum, got '", call.reduction, "'");
  TORCH_CHECK(call.keep_dims >= 0 && call.keep_dims <= call.input.dim(),
              "keep_dims should be between 0 and ", call.input.dim(), ", got ", call.keep_dims);
  const auto is_double = [](const Tensor& t) { return t.scalar_type() == at::kDouble; };
  problem.double_precision = is_double(call.input) || is_double(call.target) ||
                             (call.weight.has_value() && is_double(*call.weight));
  problem.numel = call.input.numel();
  const auto kept = call.group_shape();
  problem.groups =
      std::accumulate(kept.begin(), kept.end(), int64_t(1), std::multiplies<int64_t>());
  problem.group_size = problem.groups > 0 ? problem.numel / problem.groups : 0;
  if (is_mean && !call.normalizer.has_value()) {
    problem.scale = 1.0 / static_cast<double>(problem.group_size);
  }
  return problem;
}

void Layout::add_entry(Operand& operand, const Tensor& tensor, const char* name,
                       c10::SmallVector<int64_t, 8> strides) {
  TORCH_CHECK(tensor.device() == call_.input.device(), name, " should be on ", call_.input.device(),
              " like input, got ", tensor.device());
  operand.data = tensor.data_ptr();
  operand.dtype = dtype_of(tensor);
  entries_.push_back({&operand, std::move(strides)});
}

void Layout::add(Operand& operand, const Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.sizes() == sizes_, name, " should have the shape of input, ", sizes_, ", got ",
              tensor.sizes());
  const auto strides = tensor.strides();
  add_entry(operand, tensor, name, {strides.begin(), strides.end()});
}

void Layout::add_broadcast(Operand& operand, const Tensor& tensor, const char* name) {
  if (!call_.reduces()) return add(operand, tensor, name);
  const auto kept = call_.group_shape();
  TORCH_CHECK(tensor.sizes() == kept || tensor.dim() == 0, name,
              " should have the shape of the loss, ", kept, ", got ", tensor.sizes());
  c10::SmallVector<int64_t, 8> strides(sizes_.size(), 0);
  std::copy(tensor.strides().begin(), tensor.strides().end(), strides.begin());
  add_entry(operand, tensor, name, std::move(strides));
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
  // Innermost first; dimensions of size 1 do not count.
  c10::SmallVector<int64_t, 8> order;
  for (int64_t d = static_cast<int64_t>(sizes_.size()) - 1; d >= 0; --d) {
    if (sizes_[d] != 1) order.push_back(d);
  }
  // Within what is reduced the order is free, and follows memory. An insertion sort, because
  // inner_to() is no strict weak ordering: broadcast dimensions compare with nothing.
  const int64_t kept = static_cast<int64_t>(call_.group_shape().size());
  for (size_t i = 1; i < order.size() && order[i] >= kept; ++i) {
    for (size_t j = i; j > 0 && inner_to(order[j], order[j - 1]); --j) {
      std::swap(order[j], order[j - 1]);
    }
  }
  // Merge a dimension into the one before wherever every operand steps on evenly.
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
  if (ndim == 0) {  // one element
    problem_.size[0] = 1;
    for (Entry& entry : entries_) entry.operand->stride[0] = 1;
    ndim = 1;
  }
  problem_.ndim = ndim;
}

void add_inputs(Layout& layout, ElementwiseProblem& problem, const ElementwiseCall& call) {
  layout.add(problem.input, call.input, "input");
  layout.add(problem.target, call.target, "target");
  layout.add(problem.weight, call.weight, "weight");
  if (call.reduces() && call.normalizer.has_value()) {
    const Tensor& normalizer = *call.normalizer;
    TORCH_CHECK(normalizer.is_contiguous(), "normalizer should be contiguous");
    layout.add_broadcast(problem.normalizer, normalizer, "normalizer");
    problem.normalizer_stride = normalizer.dim() == 0 ? 0 : 1;
  }
}

Gradients empty_gradients(const ElementwiseCall& call, const bool* mask) {
  TORCH_CHECK(!mask[2] || call.weight.has_value(),
              "output_mask asks for the gradient of weight, and there is no weight");
  Gradients grads;
  if (mask[0]) grads[0] = large(at::empty_like(call.input));
  if (mask[1]) grads[1] = large(at::empty_like(call.target));
  if (mask[2]) grads[2] = large(at::empty_like(*call.weight));
  return grads;
}

void add_gradients(Layout& layout, ElementwiseProblem& problem, const Gradients& grads) {
  if (grads[0].defined()) layout.add(problem.grad_input, grads[0], "grad_input");
  if (grads[1].defined()) layout.add(problem.grad_target, grads[1], "grad_target");
  if (grads[2].defined()) layout.add(problem.grad_weight, grads[2], "grad_weight");
}

Tensor add_loss(Layout& layout, ElementwiseProblem& problem, const ElementwiseCall& call,
                at::ScalarType dtype) {
  if (!call.reduces()) {
    Tensor value = large(at::empty_like(call.input, call.input.options().dtype(dtype)));
    layout.add(problem.value, value, "value");
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
    layout.add_broadcast(problem.value, reduced, "value");  // nothing to reduce
    return reduced;
  }
  problem.reduced.data = reduced.data_ptr();
  problem.reduced.dtype = dtype_of(reduced);
  return reduced;
}

}  // namespace lossops::ops
