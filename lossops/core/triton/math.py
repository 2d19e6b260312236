"""Math functions that Triton lacks.

libdevice has them, but only for CUDA and not in the interpreter. These are built from `exp` and
`log`. On the GPU, `exp` is fast and a few ulp off. `log` is accurate to one ulp, also relative to
its value near 1.
"""

import triton
import triton.language as tl


@triton.jit
def divide(x, y):
    """x / y, correctly rounded. The operator `/` is not correctly rounded in float32."""
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)


@triton.jit
def expm1(x):
    """exp(x) - 1, without cancellation near 0.

    With u = exp(x) as computed, exp(x) = u exp(x - log u), where the exponent is tiny. To first
    order, the error of u is therefore u (x - log u). Far from 0, u needs no correction, and its log
    may be infinite. Very near 0, x may be smaller than the error of u (the GPU's fast exp need not
    even return 1 there), but two terms of the series are enough.
    """
    u = tl.exp(x)
    z = tl.abs(x)
    corrected = (u - 1) + u * (x - tl.log(u))
    tiny = 1e-8 if x.dtype == tl.float64 else 1e-4
    return tl.where(z < tiny, x + 0.5 * x * x, tl.where(z < 1, corrected, u - 1))


@triton.jit
def log1p(x):
    """log(1 + x) for finite x > -1, without cancellation near 0.

    With u = 1 + x rounded, u - 1 is exact. The error of log u is log((1 + x) / u), which is (x - (u
    - 1)) / u to first order.
    """
    u = 1 + x
    return tl.log(u) + (x - (u - 1)) / u


@triton.jit
def power(base, exponent):
    """base^exponent for base in [0, 1] and exponent >= 0; 0^0 is 1.

    With base = f 2^k and 1 <= f < 2, the result is 2^(k exponent) f^exponent. The relative error of
    exp(exponent log(base)) would grow with its argument. Here the argument stays small: the product
    of k and the leading digits of the exponent is exact, and its integer part is split off.
    """
    k = tl.maximum(tl.floor(tl.log2(base)), -126.0)
    f = base * tl.exp2(-k)
    leading = tl.floor(exponent * 256 + 0.5) * (1.0 / 256)
    scaled = leading * k
    whole = tl.floor(scaled + 0.5)
    fraction = (scaled - whole) + (exponent - leading) * k
    rest = fraction * 0.693147180559945309417232121458 + exponent * tl.log(f)
    result = tl.where(exponent == 2, base * base, tl.exp2(whole) * tl.exp(rest))
    result = tl.where(exponent == 1, base, result)
    return tl.where(base > 0, result, tl.where(base == 0, tl.where(exponent > 0, 0.0, 1.0), base))
