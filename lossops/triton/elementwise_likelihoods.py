"""Negative log-likelihoods in Triton: the twins of ``csrc/losses/likelihoods.h``, whose comments
they share."""

import triton
import triton.language as tl

from lossops.triton.math import divide


@triton.jit
def poisson_log(x, y, p0, p1):
    e = tl.exp(x)
    value = tl.where(y == 0, e, tl.where(e == float("inf"), e - y * 0, e - y * x))
    return value, tl.where(e < float("inf"), e - y, e), -x, e, -1.0, 0.0


@triton.jit
def poisson(x, y, epsilon, p1):
    total = x + epsilon
    added = total - x
    lost = (x - (total - added)) + (epsilon - added)  # of the sum, by rounding
    log = tl.log(total)
    log = tl.where(tl.abs(lost) > 0, log + divide(lost, total), log)
    q = divide(tl.full([], 1.0, x.dtype), total)
    none = y == 0
    value = tl.where(none, tl.where(total >= 0, x, log), x - y * log)
    far = total == float("inf")
    dx = tl.where(far, 1 - divide(y, total), divide((x - y) + epsilon, total))
    dx = tl.where(none, 1.0, dx)
    return value, dx, -log, tl.where(none, 0.0, y * q * q), -q, 0.0


@triton.jit
def gaussian(x, y, epsilon, constant):
    variance = tl.where(y < 0, float("nan"), tl.where(y < epsilon, epsilon, y))
    q = divide(tl.full([], 1.0, x.dtype), variance)
    r = divide(x, variance)
    value = 0.5 * x * r + (0.5 * tl.log(variance) + constant)
    return value, r, 0.5 * (q - r * r), q, -(r * q), (r * r - 0.5 * q) * q
