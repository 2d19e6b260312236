// How kernels access memory: vectors of up to 16 bytes if the element type is known at compile
// time, single numbers if it is known at run time only.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>
#include <type_traits>

#include "common/operand.h"

namespace lossops::cuda {

// The compute type for an element type.
template <class S>
using Compute = std::conditional_t<sizeof(S) == 8, double, float>;

template <class S>
constexpr DType dtype_of = std::is_same_v<S, double>          ? DType::float64
                           : std::is_same_v<S, float>         ? DType::float32
                           : std::is_same_v<S, __nv_bfloat16> ? DType::bfloat16
                                                              : DType::float16;

// Calls f.operator()<S>() for the element type of a dtype.
template <class F>
void with_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::float64:
      return f.template operator()<double>();
    case DType::float32:
      return f.template operator()<float>();
    case DType::bfloat16:
      return f.template operator()<__nv_bfloat16>();
    case DType::float16:
      return f.template operator()<__half>();
  }
}

// Explicit conversions, because builds within torch disable the implicit ones of the half types.
template <class T, class S>
__device__ __forceinline__ T widen(S x) {
  if constexpr (std::is_same_v<S, __half>) {
    return static_cast<T>(__half2float(x));
  } else if constexpr (std::is_same_v<S, __nv_bfloat16>) {
    return static_cast<T>(__bfloat162float(x));
  } else {
    return static_cast<T>(x);
  }
}

template <class S, class T>
__device__ __forceinline__ S narrow(T x) {
  constexpr bool from_double = std::is_same_v<T, double>;
  if constexpr (std::is_same_v<S, __half> && from_double) {
    return __double2half(x);
  } else if constexpr (std::is_same_v<S, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<S, __nv_bfloat16> && from_double) {
    return __double2bfloat16(x);
  } else if constexpr (std::is_same_v<S, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return static_cast<S>(x);
  }
}

template <int bytes>
using Word = std::conditional_t<
    bytes == 16, uint4,
    std::conditional_t<bytes == 8, uint2,
                       std::conditional_t<bytes == 4, unsigned, unsigned short>>>;

// N elements that are loaded and stored together. They are held in their memory representation, so
// that half types stay two to a register.
template <class S, int N>
struct Pack {
  Word<sizeof(S) * N> word;

  template <class T>
  __device__ __forceinline__ void unpack(T (&numbers)[N]) const {
    S elements[N];
    memcpy(elements, &word, sizeof(word));
#pragma unroll
    for (int i = 0; i < N; ++i) numbers[i] = widen<T>(elements[i]);
  }

  template <class T>
  __device__ __forceinline__ static Pack of(const T (&numbers)[N]) {
    S elements[N];
#pragma unroll
    for (int i = 0; i < N; ++i) elements[i] = narrow<S>(numbers[i]);
    Pack pack;
    memcpy(&pack.word, elements, sizeof(pack.word));
    return pack;
  }

  // The address must be aligned to the size of the pack. A loss reads an element once, so its cache
  // line should be the first to be evicted. What it writes stays in the cache for the next
  // operation.
  __device__ __forceinline__ static Pack load(const S* p) {
    return {__ldcs(reinterpret_cast<const decltype(word)*>(p))};
  }
  __device__ __forceinline__ void store(S* p) const {
    // Explicit: a plain assignment may become two stores of half the width.
    __stwb(reinterpret_cast<decltype(word)*>(p), word);
  }
};

// A number in its memory representation. The conversion is separate, so that several loads can be
// in flight before the first one is waited for.
using Bits = unsigned long long;

__device__ __forceinline__ Bits load_bits(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::float64:
      return static_cast<const unsigned long long*>(data)[i];
    case DType::float32:
      return static_cast<const unsigned*>(data)[i];
    default:
      return static_cast<const unsigned short*>(data)[i];
  }
}

template <class S>
__device__ __forceinline__ S from_bits(Bits bits) {
  S number;
  const Word<sizeof(S)> word = [&] {
    if constexpr (sizeof(S) == 8) {
      return uint2{static_cast<unsigned>(bits), static_cast<unsigned>(bits >> 32)};
    } else {
      return static_cast<Word<sizeof(S)>>(bits);
    }
  }();
  memcpy(&number, &word, sizeof(number));
  return number;
}

template <class T>
__device__ __forceinline__ T decode(Bits bits, DType dtype) {
  switch (dtype) {
    case DType::float64:
      return widen<T>(from_bits<double>(bits));
    case DType::float32:
      return widen<T>(from_bits<float>(bits));
    case DType::bfloat16:
      return widen<T>(from_bits<__nv_bfloat16>(bits));
    default:
      return widen<T>(from_bits<__half>(bits));
  }
}

template <class T>
__device__ __forceinline__ T load_number(const void* data, DType dtype, int64_t i) {
  return decode<T>(load_bits(data, dtype, i), dtype);
}

template <class T>
__device__ __forceinline__ void store_number(void* data, DType dtype, int64_t i, T number) {
  switch (dtype) {
    case DType::float64:
      static_cast<double*>(data)[i] = narrow<double>(number);
      return;
    case DType::float32:
      static_cast<float*>(data)[i] = narrow<float>(number);
      return;
    case DType::bfloat16:
      static_cast<__nv_bfloat16*>(data)[i] = narrow<__nv_bfloat16>(number);
      return;
    default:
      static_cast<__half*>(data)[i] = narrow<__half>(number);
  }
}

inline bool aligned(const void* p, int bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

}  // namespace lossops::cuda
