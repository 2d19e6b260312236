// Memory in the form that the CPU engines compute on: blocks of a few thousand bytes in the compute
// type.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include "common/operand.h"

namespace lossops {
inline namespace CPU_CAPABILITY {

constexpr int kBlock = 1024;  // elements

template <class To, class From>
inline void convert(const From* from, To* to, int64_t n) {
  using at::vec::Vectorized;
  if constexpr (std::is_same_v<To, From>) {
    // For a few thousand bytes std::memcpy may choose `rep movs`, which is slow to start.
    constexpr int width = Vectorized<From>::size();
    int64_t i = 0;
    for (; i + width <= n; i += width) Vectorized<From>::loadu(from + i).store(to + i);
    for (; i < n; ++i) to[i] = from[i];
  } else if constexpr (std::is_same_v<To, float> && sizeof(From) == 2) {
    constexpr int width = Vectorized<From>::size();
    int64_t i = 0;
    for (; i + width <= n; i += width) {
      const auto [low, high] = at::vec::convert_to_float<From>(Vectorized<From>::loadu(from + i));
      low.store(to + i);
      high.store(to + i + width / 2);
    }
    for (; i < n; ++i) to[i] = static_cast<float>(from[i]);
  } else if constexpr (std::is_same_v<From, float> && sizeof(To) == 2) {
    constexpr int width = Vectorized<To>::size();
    int64_t i = 0;
    for (; i + width <= n; i += width) {
      const auto low = Vectorized<float>::loadu(from + i);
      const auto high = Vectorized<float>::loadu(from + i + width / 2);
      at::vec::convert_from_float<To>(low, high).store(to + i);
    }
    for (; i < n; ++i) to[i] = static_cast<To>(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(from[i]);
  }
}

// Calls f with a null pointer to the element type of `dtype`.
template <class F>
inline void with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float64:
      return f(static_cast<double*>(nullptr));
    case DType::float32:
      return f(static_cast<float*>(nullptr));
    case DType::bfloat16:
      return f(static_cast<at::BFloat16*>(nullptr));
    case DType::float16:
      return f(static_cast<at::Half*>(nullptr));
  }
}

template <class T>
constexpr DType dtype_of = sizeof(T) == 8 ? DType::float64 : DType::float32;

}  // namespace CPU_CAPABILITY
}  // namespace lossops
