"""Helpers for formulas in plain torch: reductions, and gradients computed by autograd."""

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
    """Reduces over all dimensions except the first ``keep_dims``."""
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
    """Copies a 0-d tensor so that its tangent keeps the tensor's dtype. torch.func.jvp makes the
    tangent float64 if a 0-d tensor is multiplied by a Python number."""
    return loss if loss.dim() else loss.to(loss.dtype, copy=True)


def infinitely_steep(zero: Tensor) -> Tensor:
    """Returns 0 with an infinite derivative. Uses finite factors, because 0 * inf is NaN."""
    for _ in range(11):  # their product, 1e330, overflows float64
        zero = zero * 1e30
    return zero


def formula_gradients(
    formula: Callable[..., tuple[Tensor, ...]], moving: tuple[Tensor, ...], cotangents: tuple
) -> list[Tensor]:
    """The gradients of a formula in plain torch, in a form that autograd can differentiate
    again."""
    with torch.enable_grad():  # torch.func.vjp would leave reference cycles
        # A tensor may be several arguments, each of which has a gradient of its own.
        arguments = tuple(tensor.view_as(tensor) for tensor in moving)
        found = torch.autograd.grad(
            formula(*arguments), arguments, cotangents, create_graph=True, materialize_grads=True
        )
    return [attached(gradient, tensor) for gradient, tensor in zip(found, moving, strict=True)]


def attached(gradient: Tensor, tensor: Tensor) -> Tensor:
    """Makes a gradient depend on ``tensor`` in the autograd graph. The gradient of a linear loss
    does not depend on it, and differentiating it would raise an error instead of giving 0."""
    return torch.where(torch.zeros_like(tensor, dtype=torch.bool), tensor, gradient)
