"""Every loss in plain torch: the oracle of the tests and the fallback of last resort.

Here a loss is a function ``f(input, target, *params)`` of elementwise formulas, differentiable any
number of times by torch itself. Nothing here is fused, and nothing calls torch's own losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Formula = Callable[..., Tensor]


def mse(input: Tensor, target: Tensor) -> Tensor:
    return (input - target).square()


def l1(input: Tensor, target: Tensor) -> Tensor:
    return (input - target).abs()


# In torch.where both branches are differentiated, and the derivative of the one not taken is
# multiplied by 0: it must be finite, so that branch is given harmless numbers.


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
    if delta == math.inf:  # not isinf, which torch.compile cannot trace on a symbol
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


FORMULAS: dict[str, Formula] = {
    "mse": mse,
    "l1": l1,
    "smooth_l1": smooth_l1,
    "huber": huber,
    "log_cosh": log_cosh,
    "quantile": quantile,
}


def reduce(
    loss: Tensor,  # [kept dimensions …, reduced dimensions …]
    reduction: str,
    keep_dims: int = 0,
    normalizer: Tensor | None = None,  # [kept dimensions …] or 0-d
) -> Tensor:
    """Reduces over everything but the first ``keep_dims`` dimensions."""
    if reduction == "none":
        return loss
    if loss.dim() == keep_dims:
        total, count = loss, 1
    else:
        dims = tuple(range(keep_dims, loss.dim()))
        total, count = loss.sum(dims), math.prod(loss.shape[keep_dims:])
    if normalizer is not None:
        return total / normalizer
    if reduction == "sum":
        return total
    return total / count if count else total * math.nan


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
    """What ``elementwise_forward`` computes, from tensors of one shape."""
    compute = torch.float64 if out_dtype == torch.float64 else torch.float32
    value = FORMULAS[loss](input.to(compute), target.to(compute), *params)
    if weight is not None:
        value = value * weight.to(compute)
    if normalizer is not None:
        normalizer = normalizer.to(compute)
    return reduce(value, reduction, keep_dims, normalizer).to(out_dtype)
