"""Negative log-likelihoods in Triton: the twins of ``csrc/losses/likelihoods.h``. See the comments
there."""

import triton
import triton.language as tl

from lossops.core.triton.math import divide


@triton.jit
def _stirling(y, full):
    value = y * 0.0
    dy, dyy = value, value
    if full != 0:
        large = y > 1
        count = tl.where(large, y, 1.0)
        log = tl.log(count)
        q = divide(tl.full([], 1.0, y.dtype), count)
        value = tl.where(large, count * log + (0.5 * log + (0.9189385332046727 - count)), 0.0)
        dy = tl.where(large, log + 0.5 * q, 0.0)
        dyy = tl.where(large, q - 0.5 * q * q, 0.0)
    return value, dy, dyy


@triton.jit
def poisson_log(x, y, full, p1):
    e = tl.exp(x)
    value = tl.where(y == 0, e, tl.where(e == float("inf"), e - y * 0, e - y * x))
    more, more_dy, dyy = _stirling(y, full)
    return value + more, tl.where(e < float("inf"), e - y, e), more_dy - x, e, -1.0, dyy


@triton.jit
def poisson(x, y, epsilon, full):
    total = x + epsilon
    added = total - x
    lost = (x - (total - added)) + (epsilon - added)  # rounding error of the sum x + epsilon
    log = tl.log(total)
    log = tl.where(tl.abs(lost) > 0, log + divide(lost, total), log)
    q = divide(tl.full([], 1.0, x.dtype), total)
    none = y == 0
    value = tl.where(none, tl.where(total >= 0, x, log), x - y * log)
    far = total == float("inf")
    dx = tl.where(far, 1 - divide(y, total), divide((x - y) + epsilon, total))
    dx = tl.where(none, 1.0, dx)
    more, more_dy, dyy = _stirling(y, full)
    return value + more, dx, more_dy - log, tl.where(none, 0.0, y * q * q), -q, dyy


@triton.jit
def gaussian(x, y, epsilon, constant):
    variance = tl.where(y < 0, float("nan"), tl.where(y < epsilon, epsilon, y))
    q = divide(tl.full([], 1.0, x.dtype), variance)
    r = divide(x, variance)
    value = 0.5 * x * r + (0.5 * tl.log(variance) + constant)
    return value, r, 0.5 * (q - r * r), q, -(r * q), (r * r - 0.5 * q) * q
