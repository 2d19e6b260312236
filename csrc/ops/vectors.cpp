#include "ops/vectors.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>

#include "ops/large.h"

namespace lossops::ops {
namespace {

struct NamedLoss {
  int position, vectors, num_params;
  bool has_index, has_number, has_list;

  bool has_label() const { return has_index || has_number || has_list; }
};

template <class... Losses>
std::optional<NamedLoss> find(LossList<Losses...>, std::string_view name) {
  std::optional<NamedLoss> found;
  int position = 0;
  const auto look = [&]<class Loss>() {
    if (Loss::name == name) {
      found = NamedLoss{position,        Loss::vectors,    Loss::num_params,
                        kHasIndex<Loss>, kHasNumber<Loss>, kHasList<Loss>};
    }
    ++position;
  };
  (look.template operator()<Losses>(), ...);
  return found;
}

}  // namespace

VectorsTask::VectorsTask(const VectorsCall& call) : call_(call) {
  const auto loss = find(VectorLosses{}, call.loss);
  TORCH_CHECK(loss, "unknown vector loss '", std::string(call.loss), "'");
  TORCH_CHECK(call.vectors.size() == size_t(loss->vectors), "loss '", call.loss, "' takes ",
              loss->vectors, " vectors per row, got ", call.vectors.size());
  TORCH_CHECK(call.params.size() == size_t(loss->num_params), "loss '", call.loss, "' takes ",
              loss->num_params, " parameters, got ", call.params.size());
  const bool is_mean = call.reduction == "mean";
  TORCH_CHECK(is_mean || call.reduction == "sum" || call.reduction == "none",
              "reduction should be none, mean or sum, got '", call.reduction, "'");
  const Tensor& first = call.vectors[0];
  TORCH_CHECK(first.dim() == 2, "vectors should have the shape (rows, length), got ",
              first.sizes());
  problem.loss = loss->position;
  std::copy(call.params.begin(), call.params.end(), problem.params);
  problem.dtype = dtype_of(first);
  problem.rows = first.size(0);
  problem.length = first.size(1);
  if (is_mean && problem.rows > 0) problem.scale = 1.0 / static_cast<double>(problem.rows);
  for (size_t i = 0; i < call.vectors.size(); ++i) {
    const Tensor& tensor = call.vectors[i];
    TORCH_CHECK(tensor.sizes() == first.sizes(), "vectors should have one shape, got ",
                first.sizes(), " and ", tensor.sizes());
    TORCH_CHECK(tensor.scalar_type() == first.scalar_type(), "vectors should have one dtype, got ",
                first.scalar_type(), " and ", tensor.scalar_type());
    TORCH_CHECK(tensor.device() == first.device(), "vectors should be on one device, got ",
                first.device(), " and ", tensor.device());
    const bool lies_right = tensor.stride(1) == 1 || problem.length == 1;
    kept_.push_back(lies_right ? tensor : tensor.contiguous());
    problem.vectors[i] = {kept_.back().data_ptr(), kept_.back().stride(0)};
  }
  TORCH_CHECK(call.label.has_value() == loss->has_label(), "loss '", call.loss, "' takes ",
              call.label.has_value() ? "no" : "a", " label");
  if (loss->has_index || loss->has_list) {
    const auto type = call.label->scalar_type();
    TORCH_CHECK(type == at::kLong || type == at::kInt || type == at::kByte,
                "labels should be int64, int32 or uint8, got ", type);
    problem.labels.bytes = static_cast<int8_t>(call.label->element_size());
  }
  if (loss->has_list) {
    add_lists(*call.label);
  } else if (loss->has_index) {
    const RowNumbers labels = numbers(*call.label, "label");
    problem.labels.data = labels.data;
    problem.labels.outer_stride = labels.outer_stride;
  } else if (loss->has_number) {
    problem.signs = numbers(*call.label, "label");
    problem.signs.dtype = dtype_of(*call.label);
  }
  if (call.row_weight.has_value()) {
    problem.row_weight = numbers(*call.row_weight, "row_weight");
    problem.row_weight.dtype = dtype_of(*call.row_weight);
  }
}

void VectorsTask::add_lists(const Tensor& labels) {
  TORCH_CHECK(labels.sizes() == first().sizes(), "label should have the shape of the vectors, ",
              first().sizes(), ", got ", labels.sizes());
  TORCH_CHECK(labels.device() == first().device(), "label should be on ", first().device(),
              " like the vectors, got ", labels.device());
  kept_.push_back(labels);
  problem.labels.data = labels.data_ptr();
  problem.labels.outer_stride = labels.stride(0);
  problem.labels.inner_stride = labels.stride(1);
}

RowNumbers VectorsTask::numbers(const Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.dim() == 0 || (tensor.dim() == 1 && tensor.size(0) == problem.rows), name,
              " should be a number or have one per row, ", problem.rows, ", got shape ",
              tensor.sizes());
  TORCH_CHECK(tensor.device() == first().device(), name, " should be on ", first().device(),
              " like the vectors, got ", tensor.device());
  kept_.push_back(tensor);
  RowNumbers numbers;
  numbers.data = tensor.data_ptr();
  numbers.outer_stride = tensor.dim() == 0 ? 0 : tensor.stride(0);
  return numbers;
}

Tensor VectorsTask::add_values() {
  const bool wide = problem.dtype == DType::float64;
  Tensor values =
      at::empty({problem.rows}, first().options().dtype(wide ? at::kDouble : at::kFloat));
  problem.value.data = values.data_ptr();
  problem.value.dtype = dtype_of(values);
  problem.value.outer_stride = 1;
  return values;
}

void VectorsTask::add_grad_output(const Tensor& grad_output) {
  TORCH_CHECK(!call_.reduces() || grad_output.dim() == 0,
              "grad_output should be a number, got shape ", grad_output.sizes());
  problem.grad_output = numbers(grad_output, "grad_output");
  problem.grad_output.dtype = dtype_of(grad_output);
}

std::array<Tensor, kMaxVectors> VectorsTask::add_gradients(
    const std::array<bool, kMaxVectors>& mask) {
  std::array<Tensor, kMaxVectors> grads;
  for (size_t i = 0; i < grads.size(); ++i) {
    if (!mask[i]) continue;
    TORCH_CHECK(i < call_.vectors.size(),
                "output_mask asks for the gradient of a vector that loss '", call_.loss,
                "' does not take");
    grads[i] = large(at::empty(first().sizes(), first().options()));
    problem.grads[i] = {grads[i].data_ptr(), problem.length};
  }
  return grads;
}

}  // namespace lossops::ops
