// Values of which there is one per row.
#pragma once

#include <cstdint>

#include "common/operand.h"

namespace lossops {

// One number per row, or one for all rows if the strides are 0.
struct RowNumbers {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t outer_stride = 0, inner_stride = 0;

  LOSSOPS_FN bool defined() const { return data != nullptr; }
};

// One class index per row.
struct RowLabels {
  const void* data = nullptr;
  int8_t bytes = 8;  // int64, int32 or uint8
  int64_t outer_stride = 0, inner_stride = 0;

  LOSSOPS_FN bool defined() const { return data != nullptr; }
};

}  // namespace lossops
