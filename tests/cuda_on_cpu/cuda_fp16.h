// IEEE half precision, as far as kernels convert it: rounded to nearest, ties to even.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

struct __half {
  unsigned short bits;
};

inline float __half2float(__half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  uint32_t bits;
  float number;
  if (magnitude >= 0x7c00) {
    bits = 0x7f800000 | (magnitude & 0x3ff) << 13;
  } else if (magnitude >= 0x400) {
    bits = (magnitude << 13) + (112u << 23);
  } else {  // a multiple of 2^-24
    number = static_cast<float>(magnitude) * 0x1p-24f;
    memcpy(&bits, &number, sizeof(bits));
  }
  bits |= sign;
  memcpy(&number, &bits, sizeof(bits));
  return number;
}

inline __half __double2half(double x) {
  const auto of = [&](unsigned magnitude) {
    return __half{static_cast<unsigned short>((std::signbit(x) ? 0x8000 : 0) | magnitude)};
  };
  const double magnitude = std::fabs(x);
  if (std::isnan(x)) return of(0x7fff);
  if (magnitude >= 65520) return of(0x7c00);
  if (magnitude == 0) return of(0);
  // The last place of the result; rint rounds ties to even, and a carry runs into the exponent.
  const int exponent = std::max(std::ilogb(magnitude), -14);
  const auto units = static_cast<unsigned>(std::rint(std::ldexp(magnitude, 10 - exponent)));
  return of(units + (unsigned(exponent + 14) << 10));
}
inline __half __float2half_rn(float x) {
  return __double2half(x);
}
