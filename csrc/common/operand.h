// Tensors as the engines see them: plain data, independent of torch and CUDA.
#pragma once

#include <cstdint>

#include "losses/math.h"

namespace lossops {

enum class DType : int8_t { float64, float32, bfloat16, float16 };

constexpr int size_of(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

constexpr int kMaxDims = 8;

// A tensor of a problem; absent if `data` is null.
struct Operand {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t stride[kMaxDims] = {};  // in elements, one per dimension of the iteration space

  LOSSOPS_FN bool defined() const { return data != nullptr; }
};

}  // namespace lossops
