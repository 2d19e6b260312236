#pragma once

#include <cuda_runtime.h>

#include "common/rows.h"

namespace lossops::cuda {

__device__ __forceinline__ int64_t load_label(const RowLabels& labels, int64_t i) {
  switch (labels.bytes) {
    case 8:
      return static_cast<const int64_t*>(labels.data)[i];
    case 4:
      return static_cast<const int*>(labels.data)[i];
    default:
      return static_cast<const unsigned char*>(labels.data)[i];
  }
}

}  // namespace lossops::cuda
