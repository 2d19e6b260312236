// Single numbers whose dtype is known at run time only, and sums of many numbers; shared by the CPU
// engines.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "common/operand.h"

namespace lossops::cpu {

inline double read_number(const void* data, DType dtype, int64_t i = 0) {
  switch (dtype) {
    case DType::float64:
      return static_cast<const double*>(data)[i];
    case DType::float32:
      return static_cast<const float*>(data)[i];
    case DType::bfloat16:
      return static_cast<const c10::BFloat16*>(data)[i];
    case DType::float16:
      return static_cast<const c10::Half*>(data)[i];
  }
  return 0;
}

inline void write_number(void* data, DType dtype, int64_t i, double number) {
  switch (dtype) {
    case DType::float64:
      static_cast<double*>(data)[i] = number;
      return;
    case DType::float32:
      static_cast<float*>(data)[i] = static_cast<float>(number);
      return;
    case DType::bfloat16:
      static_cast<c10::BFloat16*>(data)[i] = static_cast<float>(number);
      return;
    case DType::float16:
      static_cast<c10::Half*>(data)[i] = static_cast<float>(number);
      return;
  }
}

inline double pairwise_sum(const double* values, int64_t n) {
  if (n <= 8) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += values[i];
    return sum;
  }
  return pairwise_sum(values, n / 2) + pairwise_sum(values + n / 2, n - n / 2);
}

}  // namespace lossops::cpu
