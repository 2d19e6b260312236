// The problem that `ops` passes to an elementwise engine: plain data, independent of torch and
// CUDA.
#pragma once

#include <cstdint>

#include "common/operand.h"
#include "losses/elementwise.h"

namespace lossops {

// An elementwise problem iterates over `numel` elements. Dimension 0 is the innermost. Dimensions
// are ordered and merged so that tensors with equal dense strides give a single one. Every
// `group_size` consecutive elements form a group, which is reduced to one number.
struct ElementwiseProblem {
  int loss = 0;  // position in ElementwiseLosses
  double params[kMaxParams] = {};
  bool double_precision = false;  // compute in float64; otherwise in float32

  int ndim = 0;
  int64_t size[kMaxDims] = {};
  int64_t numel = 0;
  int64_t group_size = 0;
  int64_t groups = 0;

  // Factor on every sum and every derivative: 1/group_size for a mean, otherwise 1.
  double scale = 1;
  // Divides them as well, if given: one number per group, or one for all groups (stride 0). A
  // problem that asks for gradients in the forward pass has a single group.
  Operand normalizer;
  int64_t normalizer_stride = 0;

  // Inputs.
  Operand input, target, weight;
  Operand grad_output;  // broadcast over the problem with stride 0
  Operand tangent_input, tangent_target, tangent_weight;  // second order only

  // Outputs, where defined.
  Operand value;    // [numel], reduction "none": the loss or its directional derivative
  Operand reduced;  // [groups], contiguous: the reduced loss or its directional derivative
  Operand grad_input, grad_target, grad_weight;
};

}  // namespace lossops
