// bfloat16, as far as kernels convert it: rounded to nearest, ties to even.
#pragma once

#include <cuda_runtime.h>

struct __nv_bfloat16 {
  unsigned short bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float number;
  memcpy(&number, &bits, sizeof(bits));
  return number;
}

inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  if (std::isnan(x)) return {0x7fff};
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return {static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// By way of a float that is rounded to odd, so that the number is rounded once.
inline __nv_bfloat16 __double2bfloat16(double x) {
  float nearest = static_cast<float>(x);
  if (std::isfinite(nearest) && nearest != x) {
    uint32_t bits;
    memcpy(&bits, &nearest, sizeof(bits));
    if (std::fabs(nearest) > std::fabs(x)) bits -= 1;  // towards zero
    bits |= 1;
    memcpy(&nearest, &bits, sizeof(bits));
  }
  return __float2bfloat16_rn(nearest);
}
