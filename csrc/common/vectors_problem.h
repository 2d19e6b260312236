// The problem that `ops` passes to a vector engine: plain data, independent of torch and CUDA.
#pragma once

#include <cstdint>

#include "common/rows.h"
#include "losses/vectors.h"

namespace lossops {

// One vector per row, with contiguous elements.
struct RowVectors {
  void* data = nullptr;
  int64_t row_stride = 0;  // in elements

  LOSSOPS_FN bool defined() const { return data != nullptr; }
};

// A loss over rows of vectors, all of one dtype. See lossops/vectors/ops.py for the formulas. Of
// the strides of per-row numbers, only `outer_stride` is used.
struct VectorsProblem {
  int loss = 0;  // position in VectorLosses
  double params[kMaxVectorParams] = {};
  DType dtype = DType::float32;
  int64_t rows = 0, length = 0;

  // Factor on every derivative: 1/rows for a mean, otherwise 1.
  double scale = 1;

  // Inputs.
  RowVectors vectors[kMaxVectors];
  RowLabels labels;        // an index or a list of indices per row, for losses that take them
  RowNumbers signs;        // one number per row, for losses whose label is a number
  RowNumbers row_weight;   // factor on a row's loss
  RowNumbers grad_output;  // backward only; 1 if absent

  // Outputs, where defined.
  RowNumbers value;  // float64 or float32
  RowVectors grads[kMaxVectors];

  // Whether every row has a list of labels as long as the row, rather than one label or none.
  bool has_lists() const {
    bool found = false;
    visit(VectorLosses{}, loss, [&]<class Loss>() { found = kHasList<Loss>; });
    return found;
  }
};

}  // namespace lossops
