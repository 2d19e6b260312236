"""Every elementwise loss in plain torch. The tests compare against it, and it is the fallback
backend.

A loss is a function ``f(input, target, *params)`` of elementwise formulas, which autograd can
differentiate any number of times. Nothing is fused, and nothing calls torch's own losses.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lossops.core.formulas import infinitely_steep, reduce
from lossops.core.spread import is_spread

Formula = Callable[..., Tensor]


def mse(input: Tensor, target: Tensor) -> Tensor:
    return (input - target).square()


def l1(input: Tensor, target: Tensor) -> Tensor:
    return (input - target).abs()


# torch.where differentiates both branches and multiplies the derivative of the branch not taken by
# 0. That derivative must be finite, so the branch is evaluated at harmless values.


def smooth_l1(input: Tensor, target: Tensor, beta: float) -> Tensor:
    d = input - target
    z = d.abs()
    if beta == 0:
        return z
    outside = z >= beta
    small = torch.where(outside, 0.0, d)
    return torch.where(outside, z - 0.5 * beta, 0.5 * small * (small / beta))


def huber(input: Tensor, target: Tensor, delta: float) -> Tensor:
    d = input - target
    if delta == math.inf:  # torch.compile cannot trace math.isinf on a symbol
        return 0.5 * d * d
    z = d.abs()
    outside = z >= delta
    small = torch.where(outside, 0.0, d)
    return torch.where(outside, delta * (z - 0.5 * delta), 0.5 * small * small)


def log_cosh(input: Tensor, target: Tensor) -> Tensor:
    d = input - target
    near = d.abs() < 1
    small = torch.where(near, d, 0.0)
    large = torch.where(near, 1.0, d).abs()
    return torch.where(
        near,
        torch.log1p(2 * torch.sinh(0.5 * small).square()),
        large - math.log(2) + torch.log1p(torch.exp(-2 * large)),
    )


def quantile(input: Tensor, target: Tensor, above: float, below: float) -> Tensor:
    """The slopes are 1 - q above the target and q below it."""
    d = input - target
    return torch.where(d > 0, above * d, torch.where(d < 0, -below * d, 0 * d))


def charbonnier(input: Tensor, target: Tensor, epsilon: float) -> Tensor:
    """sqrt(d² + ε²), with the larger of |d| and ε factored out of the root."""
    d = input - target
    infinite, far = d.isinf(), d.abs() > epsilon
    outer = torch.where(far & ~infinite, d.abs(), 2 * epsilon)
    inner = torch.where(far, 0.0, d)
    finite = torch.where(
        far,
        outer * (1 + (epsilon / outer).square()).sqrt(),
        epsilon * (1 + (inner / epsilon).square()).sqrt(),
    )
    return torch.where(infinite, d.abs(), finite)


# The remaining losses are sums, returned as their terms. Where terms cancel, rounding errors are
# relative to the terms and not to their sum.


def kl_div(input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """y log(y) - y x, and 0 where the target is 0."""
    impossible = (target == 0) & (input == -math.inf)
    # The derivative of entr at 0 is the limit, but older versions of torch lack entr for DTensors.
    y_log_y = torch.xlogy(target, target) if is_spread(target) else -torch.special.entr(target)
    return y_log_y, -target * torch.where(impossible, 0.0, input)


def kl_div_log_target(input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """exp(y) (y - x), and 0 where the target's probability is 0, unless the input is infinite or
    NaN."""
    zero = target.exp() == 0
    x, y = torch.where(zero, 0.0, input), torch.where(zero, 0.0, target)
    p = torch.where(zero, 0.0, y.exp())
    # The loss for a probability that is not 0 but underflows to 0.
    limit = torch.where((target > -math.inf) & (input == -math.inf), math.inf, 0.0)
    limit = torch.where(zero, torch.where(input < math.inf, limit, input * 0), 0.0)
    fixed, d = p.detach(), y - x
    # The second term only contributes its derivative w.r.t. y, p d, which may be infinite.
    rest, impossible = p - fixed, d == math.inf
    steep = infinitely_steep(torch.where(impossible, rest, 0.0))
    rest, d_or_0 = torch.where(impossible, 0.0, rest), torch.where(impossible, 0.0, d)
    return fixed * d + limit, rest * d_or_0 + steep


def _smoothed(target: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """The smoothed target, and 1 minus the smoothed target."""
    keep, half = 1 - smoothing, 0.5 * smoothing
    return target * keep + half, (1 - target) * keep + half


def bce(input: Tensor, target: Tensor, smoothing: float) -> tuple[Tensor, ...]:
    """Both logarithms are clamped to at least -100. The derivative divides by at least 1e-12."""
    yes, no = _smoothed(target, smoothing)
    edge = (input * (1 - input) < 1e-12) & (input >= 0) & (input <= 1)
    x = torch.where(edge, 0.5, input)
    at_edge = input.detach()
    slope = torch.where(edge, (at_edge - yes.detach()) / 1e-12, 0.0)
    step = slope * torch.where(edge, input - at_edge, 0.0)  # 0, with ``slope`` as derivative
    low, high = at_edge.log(), torch.log1p(-at_edge)
    log_yes = torch.where(edge, torch.where(low < -100, -100.0, low), x.log())
    log_no = torch.where(edge, torch.where(high < -100, -100.0, high), torch.log1p(-x))
    return -yes * log_yes + step, -no * log_no


def _cross_entropy(input: Tensor, yes: Tensor, no: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross entropy of logits as two softplus terms. A correct infinite logit has loss 0."""
    negative = input < 0
    tail = torch.log1p(torch.where(negative, input, -input).exp())
    against = tail + torch.where(negative & ((yes != 0) | (input > -math.inf)), -input, 0.0)
    in_favour = tail + torch.where(negative | ((no == 0) & (input == math.inf)), 0.0, input)
    return yes * against, no * in_favour


def bce_with_logits(
    input: Tensor, target: Tensor, pos_weight: float, smoothing: float
) -> tuple[Tensor, ...]:
    yes, no = _smoothed(target, smoothing)
    return _cross_entropy(input, pos_weight * yes, no)


def hinge_embedding(input: Tensor, target: Tensor, margin: float) -> tuple[Tensor, ...]:
    """The loss of a distance. The derivative w.r.t. the target is 0. An infinite or NaN target
    makes the loss NaN."""
    left = margin - input
    left = torch.where(left < 0, 0, left)
    return torch.where(target == 1, 0, left), torch.where(target == -1, 0, input), 0 * target


def margin_ranking(input: Tensor, target: Tensor, margin: float) -> tuple[Tensor, ...]:
    """The loss of a difference of scores. At the margin, where the loss has a kink, the derivative
    is that of the linear branch."""
    left = margin - input * target
    return (torch.where(left < 0, 0, left),)


def soft_margin(input: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """log(1 + exp(-x y)). Where x y > 1000, the loss and its derivatives are 0."""
    z = -input * target
    sure = z < -1000
    x, y = torch.where(sure, 0.0, input), torch.where(sure, 0.0, target)
    z = -x * y
    tail = torch.log1p(torch.where(z > 0, -z, z).exp())
    return torch.where(sure, 0.0, tail), torch.where(z > 0, z, 0.0)


def stirling(count: Tensor) -> tuple[Tensor, ...]:
    """Stirling's approximation of log(y!) where y > 1, else 0: y log y - y + log(2 π y) / 2."""
    large = count > 1
    safe = torch.where(large, count, 1.0)
    terms = (safe * safe.log(), -safe, 0.5 * (2 * math.pi * safe).log())
    return tuple(torch.where(large, term, 0.0) for term in terms)


def poisson_log(input: Tensor, target: Tensor, full: float) -> tuple[Tensor, ...]:
    """exp(x) - y x, where y x is 0 if y is 0. With a ``full`` of 1, log(y!) is added."""
    expected = input.exp()
    impossible = ((target == 0) & input.isinf()) | (expected == math.inf)
    terms = expected, -target * torch.where(impossible, 0.0, input)
    return (*terms, *stirling(target)) if full else terms


def poisson(input: Tensor, target: Tensor, epsilon: float, full: float) -> tuple[Tensor, ...]:
    """x - y log(x + ε), where the second term is 0 if y is 0. With a ``full`` of 1, log(y!) is
    added."""
    sum, fixed = input + epsilon, input.detach()
    added = sum.detach() - fixed
    lost = (fixed - (sum.detach() - added)) + (epsilon - added)  # the rounding error of ``sum``
    impossible = (target == 0) & ((sum == 0) | (sum == math.inf))
    log = torch.where(impossible, 1.0, sum).log()
    log = torch.where(lost.abs() > 0, log + lost / sum.detach(), log)
    # A term that only contributes its derivative w.r.t. y.
    rest = torch.where(impossible, target - target.detach(), 0.0)
    terms = input, -target * log, infinitely_steep(torch.where(sum > 0, -rest, rest))
    return (*terms, *stirling(target)) if full else terms


def gaussian(input: Tensor, target: Tensor, epsilon: float, constant: float) -> tuple[Tensor, ...]:
    """½ (log v + x² / v) + constant, for a deviation x and a variance v."""
    fixed = target.detach()
    bounded = torch.where(fixed < 0, torch.nan, torch.where(fixed < epsilon, epsilon, fixed))
    # The clamped variance, with the derivative of the unclamped one.
    variance = torch.where(fixed >= epsilon, target, bounded + (target - fixed))
    return 0.5 * variance.log(), 0.5 * input * (input / variance) + constant


def sigmoid_focal(input: Tensor, target: Tensor, alpha: float, gamma: float) -> tuple[Tensor, ...]:
    """The sigmoid focal loss. A negative alpha disables the class weights."""
    far = input.abs() > 1000  # there e is 0, and so is its product with any factor in a derivative
    near = torch.where(far, 0.0, input)
    e = torch.where(far, 0.0, torch.where(near < 0, near, -near).exp())
    larger, smaller = 1 / (1 + e), e / (1 + e)
    p, q = (torch.where(input < 0, *pair) for pair in ((smaller, larger), (larger, smaller)))
    wrong = target * q + (1 - target) * p
    sure = wrong == 0
    factor = torch.where(sure, float(gamma == 0), torch.where(sure, 1.0, wrong) ** gamma)
    if alpha >= 0:
        factor = factor * (alpha * target + (1 - alpha) * (1 - target))
    return tuple(factor * term for term in _cross_entropy(input, target, 1 - target))


TERMS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "kl_div": kl_div,
    "kl_div_log_target": kl_div_log_target,
    "bce": bce,
    "bce_with_logits": bce_with_logits,
    "sigmoid_focal": sigmoid_focal,
    "hinge_embedding": hinge_embedding,
    "margin_ranking": margin_ranking,
    "soft_margin": soft_margin,
    "poisson_log": poisson_log,
    "poisson": poisson,
    "gaussian": gaussian,
}


def _sum_of(terms: Callable[..., tuple[Tensor, ...]]) -> Formula:
    def formula(*args) -> Tensor:
        return functools.reduce(operator.add, terms(*args))

    return formula


FORMULAS: dict[str, Formula] = {
    "mse": mse,
    "l1": l1,
    "smooth_l1": smooth_l1,
    "huber": huber,
    "log_cosh": log_cosh,
    "quantile": quantile,
    "charbonnier": charbonnier,
    **{name: _sum_of(terms) for name, terms in TERMS.items()},
}


def elementwise(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    normalizer: Tensor | None,
    loss: str,
    params: Sequence[float],
    reduction: str,
    keep_dims: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """Computes the loss of ``elementwise_forward``, for tensors of one shape."""
    compute = torch.float64 if out_dtype == torch.float64 else torch.float32
    value = FORMULAS[loss](input.to(compute), target.to(compute), *params)
    if weight is not None:
        value = value * weight.to(compute)
    if normalizer is not None:
        normalizer = normalizer.to(compute)
    return reduce(value, reduction, keep_dims, normalizer).to(out_dtype)
