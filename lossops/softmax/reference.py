"""The losses over rows of class scores in plain torch.

The tests compare against these formulas, and they are the fallback where no kernels can run, like
:mod:`lossops.elementwise.reference` for the elementwise losses. ``lossops/softmax/ops.py`` defines
what is computed. torch can differentiate everything here any number of times, with respect to
input, target and class weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lossops.core.formulas import infinitely_steep, reduce
from lossops.core.library import accumulator
from lossops.core.spread import beside, is_spread
from lossops.core.transforms import is_functionalized


class Rows(NamedTuple):
    """The results of a call. All but the loss have one number per row."""

    loss: Tensor
    lse: Tensor
    entropy: Tensor
    accuracy: Tensor


# torch.where differentiates both branches and multiplies the derivative of the unselected one by 0.
# That derivative must be finite, or the product is NaN. So the unselected branch gets harmless
# numbers.


def times(x: Tensor, y: Tensor) -> Tensor:
    """x y, but 0 where x is 0, even if y is not finite. The derivative by such an x is y."""
    limit = (x == 0) & ~y.isfinite()
    finite = torch.where(limit, 0.0, x) * torch.where(limit, 0.0, y)
    return finite + infinitely_steep(torch.where(limit, x, 0.0) * y.detach().sign())


def exp(x: Tensor) -> Tensor:
    """exp(x), whose derivative at -inf is 0 even if the upstream gradient is infinite."""
    return torch.where(x == -math.inf, 0.0, x.exp())


# ---- Label losses: functions of u = -log p_y.


def cross_entropy(u: Tensor) -> Tensor:
    return u


def focal(u: Tensor, gamma: float) -> Tensor:
    """(1 - p)^γ u, where p = exp(-u)."""
    if gamma == 0:
        return u
    certain, hopeless = u <= 0, u == math.inf
    x = torch.where(certain | hopeless, 1.0, u)
    value = (-torch.expm1(-x)) ** gamma * x
    return torch.where(certain, 0.0, torch.where(hopeless, u, value))


def poly(u: Tensor, epsilon: float) -> Tensor:
    """u + ε(1 - p), p being exp(-u)."""
    return u - epsilon * torch.expm1(-u)


# ---- Divergences: summands, functions of p, log p, q and log q. P is the target, Q the input.


def _nothing(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p == -math.inf) & (log_q == -math.inf)


def kl(p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor) -> Tensor:
    """At p = 0 the derivative by p is its limit, -infinity, even if q is 0 as well."""
    return times(p, torch.where(_nothing(log_p, log_q), -math.inf, log_p - log_q))


def reverse_kl(p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor) -> Tensor:
    return kl(q, log_q, p, log_p)


def jensen_shannon(p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor) -> Tensor:
    """With the mean m and d = log p - log q, log(p / m) is log(1 + tanh(d / 2)). This also holds
    where p and q underflow. Where both are 0, each is taken in the limit with the other at 0, so
    that m is half of it."""
    nothing = _nothing(log_p, log_q)

    def log_over_mean(difference: Tensor) -> Tensor:
        difference = torch.where(nothing, math.inf, difference)
        close = difference.abs() < 1
        small = torch.where(close, difference, 0.0)
        large = torch.where(close, math.inf, difference)
        # log(2 sigmoid(d)), written out because DTensor has no derivative of logsigmoid
        far = math.log(2) + large.clamp(max=0) - torch.log1p(torch.exp(-large.abs()))
        return torch.where(close, torch.log1p(torch.tanh(0.5 * small)), far)

    p_term, q_term = times(p, log_over_mean(log_p - log_q)), times(q, log_over_mean(log_q - log_p))
    return 0.5 * (p_term + q_term)


def l1_distribution(p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor) -> Tensor:
    return (p - q).abs()


def total_variation(p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor) -> Tensor:
    return 0.5 * (p - q).abs()


def soft_cross_entropy(p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor) -> Tensor:
    return -times(p, log_q)


LABEL_LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "focal": focal,
    "poly": poly,
}
DIVIDES_BY_WEIGHT = frozenset({"cross_entropy", "poly"})
DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "kl": kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "l1_distribution": l1_distribution,
    "total_variation": total_variation,
    "soft_cross_entropy": soft_cross_entropy,
}


class _Limit(torch.autograd.Function):
    """Replaces rows with infinite logits by their limit. Logits of infinity become equal, and all
    others of their row impossible. Rows of -infinity alone become equal, too. The gradient passes
    through unchanged."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, dim: int) -> Tensor:
        infinite = logits == math.inf
        others = torch.where(logits.isnan(), logits, -math.inf)
        limit = torch.where(infinite, 0.0, others)
        limit = torch.where(infinite.any(dim, keepdim=True), limit, logits)
        return torch.where((logits == -math.inf).all(dim, keepdim=True), 0.0, limit)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None

    @staticmethod
    def jvp(ctx, tangent: Tensor, _dim) -> Tensor:
        return tangent.view_as(tangent)


def _distribution(
    numbers: Tensor, dim: int, form: str, temperature: float, softcap: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns log p, p and, for logits, the capped logits divided by the temperature, and their
    log-sum-exp."""
    if form == "probs":
        positive = numbers > 0
        log_p = torch.where(positive, torch.where(positive, numbers, 1.0).log(), -math.inf)
        return log_p, numbers, numbers, numbers.select(dim, 0)
    if form == "log_probs":
        return numbers, exp(numbers), numbers, numbers.select(dim, 0)
    if softcap:
        numbers = softcap * torch.tanh(numbers / softcap)
    if temperature != 1:
        numbers = numbers / temperature
    # Compiled transforms and functionalization cannot trace _Limit. There, infinite logits give
    # NaN, as in torch.
    untraceable = torch.compiler.is_compiling() or is_functionalized()
    limit = numbers if untraceable else _Limit.apply(numbers, dim)
    log_p = _log_softmax(limit, dim)
    largest = numbers.detach().amax(dim)
    lse = limit.logsumexp(dim) + torch.where(largest.isinf(), largest, 0.0)
    return log_p, exp(log_p), numbers, lse


def _log_softmax(logits: Tensor, dim: int) -> Tensor:
    if not is_spread(logits):
        return logits.log_softmax(dim)
    # Written out, because torch's loss_parallel() changes the derivative of log_softmax.
    logits = logits - logits.detach().amax(dim, keepdim=True)
    return logits - logits.logsumexp(dim, keepdim=True)


def _one_hot(labels: Tensor, counts: Tensor, like: Tensor, dim: int) -> Tensor:
    safe = torch.where(counts, labels, 0).long()
    classes = torch.arange(like.shape[dim], device=like.device)
    shape = [1] * like.dim()
    shape[dim] = -1
    return (safe.unsqueeze(dim) == beside(classes.view(shape), labels)).to(like.dtype)


def _pick(numbers: Tensor, labels: Tensor, counts: Tensor, dim: int) -> Tensor:
    safe = torch.where(counts, labels, 0).long()
    return numbers.gather(dim, safe.unsqueeze(dim)).squeeze(dim)


def softmax(
    input: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    normalizer: Tensor | None,
    loss: str,
    dim: int,
    form: str,
    target_form: str,
    params: Sequence[float],
    ignore_index: int,
    one_if_none: bool,
    reduction: str,
    keep_dims: int,
    out_dtype: torch.dtype,
) -> Rows:
    """Computes the results of ``softmax_forward``, except for the gradients."""
    compute = torch.float64 if torch.float64 in (out_dtype, input.dtype) else torch.float32
    temperature, softcap, smoothing, z_loss, *own = params
    if input.shape[dim] == 0:
        return _without_classes(
            input, target, normalizer, loss, dim, target_form, z_loss, ignore_index, one_if_none,
            reduction, keep_dims, out_dtype,
        )  # fmt: skip
    logits = input.to(compute)
    log_q, q, scores, lse = _distribution(logits, dim, form, temperature, softcap)
    classes = input.shape[dim]
    weight = None
    if class_weight is not None:
        shape = [1] * input.dim()
        shape[dim] = classes
        weight = class_weight.to(compute)
        wide_weight = weight.view(shape)
    counts = outside = None
    if target_form == "labels":
        target = target.long()  # as uint8, an ignore_index of -100 would be 156
        counts = target != ignore_index
        outside = counts & ((target < 0) | (target >= classes))
        counts = counts & ~outside
    else:
        target = target.to(compute)

    # Ignored rows are computed from harmless numbers, so that their derivatives are 0 and not NaN.
    def counted(values: Tensor) -> Tensor:
        return torch.where(counts, values, 0.0) if counts is not None else values

    if loss in DIVERGENCES:
        if counts is not None:
            p = _one_hot(target, counts, q, dim)
            log_p = torch.where((p == 0) & counts.unsqueeze(dim), -math.inf, 0.0)
        else:
            log_p, p, _, _ = _distribution(target, dim, target_form, temperature)
        value = DIVERGENCES[loss](p, log_p, q, log_q).sum(dim)
    else:
        formula = LABEL_LOSSES[loss]
        if counts is not None:
            value = formula(-_pick(log_q, target, counts, dim), *own[: _own_params(loss)])
            if weight is not None:
                value = times(weight[torch.where(counts, target, 0).long()], value)
        else:
            soft = target if weight is None else target * wide_weight
            value = -times(soft, log_q).sum(dim)
        if smoothing:
            every = log_q if weight is None else times(wide_weight.expand_as(log_q), log_q)
            value = (1 - smoothing) * value - smoothing / classes * every.sum(dim)
        if z_loss:
            value = value + z_loss * lse.square()
    value = counted(value)
    if outside is not None:
        value = torch.where(outside, math.nan, value)

    if reduction == "mean" and normalizer is None and counts is not None:
        units = counts.to(compute)
        if weight is not None and loss in DIVIDES_BY_WEIGHT:
            units = torch.where(counts, weight[torch.where(counts, target, 0).long()], 0.0)
        normalizer = reduce(units, "sum", keep_dims)
        if one_if_none:
            normalizer = torch.where(normalizer == 0, 1.0, normalizer)
    elif reduction == "mean" and normalizer is None and one_if_none and value.numel() == 0:
        normalizer = torch.ones_like(reduce(value, "sum", keep_dims))
    if normalizer is not None:
        normalizer = normalizer.to(compute)
    reduced = reduce(value, reduction, keep_dims, normalizer).to(out_dtype)

    extra = accumulator(input.dtype)
    accuracy = torch.zeros_like(lse)
    if counts is not None:
        best = scores.detach().amax(dim)
        accuracy = counted((_pick(scores.detach(), target, counts, dim) >= best).to(compute))
    entropy = -times(q, log_q).sum(dim)
    return Rows(reduced, lse.to(extra), entropy.to(extra), accuracy.to(extra))


def _without_classes(
    input, target, normalizer, loss, dim, target_form, z_loss, ignore_index, one_if_none, reduction,
    keep_dims, out_dtype,
) -> Rows:  # fmt: skip
    """Handles rows without classes. Their sums are 0, and every label is out of range. A mean of
    the cross entropy of distributions is over nothing, because it is over the classes, too."""
    zero = input.sum(dim, dtype=accumulator(input.dtype))
    value, lse = zero, zero - math.inf
    if z_loss and loss in LABEL_LOSSES:
        value = value + z_loss * lse.square()
    if target_form != "labels":
        value = value + target.sum(dim)
    else:
        value = zero + torch.where(target.long() == ignore_index, 0.0, math.nan)
    if reduction == "mean" and normalizer is None:
        of_none = loss in LABEL_LOSSES or target_form == "labels" or value.numel() == 0
        normalizer = value.new_full((), float(one_if_none)) if of_none else None
    reduced = reduce(value, reduction, keep_dims, normalizer).to(out_dtype)
    return Rows(reduced, lse, zero, zero)


def _own_params(loss: str) -> int:
    return 0 if loss == "cross_entropy" else 1
