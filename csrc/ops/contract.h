// What every op demands of every tensor that it is given, whoever calls: raw ops are reachable from
// exported programs and compiled graphs. Kernels believe what a problem says about memory.
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

// The kernels' name of a dtype; refuses those that they do not compute with.
DType dtype_of(at::ScalarType type, const char* name);
inline DType dtype_of(const Tensor& tensor) {
  return dtype_of(tensor.scalar_type(), "a result");
}

// The number of elements of this shape. Empty tensors may have sizes whose product is too large.
int64_t count(c10::IntArrayRef sizes);

// What an op is given that scales in place.
void check_single(const Tensor& grad_output);

// As many gradients as a mask asks for.
template <size_t size>
void check_given(at::TensorList grads, const std::array<bool, size>& mask) {
  const auto wanted = static_cast<size_t>(std::count(mask.begin(), mask.end(), true));
  TORCH_CHECK(grads.size() == wanted, "output_mask asks for ", wanted, " gradients, got ",
              grads.size());
}

// "none", "mean" or "sum".
void check_reduction(std::string_view reduction);

// The tensors of a call, which outlive this: no kernel is given the address of one that has not
// been checked here.
class Operands {
 public:
  explicit Operands(at::Device device) : device_(device) {}

  // Checks a tensor of numbers, or of class indices: its device, dtype and layout, that its memory
  // is there, and that nothing is written to it.
  void read(const Tensor& tensor, const char* name);
  void read_labels(const Tensor& tensor, const char* name);
  // Checks a tensor of the caller's that is to be written: also that its elements are apart from
  // each other, and from those of all other tensors.
  void write(const Tensor& tensor, const char* name);

  // The memory of a checked tensor, of a copy of one, or of a result, which is kept alive.
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
