"""The losses over rows of vectors in Triton: the twins of ``csrc/losses/vectors.h``; see the
comments there. The loss over lists of labels is in :mod:`lossops.vectors.triton.label_lists`.

Each loss consists of three functions. ``terms`` gives the summands of its sums, elementwise.
``finish`` maps the sums of a row to its loss and to the factors of its gradients, in float64.
``gradient`` computes the gradients from these factors. A loss with fewer than three vectors, sums
or factors ignores the rest.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


@triton.jit
def no_constant(own, p0, p1, p2):
    return own * 0


@triton.jit
def cosine_embedding_terms(x, y, z, constant):
    return x * y, x * x, y * y


@triton.jit
def cosine_embedding_finish(s0, s1, s2, label, length, margin, p1, p2):
    a, b = s1 + 1e-12, s2 + 1e-12
    inverse = 1 / (tl.sqrt(a) * tl.sqrt(b))
    cosine = s0 * inverse
    excess = cosine - margin
    together, apart = label == 1, label == -1
    slope = tl.where(together, -1.0, tl.where(apart & (excess >= 0), 1.0, 0.0)).to(tl.float64)
    hinge = tl.where(excess < 0, 0.0, excess)
    value = tl.where(together, 1 - cosine, tl.where(apart, hinge, 0.0))
    return value, slope * inverse, -slope * cosine / a, -slope * cosine / b


@triton.jit
def cosine_embedding_gradient(x, y, z, constant, f0, f1, f2):
    return f0 * y + f1 * x, f0 * x + f2 * y, z


@triton.jit
def triplet_margin_constant(own, margin, swap, epsilon):
    return own * 0 + epsilon.to(own.dtype)


@triton.jit
def triplet_margin_terms(x, y, z, epsilon):
    a, b, c = (x - y) + epsilon, (x - z) + epsilon, (y - z) + epsilon
    return a * a, b * b, c * c


@triton.jit
def triplet_margin_l1_terms(x, y, z, epsilon):
    return tl.abs((x - y) + epsilon), tl.abs((x - z) + epsilon), tl.abs((y - z) + epsilon)


@triton.jit
def _triplet(near, far, other, slope_near, slope_far, slope_other, margin, swap):
    swaps = tl.full(far.shape, 0.0, tl.float64) + swap
    other = tl.where(swaps != 0, other, float("inf"))
    same, swapped = other == far, other < far
    left = margin + near - tl.where(swapped | (other != other), other, far)
    counts = tl.where(left >= 0, 1.0, 0.0).to(tl.float64)
    value = tl.where(left < 0, 0.0, left)
    half = tl.where(same, 0.5, 1.0)
    by_far = tl.where(swapped, 0.0, -counts * slope_far * half)
    by_other = tl.where(swapped | same, -counts * slope_other * half, 0.0)
    return value, counts * slope_near, by_far, by_other


@triton.jit
def _inverse(norm):
    return tl.where(norm == 0, 0.0, 1 / norm)


@triton.jit
def triplet_margin_finish(s0, s1, s2, label, length, margin, swap, epsilon):
    near, far, other = tl.sqrt(s0), tl.sqrt(s1), tl.sqrt(s2)
    return _triplet(near, far, other, _inverse(near), _inverse(far), _inverse(other), margin, swap)


@triton.jit
def triplet_margin_l1_finish(s0, s1, s2, label, length, margin, swap, epsilon):
    # A distance of 0 needs no special case: all signs are 0 then, whatever the slope.
    one = tl.full(s0.shape, 1.0, tl.float64)
    return _triplet(s0, s1, s2, one, one, one, margin, swap)


@triton.jit
def _times(factor, d):
    return tl.where(factor == 0, 0.0, factor * d)


@triton.jit
def triplet_margin_gradient(x, y, z, epsilon, f0, f1, f2):
    a, b, c = (x - y) + epsilon, (x - z) + epsilon, (y - z) + epsilon
    a, b, c = _times(f0, a), _times(f1, b), _times(f2, c)
    return a + b, c - a, -(b + c)


@triton.jit
def _sign(d):
    return tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, d))  # NaN for NaN


@triton.jit
def triplet_margin_l1_gradient(x, y, z, epsilon, f0, f1, f2):
    a, b, c = (x - y) + epsilon, (x - z) + epsilon, (y - z) + epsilon
    a, b, c = _times(f0, _sign(a)), _times(f1, _sign(b)), _times(f2, _sign(c))
    return a + b, c - a, -(b + c)


@triton.jit
def multi_margin_constant(own, margin, p1, p2):
    return margin.to(own.dtype) - own


@triton.jit
def multi_margin_terms(x, y, z, lead):
    hinge = lead + x
    positive = tl.where(hinge > 0, 1.0, 0.0).to(x.dtype)
    return tl.where(hinge < 0, 0.0, hinge), positive, positive


@triton.jit
def multi_margin_squared_terms(x, y, z, lead):
    hinge = lead + x
    hinge = tl.where(hinge < 0, 0.0, hinge)
    return hinge * hinge, hinge, hinge


@triton.jit
def multi_margin_finish(s0, s1, s2, label, length, margin, p1, p2):
    share = tl.full(s0.shape, 1.0, tl.float64) / length
    return s0 * share, share, share, -share * s1


@triton.jit
def multi_margin_squared_finish(s0, s1, s2, label, length, margin, p1, p2):
    share = tl.full(s0.shape, 1.0, tl.float64) / length
    return s0 * share, 2 * share, share, -2 * share * s1


@triton.jit
def multi_margin_gradient(x, y, z, lead, f0, f1, f2):
    return tl.where(lead + x > 0, f0, 0.0), y, z


@triton.jit
def multi_margin_squared_gradient(x, y, z, lead, f0, f1, f2):
    hinge = lead + x
    return tl.where(hinge > 0, f0 * hinge, 0.0), y, z


@triton.jit
def _sigmoid(x):
    # sigmoid(x) and 1 - sigmoid(x).
    e = tl.exp(-tl.abs(x))
    larger = 1 / (1 + e)
    smaller = e * larger
    return tl.where(x > 0, larger, smaller), tl.where(x > 0, smaller, larger)


@triton.jit
def _counts(p, q, y):
    return p * y, p * (1 - y), q * y


@triton.jit
def tversky_terms(x, y, z, constant):
    return _counts(x, 1 - x, y)


@triton.jit
def tversky_of_logits_terms(x, y, z, constant):
    p, q = _sigmoid(x)
    return _counts(p, q, y)


@triton.jit
def tversky_finish(s0, s1, s2, label, length, alpha, beta, smooth):
    wrong = alpha * s1 + beta * s2
    total = s0 + wrong + smooth
    loss, right = wrong / total, (s0 + smooth) / total
    return loss, alpha * right / total, beta * right / total, loss / total


@triton.jit
def tversky_gradient(x, y, z, constant, f0, f1, f2):
    return f0 * (1 - y) - (f1 + f2) * y, f1 * (1 - x) - (f0 + f2) * x, z


@triton.jit
def tversky_of_logits_gradient(x, y, z, constant, f0, f1, f2):
    p, q = _sigmoid(x)
    return (f0 * (1 - y) - (f1 + f2) * y) * (p * q), f1 * q - (f0 + f2) * p, z


class Loss(NamedTuple):
    """A loss, in the form that the kernel takes."""

    terms: Any
    finish: Any
    gradient: Any
    constant: Any = no_constant


LOSSES = {
    "cosine_embedding": Loss(
        cosine_embedding_terms, cosine_embedding_finish, cosine_embedding_gradient
    ),
    "triplet_margin": Loss(
        triplet_margin_terms, triplet_margin_finish, triplet_margin_gradient,
        triplet_margin_constant,
    ),
    "triplet_margin_l1": Loss(
        triplet_margin_l1_terms, triplet_margin_l1_finish, triplet_margin_l1_gradient,
        triplet_margin_constant,
    ),
    "multi_margin": Loss(
        multi_margin_terms, multi_margin_finish, multi_margin_gradient, multi_margin_constant
    ),
    "multi_margin_squared": Loss(
        multi_margin_squared_terms, multi_margin_squared_finish, multi_margin_squared_gradient,
        multi_margin_constant,
    ),
    "tversky_of_logits": Loss(tversky_of_logits_terms, tversky_finish, tversky_of_logits_gradient),
    "tversky": Loss(tversky_terms, tversky_finish, tversky_gradient),
}  # fmt: skip
