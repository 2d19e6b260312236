// What `ops` asks an engine of the vector family to compute: plain data, without torch and CUDA.
#pragma once

#include <cstdint>

#include "common/rows.h"
#include "losses/vectors.h"

namespace lossops {

// A vector per row, its elements side by side.
struct RowVectors {
  void* data = nullptr;
  int64_t row_stride = 0;  // in elements

  LOSSOPS_FN bool defined() const { return data != nullptr; }
};

// A loss over rows of vectors, all of one dtype. See lossops/vectors/ops.py for the formulas.
// Numbers per row go by `outer_stride`.
struct VectorsProblem {
  int loss = 0;  // position in VectorLosses
  double params[kMaxVectorParams] = {};
  DType dtype = DType::float32;
  int64_t rows = 0, length = 0;

  // Multiplies every derivative: 1/rows for a mean, else 1.
  double scale = 1;

  // Read.
  RowVectors vectors[kMaxVectors];
  RowLabels labels;        // an index or a list of indices per row, for the losses that have them
  RowNumbers signs;        // a number per row, for the others that take one
  RowNumbers row_weight;   // multiplies a row's loss
  RowNumbers grad_output;  // backward only; a missing one is 1

  // Written, where defined.
  RowNumbers value;  // float64 or float32
  RowVectors grads[kMaxVectors];

  // Whether a row has a list of labels, as long as itself, and not one or none.
  bool has_lists() const {
    bool found = false;
    visit(VectorLosses{}, loss, [&]<class Loss>() { found = kHasList<Loss>; });
    return found;
  }
};

}  // namespace lossops
