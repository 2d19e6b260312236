"""The elementwise losses of a signed label, in Triton: the twins of ``csrc/losses/margins.h``. See
the comments there."""

import triton
import triton.language as tl

from lossops.core.triton.math import divide, log1p


@triton.jit
def soft_margin(x, y, p0, p1):
    z = -(x * y)
    e = tl.exp(-tl.abs(z))
    tail = log1p(e)
    wrong = z > 0
    larger = divide(tl.full([], 1.0, x.dtype), 1 + e)
    sigmoid = tl.where(wrong, larger, e * larger)
    bend = larger * (larger * e)
    along_x = tl.where(bend == 0, 0.0, x * bend)
    dy = tl.where(sigmoid == 0, 0.0, -(x * sigmoid))
    dyy = tl.where(bend == 0, 0.0, x * along_x)
    value = tl.where(wrong, z + tail, tail)
    return value, -(y * sigmoid), dy, y * (y * bend), y * along_x - sigmoid, dyy


@triton.jit
def hinge_embedding(x, y, margin, p1):
    left = margin - x
    together = y == 1
    apart = y == -1
    value = tl.where(together, 0.0, tl.where(left < 0, 0.0, left)) + tl.where(apart, 0.0, x)
    value += y * 0
    slope = tl.where(together | (left < 0) | (left != left), 0.0, -1.0)
    return value, slope + tl.where(apart, 0.0, 1.0), 0.0, 0.0, 0.0, 0.0


@triton.jit
def margin_ranking(x, y, margin, p1):
    left = margin - x * y
    satisfied = left < 0
    value = tl.where(satisfied, 0.0, left)
    dx = tl.where(satisfied, 0.0, -y)
    return value, dx, tl.where(satisfied, 0.0, -x), 0.0, tl.where(satisfied, 0.0, -1.0), 0.0
