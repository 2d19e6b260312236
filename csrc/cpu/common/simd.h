// The SIMD vector type that the losses compute on: at::vec::Vectorized behind the operations of
// losses/math.h. Compiled once per instruction set, each time in a separate namespace.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include "losses/math.h"

// For a lambda that must be inlined into the loop that calls it.
#define LOSSOPS_INLINE_LAMBDA __attribute__((always_inline))

namespace lossops {
inline namespace CPU_CAPABILITY {

// The result of a comparison, per lane. AVX-512 keeps it in a mask register; at::vec would move it
// to a vector register and back.
template <class T>
struct Mask {
  at::vec::Vectorized<T> lanes;
};

#if defined(CPU_CAPABILITY_AVX512)
#define LOSSOPS_COMPARE(name, op, predicate)                                                   \
  LOSSOPS_FN Mask<float> name(at::vec::Vectorized<float> a, at::vec::Vectorized<float> b) {    \
    return {_mm512_cmp_ps_mask(a, b, predicate)};                                              \
  }                                                                                            \
  LOSSOPS_FN Mask<double> name(at::vec::Vectorized<double> a, at::vec::Vectorized<double> b) { \
    return {_mm512_cmp_pd_mask(a, b, predicate)};                                              \
  }

template <>
struct Mask<float> {
  __mmask16 lanes;
};
template <>
struct Mask<double> {
  __mmask8 lanes;
};

LOSSOPS_FN at::vec::Vectorized<float> blend(Mask<float> mask, at::vec::Vectorized<float> yes,
                                            at::vec::Vectorized<float> no) {
  return _mm512_mask_blend_ps(mask.lanes, no, yes);
}
LOSSOPS_FN at::vec::Vectorized<double> blend(Mask<double> mask, at::vec::Vectorized<double> yes,
                                             at::vec::Vectorized<double> no) {
  return _mm512_mask_blend_pd(mask.lanes, no, yes);
}
#else
#define LOSSOPS_COMPARE(name, op, predicate)                                    \
  template <class T>                                                            \
  LOSSOPS_FN Mask<T> name(at::vec::Vectorized<T> a, at::vec::Vectorized<T> b) { \
    return {a op b};                                                            \
  }

template <class T>
LOSSOPS_FN at::vec::Vectorized<T> blend(Mask<T> mask, at::vec::Vectorized<T> yes,
                                        at::vec::Vectorized<T> no) {
  return at::vec::Vectorized<T>::blendv(no, yes, mask.lanes);
}
#endif
LOSSOPS_COMPARE(less, <, _CMP_LT_OQ)
LOSSOPS_COMPARE(greater, >, _CMP_GT_OQ)
LOSSOPS_COMPARE(greater_equal, >=, _CMP_GE_OQ)
LOSSOPS_COMPARE(equal, ==, _CMP_EQ_OQ)
#undef LOSSOPS_COMPARE

template <class T>
struct Simd {
  using Vector = at::vec::Vectorized<T>;
  static constexpr int width = Vector::size();

  Vector v;

  LOSSOPS_FN Simd() : v(T(0)) {}
  LOSSOPS_FN Simd(double x) : v(static_cast<T>(x)) {}
  LOSSOPS_FN Simd(Vector x) : v(x) {}

  LOSSOPS_FN static Simd load(const T* p) { return Vector::loadu(p); }
  LOSSOPS_FN void store(T* p) const { v.store(p); }

  LOSSOPS_FN friend Simd operator+(Simd a, Simd b) { return a.v + b.v; }
  LOSSOPS_FN friend Simd operator-(Simd a, Simd b) { return a.v - b.v; }
  LOSSOPS_FN friend Simd operator*(Simd a, Simd b) { return a.v * b.v; }
  LOSSOPS_FN friend Simd operator/(Simd a, Simd b) { return a.v / b.v; }
  LOSSOPS_FN friend Simd operator-(Simd a) { return a.v ^ Vector(T(-0.0)); }
  LOSSOPS_FN friend Mask<T> operator<(Simd a, Simd b) { return less(a.v, b.v); }
  LOSSOPS_FN friend Mask<T> operator>(Simd a, Simd b) { return greater(a.v, b.v); }
  LOSSOPS_FN friend Mask<T> operator>=(Simd a, Simd b) { return greater_equal(a.v, b.v); }
  LOSSOPS_FN friend Mask<T> operator==(Simd a, Simd b) { return equal(a.v, b.v); }
};

template <class T>
LOSSOPS_FN Simd<T> select(Mask<T> condition, Simd<T> yes, Simd<T> no) {
  return blend(condition, yes.v, no.v);
}
// add_where: a + b where the condition holds, otherwise a. add_unless: the other way round.
template <class T>
LOSSOPS_FN Simd<T> add_where(Mask<T> condition, Simd<T> a, Simd<T> b) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(T) == 4) {
    return Simd<T>(_mm512_mask_add_ps(a.v, condition.lanes, a.v, b.v));
  } else {
    return Simd<T>(_mm512_mask_add_pd(a.v, condition.lanes, a.v, b.v));
  }
#else
  return a + select(condition, b, Simd<T>(0.0));
#endif
}
template <class T>
LOSSOPS_FN Simd<T> add_unless(Mask<T> condition, Simd<T> a, Simd<T> b) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(T) == 4) {
    return Simd<T>(_mm512_mask_add_ps(a.v, _knot_mask16(condition.lanes), a.v, b.v));
  } else {
    return Simd<T>(_mm512_mask_add_pd(a.v, _knot_mask8(condition.lanes), a.v, b.v));
  }
#else
  return a + select(condition, Simd<T>(0.0), b);
#endif
}
template <class T>
LOSSOPS_FN Simd<T> abs(Simd<T> a) {
  return a.v.abs();
}
template <class T>
LOSSOPS_FN Simd<T> sqrt(Simd<T> a) {
  return a.v.sqrt();
}

template <class T>
LOSSOPS_FN Simd<T> fma(Simd<T> a, Simd<T> b, Simd<T> c) {
  return at::vec::fmadd(a.v, b.v, c.v);
}

template <class T>
LOSSOPS_FN Simd<T> tanh(Simd<T> a) {
  return a.v.tanh();
}
template <class T>
LOSSOPS_FN Simd<T> max(Simd<T> a, Simd<T> b) {
  return at::vec::maximum(a.v, b.v);  // NaN if either is NaN
}

// The maximum in one instruction on x86, for callers that do not depend on the result for a NaN.
template <class T>
LOSSOPS_FN Simd<T> larger(Simd<T> a, Simd<T> b) {
  return at::vec::clamp_min(b.v, a.v);
}

template <class T>
LOSSOPS_FN Simd<T> log(Simd<T> a) {
  return a.v.log();
}
template <class T>
LOSSOPS_FN Simd<T> log1p(Simd<T> a) {
  return a.v.log1p();
}
// The first lane of a hyperparameter, which is the same in all lanes. Vectorized::zero_mask is no
// alternative: it misleads g++ 12 with AVX-512.
template <class T>
LOSSOPS_FN T first_lane(Simd<T> a) {
  T lanes[Simd<T>::width];
  a.store(lanes);
  return lanes[0];
}
template <class T>
LOSSOPS_FN Simd<T> power(Simd<T> base, Simd<T> exponent) {
  const T number = first_lane(exponent);
  if (number == 1) return base;
  if (number == 2) return base * base;
  return base.v.pow(exponent.v);
}
template <class T>
LOSSOPS_FN bool is_on(Simd<T> a) {
  return first_lane(a) != 0;
}

// In float64, the functions of the vector library that ships with torch.
LOSSOPS_FN Simd<double> exp(Simd<double> a) {
  return a.v.exp();
}
LOSSOPS_FN Simd<double> expm1(Simd<double> a) {
  return a.v.expm1();
}
LOSSOPS_FN Simd<double> log1p_upto_half(Simd<double> a) {
  return a.v.log1p();
}
LOSSOPS_FN Simd<double> log1p_upto_one(Simd<double> a) {
  return a.v.log1p();
}

// In float32, polynomials that stay in registers: a call per vector would cost more than the memory
// traffic. The coefficients are minimax fits. expm1 and exp are accurate to 2 units in the last
// place for every float, and so is log1p_upto_half within its domain (tests/test_simd_math.py).

template <size_t n>
LOSSOPS_FN at::vec::Vectorized<float> horner(at::vec::Vectorized<float> x,
                                             const float (&coefficients)[n]) {
  at::vec::Vectorized<float> sum(coefficients[n - 1]);
  for (size_t i = n - 1; i-- > 0;) {
    sum = at::vec::fmadd(sum, x, at::vec::Vectorized<float>(coefficients[i]));
  }
  return sum;
}

// x = n log(2) + r with |r| <= log(2)/2.
struct ReducedExponent {
  at::vec::Vectorized<float> n, r;

  LOSSOPS_FN explicit ReducedExponent(at::vec::Vectorized<float> x) {
    using Vector = at::vec::Vectorized<float>;
    n = (x * Vector(1.44269504f)).round();
    r = at::vec::fmadd(n, Vector(-0.693359375f), x);  // exact: few bits times an integer
    r = at::vec::fmadd(n, Vector(2.12194440e-4f), r);
  }
  // exp(r) - 1
  LOSSOPS_FN at::vec::Vectorized<float> expm1() const {
    constexpr float kCoefficients[] = {0.49999997f, 0.16666542f, 0.041667204f, 0.0083666472f,
                                       0.0013882495f};
    return at::vec::fmadd(r * r, horner(r, kCoefficients), r);
  }
};

// 2^n for integer-valued floats within the range of float32's exponents.
LOSSOPS_FN at::vec::Vectorized<float> power_of_two(at::vec::Vectorized<float> n) {
  const auto exponent = at::vec::convert_to_int_of_same_size(n) + at::vec::Vectorized<int32_t>(127);
  return at::vec::cast<float>(exponent << at::vec::Vectorized<int32_t>(23));
}

// exp for a <= 88. For larger numbers, the result is unspecified.
LOSSOPS_FN Simd<float> exp_of_small(Simd<float> a) {
  using Vector = at::vec::Vectorized<float>;
  // Below this bound, the result is 0. NaN passes through.
  const ReducedExponent x(at::vec::clamp_min(a.v, Vector(-104.0f)));
  const Vector p = x.expm1();
#if defined(CPU_CAPABILITY_AVX512)
  return Vector(_mm512_scalef_ps(p + Vector(1.0f), x.n));
#else
  // In two steps, because 2^n may be too small for a normal number or too large for any.
  const Vector half = (x.n * Vector(0.5f)).floor();
  return (p + Vector(1.0f)) * power_of_two(half) * power_of_two(x.n - half);
#endif
}

LOSSOPS_FN Simd<float> exp(Simd<float> a) {
  // Above this bound, the result is infinite. NaN passes through.
  return exp_of_small(at::vec::clamp_max(a.v, at::vec::Vectorized<float>(88.8f)));
}
LOSSOPS_FN Simd<double> exp_of_small(Simd<double> a) {
  return exp(a);
}

// exp(x) - 1 = 2^n exp(r) - 1.
LOSSOPS_FN Simd<float> expm1(Simd<float> a) {
  using Vector = at::vec::Vectorized<float>;
  // Beyond these bounds the result is -1 or infinite. NaN passes through both.
  const ReducedExponent x(at::vec::clamp(a.v, Vector(-30.0f), Vector(88.8f)));
  const Vector half = power_of_two(x.n - Vector(1.0f));  // n = 128 is still in range
  const Vector result = at::vec::fmadd(half, x.expm1(), half - Vector(0.5f));
  return result + result;
}

LOSSOPS_FN Simd<float> log1p_upto_half(Simd<float> a) {
  constexpr float kCoefficients[] = {-0.49999952f, 0.33330813f, -0.24954501f, 0.19602135f,
                                     -0.14736344f, 0.0875161f,  -0.027852956f};
  return at::vec::fmadd(a.v * a.v, horner(a.v, kCoefficients), a.v);
}

// log(1 + x) = 2 atanh(w) with w = x / (2 + x): an odd series in an argument of at most 1/3. Its
// first term 2w equals x - x w, where the rounding of w affects only the smaller part.
LOSSOPS_FN Simd<float> log1p_upto_one(Simd<float> a) {
  using Vector = at::vec::Vectorized<float>;
  constexpr float kCoefficients[] = {0.33333337f, 0.19999439f, 0.14308442f, 0.10713828f,
                                     0.12150469f};
  const Vector w = a.v / (a.v + Vector(2.0f)), square = w * w;
  const Vector rest = at::vec::fmsub((w + w) * square, horner(square, kCoefficients), a.v * w);
  return a.v + rest;
}

template <class T>
LOSSOPS_FN Simd<T> copysign(Simd<T> magnitude, Simd<T> sign) {
  const at::vec::Vectorized<T> sign_bit(T(-0.0));
  return magnitude.v.abs() | (sign.v & sign_bit);
}

}  // namespace CPU_CAPABILITY
}  // namespace lossops
