// The problem that `ops` passes to a softmax engine: plain data, independent of torch and CUDA.
#pragma once

#include <cstdint>

#include "common/rows.h"
#include "losses/softmax.h"

namespace lossops {

// What the numbers of a row represent. Only a target can be labels: one class index per row.
enum class Form : int8_t { logits, log_probs, probs, labels };

// A tensor of rows x classes. Row r has the outer index r / inner and the inner index r % inner,
// where `inner` is that of the problem.
struct RowsOperand {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t outer_stride = 0, class_stride = 0, inner_stride = 0;  // in elements

  LOSSOPS_FN bool defined() const { return data != nullptr; }
};

// A loss over rows of class scores. See lossops/softmax/ops.py for the formulas.
//
// `rows` = outer * inner. Every `group_size` consecutive rows form a group, which is reduced to one
// number. A row whose label is `ignore_index` does not count: its loss and gradients are 0. A label
// outside [0, classes) makes the row's loss NaN and its gradients 0; it is never used as an index.
struct SoftmaxProblem {
  bool divergence = false;  // `loss` is a position in Divergences, otherwise in LabelLosses
  int loss = 0;
  double params[kMaxParams] = {};
  double temperature = 1;
  double softcap = 0;  // 0 for no cap
  double label_smoothing = 0, z_loss = 0;
  bool double_precision = false;  // compute in float64; otherwise in float32

  Form form = Form::logits, target_form = Form::labels;
  int64_t outer = 0, classes = 0, inner = 0;
  int64_t group_size = 0, groups = 0;
  int64_t ignore_index = -100;

  // Factor on every sum and every derivative: 1/group_size for a mean without a normalizer,
  // otherwise 1.
  double scale = 1;
  // Divides them as well, if given: one number per group, or one for all groups (stride 0).
  Operand normalizer;
  int64_t normalizer_stride = 0;
  // If set, the engine first computes `normalizer` (contiguous, one number per group) from the
  // labels that count: the sum of their weights if `count_weights`, otherwise their number.
  bool count = false;
  bool count_weights = false;
  bool one_if_none = false;  // store 1 instead of 0, so that a mean over nothing is 0

  // Inputs.
  RowsOperand input, target;  // target: undefined if the target is labels
  RowLabels labels;
  Operand class_weight;                            // [classes], with stride[0]
  RowNumbers grad_output, grad_lse, grad_entropy;  // backward only; 0 if absent

  // Outputs, where defined.
  RowNumbers value;  // reduction "none"
  Operand reduced;   // [groups], contiguous
  RowNumbers lse, entropy, accuracy;
  RowsOperand grad_input, grad_target;  // grad_input may alias input

  LOSSOPS_FN int64_t rows() const { return outer * inner; }
};

}  // namespace lossops
