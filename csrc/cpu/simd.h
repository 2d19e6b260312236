// A SIMD vector for the losses to compute on: at::vec::Vectorized behind the operations of
// losses/math.h. Compiled once per instruction set, each in a namespace of its own.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include "losses/math.h"

namespace lossops {
inline namespace CPU_CAPABILITY {

template <class T>
struct Mask {
  at::vec::Vectorized<T> bits;
};

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
  LOSSOPS_FN friend Mask<T> operator<(Simd a, Simd b) { return {a.v < b.v}; }
  LOSSOPS_FN friend Mask<T> operator>(Simd a, Simd b) { return {a.v > b.v}; }
  LOSSOPS_FN friend Mask<T> operator>=(Simd a, Simd b) { return {a.v >= b.v}; }
  LOSSOPS_FN friend Mask<T> operator==(Simd a, Simd b) { return {a.v == b.v}; }
};

template <class T>
LOSSOPS_FN Simd<T> abs(Simd<T> a) {
  return a.v.abs();
}
template <class T>
LOSSOPS_FN Simd<T> sqrt(Simd<T> a) {
  return a.v.sqrt();
}
template <class T>
LOSSOPS_FN Simd<T> expm1(Simd<T> a) {
  return a.v.expm1();
}
template <class T>
LOSSOPS_FN Simd<T> log1p(Simd<T> a) {
  return a.v.log1p();
}
template <class T>
LOSSOPS_FN Simd<T> copysign(Simd<T> magnitude, Simd<T> sign) {
  const at::vec::Vectorized<T> sign_bit(T(-0.0));
  return magnitude.v.abs() | (sign.v & sign_bit);
}
template <class T>
LOSSOPS_FN Simd<T> select(Mask<T> condition, Simd<T> yes, Simd<T> no) {
  return Simd<T>::Vector::blendv(no.v, yes.v, condition.bits);
}

}  // namespace CPU_CAPABILITY
}  // namespace lossops
