// The few operations that the losses are written in, for float and double. cpu/common/simd.h adds
// the same names for SIMD vectors; argument-dependent lookup selects between them.
#pragma once

#include <cmath>
#include <limits>

#if defined(__CUDACC__)
#define LOSSOPS_FN __host__ __device__ __forceinline__
#else
// Always inlined: there must be no out-of-line copy, which the linker could take from a file that
// was compiled for a newer instruction set than the machine has.
#define LOSSOPS_FN inline __attribute__((always_inline))
#endif

namespace lossops {

// Constants, because device code may use them but not the functions of <limits>.
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

LOSSOPS_FN float abs(float x) {
  return ::fabsf(x);
}
LOSSOPS_FN double abs(double x) {
  return ::fabs(x);
}
LOSSOPS_FN float sqrt(float x) {
  return ::sqrtf(x);
}
LOSSOPS_FN double sqrt(double x) {
  return ::sqrt(x);
}
LOSSOPS_FN float fma(float a, float b, float c) {
  return ::fmaf(a, b, c);
}
LOSSOPS_FN double fma(double a, double b, double c) {
  return ::fma(a, b, c);
}
LOSSOPS_FN float exp(float x) {
  return ::expf(x);
}
LOSSOPS_FN double exp(double x) {
  return ::exp(x);
}
LOSSOPS_FN float expm1(float x) {
  return ::expm1f(x);
}
LOSSOPS_FN double expm1(double x) {
  return ::expm1(x);
}
LOSSOPS_FN float log(float x) {
  return ::logf(x);
}
LOSSOPS_FN double log(double x) {
  return ::log(x);
}
LOSSOPS_FN float log1p(float x) {
  return ::log1pf(x);
}
LOSSOPS_FN double log1p(double x) {
  return ::log1p(x);
}
// log1p for 0 <= x <= 1/2, where a SIMD implementation needs only a polynomial.
LOSSOPS_FN float log1p_upto_half(float x) {
  return log1p(x);
}
LOSSOPS_FN double log1p_upto_half(double x) {
  return log1p(x);
}
LOSSOPS_FN float tanh(float x) {
  return ::tanhf(x);
}
LOSSOPS_FN double tanh(double x) {
  return ::tanh(x);
}
// log1p for 0 <= x <= 1.
LOSSOPS_FN float log1p_upto_one(float x) {
  return log1p(x);
}
LOSSOPS_FN double log1p_upto_one(double x) {
  return log1p(x);
}
// base^exponent for base >= 0; 1 if both are 0. The exponent is a hyperparameter, the same for all
// elements, so a branch on it costs nothing. The usual exponents 1 and 2 need no logarithm.
LOSSOPS_FN float power(float base, float exponent) {
  return exponent == 1 ? base : exponent == 2 ? base * base : ::powf(base, exponent);
}
LOSSOPS_FN double power(double base, double exponent) {
  return exponent == 1 ? base : exponent == 2 ? base * base : ::pow(base, exponent);
}
// Whether a hyperparameter that is 0 or 1, the same for all elements, is 1.
LOSSOPS_FN bool is_on(float x) {
  return x != 0;
}
LOSSOPS_FN bool is_on(double x) {
  return x != 0;
}
LOSSOPS_FN float copysign(float magnitude, float sign) {
  return ::copysignf(magnitude, sign);
}
LOSSOPS_FN double copysign(double magnitude, double sign) {
  return ::copysign(magnitude, sign);
}

// Both sides are evaluated; the side not chosen may be NaN or infinite.
template <class T>
LOSSOPS_FN T select(bool condition, T yes, T no) {
  return condition ? yes : no;
}

}  // namespace lossops
