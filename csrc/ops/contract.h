// The checks that every op applies to every tensor it is given, whoever calls it: raw ops are
// reachable from exported programs and compiled graphs. Kernels trust what a problem says about
// memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>

#include "common/operand.h"
#include "ops/tensors.h"

namespace lossops::ops {

// The wording of refusals is that of lossops/core/contract.py; tests compare them.
inline constexpr const char* kOneNumber =
    "gradients come only where the loss is a single number: reduction should be mean or sum";

// The DType of a torch dtype. Rejects dtypes that the kernels do not compute with.
DType dtype_of(at::ScalarType type, const char* name);
inline DType dtype_of(const Tensor& tensor) {
  return dtype_of(tensor.scalar_type(), "a result");
}

// A dtype as Python prints it.
std::string printed(at::ScalarType type);

// Checks the shape of a tensor that may be a single number instead.
void check_number_or(const Tensor& tensor, const char* name, c10::IntArrayRef shape,
                     const char* of);

// The number of elements of this shape; throws if it overflows. Some dimensions of an empty tensor
// may have sizes whose product is too large.
int64_t count(c10::IntArrayRef sizes);

// Checks the grad_output of an op that scales in place: it must be a single number.
void check_single(const Tensor& grad_output);

// Checks that a tensor of which the gradient is asked for is given.
void check_is_given(const OptionalTensor& tensor, const char* name);

// Checks that there are as many gradients as a mask asks for.
template <size_t size>
void check_given(at::TensorList grads, const std::array<bool, size>& mask) {
  const auto wanted = static_cast<size_t>(std::count(mask.begin(), mask.end(), true));
  TORCH_CHECK(grads.size() == wanted, "output_mask asks for ", wanted, " gradients, got ",
              grads.size());
}

// Checks that the reduction is "none", "mean" or "sum".
void check_reduction(std::string_view reduction);

// Checks the tensors of a call, which must outlive this object. No kernel is given the address of a
// tensor that has not been checked here.
class Operands {
 public:
  explicit Operands(at::Device device) : device_(device) {}

  // Checks a tensor of numbers or of class indices: its device, dtype and layout, that it lies
  // within its storage, and that it does not overlap a tensor that is written.
  void read(const Tensor& tensor, const char* name);
  void read_labels(const Tensor& tensor, const char* name);
  // Checks a tensor of the caller that is to be written: additionally, that its elements overlap
  // neither each other nor those of any other tensor.
  void write(const Tensor& tensor, const char* name);

  // Returns the memory of a checked tensor, of a copy of one, or of a result, and keeps the tensor
  // alive.
  void* keep(Tensor tensor);

 private:
  struct Entry {
    const Tensor* tensor;
    const char* name;
    bool written;
  };
  void check(const Tensor& tensor, const char* name) const;
  void add(const Tensor& tensor, const char* name, bool written);

  at::Device device_;
  c10::SmallVector<Entry, 10> given_;
  c10::SmallVector<Tensor, 12> kept_;
};

}  // namespace lossops::ops
