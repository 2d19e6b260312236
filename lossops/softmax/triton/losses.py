"""The losses over rows of class scores in Triton: the twin of ``csrc/losses/softmax.h``.

A label loss is a function of u = -log p_y and of a parameter. It returns its value and its
derivative with respect to u. A divergence is a function of p, log p, q and log q, where P is the
target and Q the input. It returns the summand and its derivatives with respect to q, log q, p and
log p. The compiler removes what a kernel does not use.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from lossops.core.triton.math import expm1, log1p


@triton.jit
def cross_entropy(u, p0):
    return u, 1.0


@triton.jit
def focal(u, gamma):
    # (1 - p)^gamma u with p = exp(-u): down-weights well-classified rows.
    miss = -expm1(-u)  # 1 - p, without cancellation
    damping = tl.where(gamma == 0, 1.0, tl.exp(gamma * tl.log(miss)))
    # p u / (1 - p) tends to 1 for u -> 0, and to 0 for u -> infinity.
    ratio = tl.where(u > 700, 0.0, tl.where(u > 0, u * tl.exp(-u) / miss, 1.0))
    return tl.where(u == float("inf"), u, damping * u), damping * (1 + gamma * ratio)


@triton.jit
def poly(u, epsilon):
    # Poly-1: u + epsilon (1 - p).
    return u - epsilon * expm1(-u), 1 + epsilon * tl.exp(-u)


@triton.jit
def times(x, y):
    """x y, but 0 where x is 0, even if y is infinite or NaN."""
    return tl.where(x == 0, 0.0, x * y)


@triton.jit
def kl(p, log_p, q, log_q):
    ratio = log_p - log_q
    value = times(p, ratio)
    by_p = tl.where(p == 0, log_p, ratio) + 1  # at p = 0 the limit, -inf, also for q = 0
    return value, -tl.where(p == 0, 0.0, p / q), -p, by_p, value + p


@triton.jit
def reverse_kl(p, log_p, q, log_q):
    value, by_p, by_log_p, by_q, by_log_q = kl(q, log_q, p, log_p)
    return value, by_q, by_log_q, by_p, by_log_p


@triton.jit
def jensen_shannon(p, log_p, q, log_q):
    # The mean of KL(P || M) and KL(Q || M), where M is the mean of P and Q. With s as below, the
    # larger of p and q is m (1 + s) and the smaller m (1 - s).
    distance, sum = tl.abs(p - q), p + q
    # If exactly one of p and q is 0, s is 1. s is also 1 if both are 0, because their logarithms
    # may still be finite.
    s = tl.where(sum == 0, 1.0, distance / sum)
    above = log1p(s)
    # If p and q are far apart, 1 - s has lost its digits. If they are close, the difference of the
    # logarithms would cancel.
    close = distance < 0.3333333333333333 * sum
    below = tl.where(close, log1p(tl.where(close, -s, 0.0)), above - tl.abs(log_p - log_q))
    p_m, q_m = tl.where(p < q, below, above), tl.where(q < p, below, above)
    p_term, q_term = 0.5 * times(p, p_m), 0.5 * times(q, q_m)
    return p_term + q_term, 0.5 * q_m, q_term, 0.5 * p_m, p_term


@triton.jit
def l1_distribution(p, log_p, q, log_q):
    # At q = p the derivative is 0.
    sign = tl.where(q > p, 1.0, tl.where(q < p, -1.0, 0.0)).to(q.dtype)
    return tl.abs(p - q), sign, sign * q, -sign, -sign * p


@triton.jit
def total_variation(p, log_p, q, log_q):
    value, by_q, by_log_q, by_p, by_log_p = l1_distribution(p, log_p, q, log_q)
    return 0.5 * value, 0.5 * by_q, 0.5 * by_log_q, 0.5 * by_p, 0.5 * by_log_p


@triton.jit
def soft_cross_entropy(p, log_p, q, log_q):
    value = -times(p, log_q)
    return value, -tl.where(p == 0, 0.0, p / q), -p, -log_q, value


class LabelLoss(NamedTuple):
    """A label loss, in the form that the kernel takes."""

    function: object
    num_params: int
    linear: bool = False  # extends to soft targets
    divides_by_weight: bool = False  # a mean divides by the sum of the labels' weights


LABEL_LOSSES = {
    "cross_entropy": LabelLoss(cross_entropy, 0, linear=True, divides_by_weight=True),
    "focal": LabelLoss(focal, 1),
    "poly": LabelLoss(poly, 1, divides_by_weight=True),
}


class Divergence(NamedTuple):
    """A divergence, in the form that the kernel takes."""

    function: object
    long: bool = False  # the formula needs about twice the registers


DIVERGENCES = {
    "kl": Divergence(kl),
    "reverse_kl": Divergence(reverse_kl),
    "jensen_shannon": Divergence(jensen_shannon, long=True),
    "l1_distribution": Divergence(l1_distribution),
    "total_variation": Divergence(total_variation),
    "soft_cross_entropy": Divergence(soft_cross_entropy),
}
