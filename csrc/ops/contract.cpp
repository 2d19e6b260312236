#include "ops/contract.h"

#include <ATen/EmptyTensor.h>
#include <c10/util/safe_numerics.h>

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

namespace lossops::ops {
namespace {

// The dimensions of a tensor that have more than one element; strides are in bytes.
using Dims = c10::SmallVector<std::pair<int64_t, int64_t>, 8>;  // (stride, size)

Dims dims_of(const Tensor& tensor) {
  Dims dims;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) > 1) dims.emplace_back(tensor.stride(d) * tensor.itemsize(), tensor.size(d));
  }
  return dims;
}

// Whether elements of this many bytes do not overlap, because each dimension steps over everything
// inside it. There are other layouts without overlap, but they are rare, and a walk over the
// strides would not detect them.
bool are_apart(Dims dims, int64_t bytes) {
  std::sort(dims.begin(), dims.end());
  for (const auto& [stride, size] : dims) {
    if (stride < bytes) return false;
    bytes += (size - 1) * stride;
  }
  return true;
}

std::pair<const char*, const char*> extent_of(const Tensor& tensor) {
  const auto* const begin = static_cast<const char*>(tensor.const_data_ptr());
  int64_t bytes = tensor.itemsize();
  for (const auto& [stride, size] : dims_of(tensor)) bytes += (size - 1) * stride;
  return {begin, begin + bytes};
}

bool are_apart(const Tensor& a, const Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return true;
  const auto [begin_a, end_a] = extent_of(a);
  const auto [begin_b, end_b] = extent_of(b);
  if (end_a <= begin_b || end_b <= begin_a) return true;
  // Parts of one tensor, such as those that chunk() returns, form a tensor with one more dimension.
  if (a.dim() != b.dim()) return false;
  Dims dims;
  for (int64_t d = 0; d < a.dim(); ++d) {
    const int64_t size = std::max(a.size(d), b.size(d)), stride = a.stride(d) * a.itemsize();
    if (size == 1) continue;
    if (stride != b.stride(d) * static_cast<int64_t>(b.itemsize())) return false;
    dims.emplace_back(stride, size);
  }
  dims.emplace_back(std::abs(begin_a - begin_b), 2);
  return are_apart(std::move(dims), std::max(a.itemsize(), b.itemsize()));
}

}  // namespace

std::string printed(at::ScalarType type) {
  return std::string("torch.").append(c10::getDtypeNames(type).first);
}

void check_number_or(const Tensor& tensor, const char* name, c10::IntArrayRef shape,
                     const char* of) {
  TORCH_CHECK(tensor.dim() == 0 || tensor.sizes() == shape, name,
              " should be a number or have the shape of ", of, ", ", shape, ", got ",
              tensor.sizes());
}

DType dtype_of(at::ScalarType type, const char* name) {
  switch (type) {
    case at::kDouble:
      return DType::float64;
    case at::kFloat:
      return DType::float32;
    case at::kBFloat16:
      return DType::bfloat16;
    case at::kHalf:
      return DType::float16;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(
          false, name, " should be float64, float32, bfloat16 or float16, got ", printed(type));
  }
}

int64_t count(c10::IntArrayRef sizes) {
  uint64_t product = 1;
  const bool overflows = c10::safe_multiplies_u64(sizes, &product);
  TORCH_CHECK(!overflows && product <= uint64_t(std::numeric_limits<int64_t>::max()),
              "there are too many numbers in the shape ", sizes);
  return static_cast<int64_t>(product);
}

void check_is_given(const OptionalTensor& tensor, const char* name) {
  TORCH_CHECK(tensor.has_value(), "output_mask asks for the gradient of ", name,
              ", which is not given");
}

void check_single(const Tensor& grad_output) {
  TORCH_CHECK(grad_output.defined(), "grad_output should be a tensor, got none");
  TORCH_CHECK(grad_output.numel() == 1, "grad_output should be a single number, got shape ",
              grad_output.sizes());
}

void check_reduction(std::string_view reduction) {
  TORCH_CHECK(reduction == "mean" || reduction == "sum" || reduction == "none",
              "reduction should be none, mean or sum, got '", std::string(reduction), "'");
}

void Operands::check(const Tensor& tensor, const char* name) const {
  TORCH_CHECK(tensor.defined(), name, " should be a tensor, got none");
  TORCH_CHECK(tensor.device() == device_, name, " should be on ", device_, " like the others, got ",
              tensor.device());
  TORCH_CHECK_NOT_IMPLEMENTED(tensor.layout() == at::kStrided, name,
                              " should be a dense tensor, got layout ", tensor.layout());
  if (tensor.numel() == 0) return;
  const size_t needed = at::detail::computeStorageNbytes(
      tensor.sizes(), tensor.strides(), tensor.itemsize(), tensor.storage_offset());
  TORCH_CHECK(needed <= tensor.storage().nbytes(), name, " should lie within its memory: it needs ",
              needed, " bytes, and its storage has ", tensor.storage().nbytes());
  // A GPU ends its context at a misaligned access, and compilers may vectorize for alignment.
  const size_t aligned = std::min<size_t>(tensor.itemsize(), alignof(int64_t));
  TORCH_CHECK(
      reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % aligned == 0, name,
      " should lie in memory at a multiple of its element size. Please clone() the tensor.");
}

void Operands::add(const Tensor& tensor, const char* name, bool written) {
  for (const Entry& other : given_) {
    if (!written && !other.written) continue;
    TORCH_CHECK(are_apart(tensor, *other.tensor), "unsupported operation: some elements of ", name,
                " and of ", other.name,
                ", of which one is written to, may refer to a single "
                "memory location. Please clone() one of them before performing the operation.");
  }
  given_.push_back({&tensor, name, written});
}

void Operands::read(const Tensor& tensor, const char* name) {
  check(tensor, name);
  dtype_of(tensor.scalar_type(), name);
  add(tensor, name, false);
}

void Operands::read_labels(const Tensor& tensor, const char* name) {
  check(tensor, name);
  const auto type = tensor.scalar_type();
  TORCH_CHECK_NOT_IMPLEMENTED(type == at::kLong || type == at::kInt || type == at::kByte, name,
                              " should be int64, int32 or uint8, got ", printed(type));
  add(tensor, name, false);
}

void Operands::write(const Tensor& tensor, const char* name) {
  check(tensor, name);
  dtype_of(tensor.scalar_type(), name);
  TORCH_CHECK(tensor.numel() == 0 || are_apart(dims_of(tensor), tensor.itemsize()),
              "unsupported operation: more than one element of ", name,
              ", which is written to, may refer to a single memory location. Please clone() the "
              "tensor before performing the operation.");
  add(tensor, name, true);
}

void* Operands::keep(Tensor tensor) {
  kept_.push_back(std::move(tensor));
  return kept_.back().data_ptr();
}

}  // namespace lossops::ops
