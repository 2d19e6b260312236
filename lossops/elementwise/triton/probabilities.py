"""The elementwise losses of probabilities, log-probabilities and logits, in Triton.

These are the twins of those in ``csrc/losses/elementwise.h``; see the comments there. They are
functions of x, y and two parameters that return the value and its derivatives with respect to x, y,
xx, xy and yy.
"""

import triton
import triton.language as tl

from lossops.core.triton.math import divide, log1p, power


@triton.jit
def kl_div(x, y, p0, p1):
    # y log(y) - y x has the limit 0 at y = 0, also for x = -inf. x * 0 propagates NaN.
    log_y = tl.log(y)
    d = log_y - x
    value = tl.where(y == 0, tl.where(x < 0, 0.0, x * 0), y * d)
    dy = tl.where((y == 0) & (x < 0), log_y, d) + 1
    return value, -y, dy, 0.0, -1.0, divide(tl.full([], 1.0, y.dtype), y)


@triton.jit
def kl_div_log_target(x, y, p0, p1):
    infinity = float("inf")
    p = tl.exp(y)
    d = y - x
    # At p = 0, p d is 0, except for x = -inf with a finite y whose exp underflows. Adding p
    # propagates a NaN of y, x * 0 a NaN of x.
    limit = tl.where((y > -infinity) & (d == infinity), d, 0.0)
    value = tl.where(p > 0, p * d, tl.where(x < infinity, limit, x * 0) + p)
    slope = value + p
    return value, -p, slope, 0.0, -p, slope + p


@triton.jit
def at_least(x, bound):
    return tl.where(x < bound, bound, x)  # propagates NaN


@triton.jit
def bce(x, y, smoothing, p1):
    # Values outside [0, 1] give NaN. x = 1 is handled separately, because log1p(-x) divides by 1 -
    # x.
    y = tl.where((y >= 0) & (y <= 1), y, float("nan"))
    keep = 1 - smoothing
    positive = y * keep + 0.5 * smoothing
    negative = (1 - y) * keep + 0.5 * smoothing
    yes = at_least(tl.log(x), -100.0)
    no = tl.where(x == 1, -100.0, at_least(log1p(-x), -100.0))
    product = (1 - x) * x
    bounded = tl.where(product < 0, float("nan"), at_least(product, 1e-12))
    near_one = (x > 0.5) & (positive > 0.5)  # then x - positive is taken from distances to 1
    dx = divide(tl.where(near_one, negative - (1 - x), x - positive), bounded)
    q = divide(tl.full([], 1.0, x.dtype), bounded)
    value = -(positive * yes + negative * no)
    return value, dx, keep * (no - yes), dx * dx + (positive * q) * (negative * q), -keep * q, 0.0


@triton.jit
def bce_with_logits(x, y, weight, smoothing):
    # weight y softplus(-x) + (1 - y) softplus(x): see csrc/losses/elementwise.h.
    keep = 1 - smoothing
    positive = weight * (y * keep + 0.5 * smoothing)
    negative = (1 - y) * keep + 0.5 * smoothing
    below = x < 0
    a = tl.abs(x)
    e = tl.exp(-a)
    tail = log1p(e)
    wrong = tl.where(below, positive, negative)
    right = tl.where(below, negative, positive)
    value = (wrong + right) * tail + tl.where(wrong == 0, 0.0, wrong * a)
    larger = divide(tl.full([], 1.0, x.dtype), 1 + e)
    slope = (wrong - right * e) * larger
    dx = tl.where(below, -slope, slope)
    dy = keep * ((weight - 1) * tail + a * tl.where(below, weight, -1.0))
    dxx = (wrong + right) * (larger * (larger * e))
    dxy = -keep * (tl.where(below, weight + e, weight * e + 1) * larger)
    return value, dx, dy, dxx, dxy, 0.0


@triton.jit
def sigmoid_focal(x, y, alpha, gamma):
    # alpha_t u^gamma c, u = m D, c = log1p(e) + a wrong: see csrc/losses/elementwise.h.
    below = x < 0
    a = tl.abs(x)
    e = tl.exp(-a)
    m = divide(tl.full([], 1.0, x.dtype), 1 + e)
    wrong = tl.where(below, y, 1 - y)
    right = tl.where(below, 1 - y, y)
    hard = wrong == 0
    finite = e > 0
    d = wrong + right * e
    cross = log1p(e) + tl.where(hard, 0.0, wrong * a)
    root = power(divide(d, 1 + e), 0.5 * gamma)
    balance = tl.where(alpha < 0, 1.0, alpha * y + (1 - alpha) * (1 - y))
    balance_y = tl.where(alpha < 0, 0.0, 2 * alpha - 1)
    sign = tl.where(below, -1.0, 1.0)
    unbalanced = root * (root * cross)
    value = balance * unbalanced

    ratio = tl.where(hard, 1.0, divide(e, d))
    r = (wrong - right) * m * ratio
    s = m * (wrong - right * e)
    rc = tl.where(finite, r * cross, 0.0)
    by_a = root * (root * (gamma * rc + s))
    quotient = tl.where(finite, divide(cross, d), tl.where(hard, 1.0, a))
    by_wrong = root * (gamma * (root * ((1 - e) * quotient)) + root * a)
    by_wrong = tl.where(root == 0, 0.0, by_wrong)
    by_y = -(sign * by_wrong)
    dx = balance * (sign * by_a)
    dy = balance_y * unbalanced + balance * by_y

    modulation = root * root
    slope = gamma * ((1 - e) * quotient) + a
    r_a = rc * m * tl.where(hard, e, divide(right * e * e - wrong, d))
    curved = gamma * (r * (gamma * rc + 2 * s) + r_a) + m * m * e
    s_d = tl.where(hard, -m, divide(s, d))
    mixed = gamma * (tl.where(finite, r * slope + ratio * quotient, 0.0) + (1 - e) * s_d)
    v = tl.where(d > 0, divide(1 - e, d), 0.0)
    bent = gamma * v * ((gamma - 1) * ((1 - e) * quotient) + 2 * a)
    by_wrong_twice = tl.where(modulation == 0, 0.0, modulation * bent)
    dxx = balance * (modulation * curved)
    dxy = balance_y * (sign * by_a) - balance * (modulation * (mixed + 1))
    dyy = 2 * balance_y * by_y + balance * by_wrong_twice
    return value, dx, dy, dxx, dxy, dyy
