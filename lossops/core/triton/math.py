"""Functions that Triton lacks.

libdevice has them for CUDA alone, and not in the interpreter; these are made of `exp`, which on the
GPU is fast and a few units in the last place off, and of `log`, which is right to one unit, also
relative to its value near 1.
"""

import triton
import triton.language as tl


@triton.jit
def divide(x, y):
    """x / y, correctly rounded: on float32 the operator is not."""
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)


@triton.jit
def expm1(x):
    """exp(x) - 1, without cancellation near 0.

    With u = exp(x) as computed, exp(x) = u exp(x - log u), and that exponent is tiny: what u lacks
    is u (x - log u) to first order. Far from 0 u lacks nothing, and its log may be infinite. Very
    near 0 x may be less than the error of u (the GPU's fast exp need not even be 1 there), but
    there two terms of the series are enough.
    """
    u = tl.exp(x)
    z = tl.abs(x)
    corrected = (u - 1) + u * (x - tl.log(u))
    tiny = 1e-8 if x.dtype == tl.float64 else 1e-4
    return tl.where(z < tiny, x + 0.5 * x * x, tl.where(z < 1, corrected, u - 1))


@triton.jit
def log1p(x):
    """log(1 + x) for finite x > -1, without cancellation near 0.

    With u = 1 + x rounded, u - 1 is exact, so log u lacks log((1 + x) / u), to first order
    (x - (u - 1)) / u.
    """
    u = 1 + x
    return tl.log(u) + (x - (u - 1)) / u


@triton.jit
def power(base, exponent):
    """base^exponent for base in [0, 1] and exponent >= 0, 1 where both are 0.

    With base = f 2^k, 1 <= f < 2, it is 2^(k exponent) f^exponent. exp(exponent log(base)) would be
    off by as many units in the last place as its argument is large; here that argument is small,
    and of k times the exponent's leading digits, which is exact, the whole part goes by itself.
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
