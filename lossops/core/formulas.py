"""What formulas in plain torch share: reductions, and their derivatives by torch's autograd."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def reduce(
    loss: Tensor,  # [kept dimensions …, reduced dimensions …]
    reduction: str,
    keep_dims: int = 0,
    normalizer: Tensor | None = None,  # [kept dimensions …] or 0-d
) -> Tensor:
    """Reduces over everything but the first ``keep_dims`` dimensions."""
    if reduction == "none":
        return _with_own_tangent(loss)
    if loss.dim() == keep_dims:
        total, count = loss, 1
    else:
        dims = tuple(range(keep_dims, loss.dim()))
        total, count = loss.sum(dims), math.prod(loss.shape[keep_dims:])
    if normalizer is not None:
        total = total / normalizer
    elif reduction == "mean":
        total = total / count if count else total * math.nan
    return _with_own_tangent(total)


def _with_own_tangent(loss: Tensor) -> Tensor:
    """Of a tensor without dimensions a copy, whose tangent has its dtype: torch.func.jvp makes it
    float64 where such a tensor is multiplied by a number of Python."""
    return loss if loss.dim() else loss.to(loss.dtype, copy=True)


def infinitely_steep(zero: Tensor) -> Tensor:
    """0, with an infinite derivative: in factors, because 0 times infinity is NaN."""
    for _ in range(11):  # 1e330 is beyond float64
        zero = zero * 1e30
    return zero


def formula_gradients(
    formula: Callable[..., tuple[Tensor, ...]], moving: tuple[Tensor, ...], cotangents: tuple
) -> list[Tensor]:
    """The gradients of a formula in plain torch, as what torch can differentiate further."""
    with torch.enable_grad():  # not torch.func.vjp, which leaves cycles of references
        outputs = formula(*moving)
        found = torch.autograd.grad(
            outputs, moving, cotangents, create_graph=True, materialize_grads=True
        )
    return [attached(gradient, tensor) for gradient, tensor in zip(found, moving, strict=True)]


def attached(gradient: Tensor, tensor: Tensor) -> Tensor:
    """A gradient as a function of what it is the gradient by. Where the loss is linear it is none,
    and to differentiate it would be an error in place of 0."""
    return torch.where(torch.zeros_like(tensor, dtype=torch.bool), tensor, gradient)
