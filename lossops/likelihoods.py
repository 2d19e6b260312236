"""Negative log-likelihoods; public as part of :mod:`lossops.functional`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from lossops.checks import legacy_reduction, number
from lossops.composed import can_look, check_reduction, composed

__all__ = ["gaussian_nll_loss", "poisson_nll_loss"]


def poisson_nll_loss(
    input: Tensor,
    target: Tensor,
    log_input: bool = True,
    full: bool = False,
    size_average: bool | None = None,
    eps: float = 1e-8,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Negative log-likelihood of a count: ``exp(x) - y x``, or ``x - y log(x + eps)``.

    Args:
        input: x, the logarithm of the expected count; or the count, with ``log_input=False``.
        target: y, the count, of a shape that broadcasts with the input's.
        log_input: which of the two.
        full: add Stirling's approximation of log(y!) where y > 1, which is no function of x.
        size_average, reduce: deprecated, see ``reduction``.
        eps: keeps the logarithm finite.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.

    Returns:
        The loss: a scalar, or a tensor of the broadcast shape for "none", of shape (B,) for
        "sample".

    Raises:
        ValueError: if ``reduction`` is none of these.
        RuntimeError: if the shapes do not broadcast.
        TypeError: if ``eps`` is not a number.

    Follows :func:`torch.nn.functional.poisson_nll_loss`.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.poisson_nll_loss(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]), reduction="none")
        tensor([1.0000, 0.7183])
    """
    if has_torch_function_variadic(input, target):
        return handle_torch_function(
            poisson_nll_loss, (input, target), input, target, log_input, full, size_average, eps,
            reduce, reduction,
        )  # fmt: skip
    reduction = legacy_reduction(size_average, reduce, reduction)
    eps = number("poisson_nll_loss", "eps", eps)

    def formula(x: Tensor, y: Tensor) -> Tensor:
        loss = x.exp() - y * x if log_input else x - y * torch.log(x + eps)
        if full:
            large = y > 1
            y = torch.where(large, y, 2)
            stirling = y * y.log() - y + 0.5 * torch.log(2 * math.pi * y)
            loss = loss + torch.where(large, stirling, 0)
        return loss

    return composed("poisson_nll_loss", formula, (input, target), reduction)


def gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    r"""Negative log-likelihood of a measurement: ``½ (log v + (x - y)² / v)``.

    Args:
        input: x, the expectation, any shape.
        target: y, the measurement, of a shape that broadcasts with the input's.
        var: v, the variance: a number; or a tensor of the input's shape, of that without the last
            dimension, or with one dimension that is 1. No less than eps is used; the derivative by
            v is that of v itself, as in torch.
        full: add ½ log 2π.
        eps: the least variance.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.

    Returns:
        The loss: a scalar, or a tensor of the broadcast shape for "none", of shape (B,) for
        "sample".

    Raises:
        ValueError: if ``reduction`` is none of these, ``var`` has another shape or, on the CPU, an
            entry below 0. On a GPU, where to look would stall it, and under torch.func and
            torch.compile, the loss of such an element is NaN.
        TypeError: if ``eps`` is not a number.

    Follows :func:`torch.nn.functional.gaussian_nll_loss`. Nix and Weigend, Estimating the mean and
    variance of the target probability distribution, 1994.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.gaussian_nll_loss(torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([2.0]))
        tensor(1.3466)
    """
    if has_torch_function_variadic(input, target, var):
        return handle_torch_function(
            gaussian_nll_loss, (input, target, var), input, target, var, full, eps, reduction
        )
    if not isinstance(var, Tensor):
        var = number("gaussian_nll_loss", "var", var)
        if var < 0:
            raise ValueError("var has negative entry/entries")
        var = torch.full_like(input, var)
    elif can_look(var) and (var < 0).any():
        raise ValueError("var has negative entry/entries")
    if var.shape != input.shape:
        if input.shape[:-1] == var.shape and input.dim():
            var = var.unsqueeze(-1)
        elif (
            input.dim() != var.dim()
            or sum(v for x, v in zip(input.shape, var.shape, strict=True) if x != v) != 1
        ):
            raise ValueError("var is of incorrect size")
    eps = number("gaussian_nll_loss", "eps", eps)
    check_reduction(reduction)

    def formula(x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        fixed = v.detach()
        bounded = torch.where(fixed < 0, torch.nan, fixed.clamp_min(eps))
        # The bound, with the derivative of v itself.
        v = torch.where(fixed >= eps, v, bounded + (v - fixed))
        loss = 0.5 * (v.log() + (x - y).square() / v)
        return loss + 0.5 * math.log(2 * math.pi) if full else loss

    return composed("gaussian_nll_loss", formula, (input, target, var), reduction)
