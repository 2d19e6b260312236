// What `ops` asks an engine to compute: plain data, without torch and without CUDA.
#pragma once

#include <cstdint>

#include "losses/elementwise.h"

namespace lossops {

enum class DType : int8_t { float64, float32, bfloat16, float16 };

constexpr int size_of(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

constexpr int kMaxDims = 8;

// One tensor of a problem, or none where `data` is null.
struct Operand {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t stride[kMaxDims] = {};  // in elements, one per dimension of the iteration space

  LOSSOPS_FN bool defined() const { return data != nullptr; }
};

// An elementwise problem iterates over `numel` elements. Dimension 0 is the innermost one, and
// dimensions are ordered and merged so that tensors of equal dense strides give a single one.
// Every `group_size` consecutive elements form a group; a group is reduced to one number.
struct ElementwiseProblem {
  int loss = 0;  // position in ElementwiseLosses
  double params[kMaxParams] = {};
  bool double_precision = false;  // compute in float64; otherwise in float32

  int ndim = 0;
  int64_t size[kMaxDims] = {};
  int64_t numel = 0;
  int64_t group_size = 0;
  int64_t groups = 0;

  // Multiplies every sum and every derivative: 1/group_size for a mean, else 1.
  double scale = 1;
  // Divides them as well where given: one number per group, or one for all (stride 0). A problem
  // that asks for gradients in the forward pass has a single group.
  Operand normalizer;
  int64_t normalizer_stride = 0;

  // Read.
  Operand input, target, weight;
  Operand grad_output;                                    // as wide as the problem; broadcast
  Operand tangent_input, tangent_target, tangent_weight;  // second order only

  // Written, where defined.
  Operand value;    // [numel], reduction "none": the loss, or its directional derivative
  Operand reduced;  // [groups], contiguous: the reduced loss, or its directional derivative
  Operand grad_input, grad_target, grad_weight;
};

}  // namespace lossops
