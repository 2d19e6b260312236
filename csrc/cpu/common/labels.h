#pragma once

#include <cstdint>

#include "common/rows.h"

namespace lossops::cpu {

inline int64_t read_label(const RowLabels& labels, int64_t outer, int64_t inner) {
  const int64_t i = outer * labels.outer_stride + inner * labels.inner_stride;
  switch (labels.bytes) {
    case 8:
      return static_cast<const int64_t*>(labels.data)[i];
    case 4:
      return static_cast<const int32_t*>(labels.data)[i];
    default:
      return static_cast<const uint8_t*>(labels.data)[i];
  }
}

}  // namespace lossops::cpu
