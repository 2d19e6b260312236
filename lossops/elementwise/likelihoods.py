"""Negative log-likelihood losses, exported by :mod:`lossops.functional`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lossops.core.arguments import (
    check_reduction,
    defined,
    legacy_reduction,
    number,
    number_on,
    promoted,
    require_tensors,
)
from lossops.core.declaration import LossModule, described, public
from lossops.core.labels import can_look
from lossops.core.spread import beside, gathered
from lossops.core.unfused import difference, floating
from lossops.elementwise.call import broadcast_loss

__all__ = [
    "GaussianNLLLoss",
    "PoissonNLLLoss",
    "gaussian_nll_loss",
    "poisson_nll_loss",
]


@public(eps=defined)
@described(
    kernel="poisson_log", formula="eˣ - y x", samples=({}, {"full": True}),
    params=lambda kwargs: (float(kwargs.get("full", False)),),
    domains=("log_rate", "count"), other_shapes="broadcasts", takes_integers=True,
    source="Nelder and Wedderburn, Generalized Linear Models, 1972",
)  # fmt: skip
@described(
    name="poisson_nll_loss_of_counts", kernel="poisson", formula="x - y log(x + ε)",
    samples=(
        {"log_input": False, "eps": 1e-8}, {"log_input": False, "eps": 0.5, "full": True},
    ),
    params=lambda kwargs: (kwargs["eps"], float(kwargs.get("full", False))),
    domains=("rate", "count"), other_shapes="broadcasts", takes_integers=True,
    source="Nelder and Wedderburn, Generalized Linear Models, 1972",
)  # fmt: skip
def poisson_nll_loss(
    input: Tensor,
    target: Tensor,
    log_input: bool = True,
    full: bool = False,
    size_average: bool | None = None,
    eps: float = 1e-8,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Poisson negative log-likelihood: ``exp(x) - y x``, or ``x - y log(x + eps)``.

    Use it when the target is a count, such as a number of events.

    Args:
        input: x, the logarithm of the expected count, or the expected count itself if ``log_input``
            is False.
        target: y, the count, of a shape that broadcasts with ``input``.
        log_input: whether ``input`` is the logarithm of the expected count.
        full: whether to add Stirling's approximation of log(y!) where y > 1.
        size_average, reduce: deprecated, see ``reduction``.
        eps: added to x to keep the logarithm finite if ``log_input`` is False.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.
        weight: w, of the same shape as ``input``; multiplies the loss of each element. A mean still
            divides by the number of elements.

    Returns:
        The loss: a scalar, or a tensor of the broadcast shape for "none", of shape (B,) for
        "sample".

    Raises:
        ValueError: if ``reduction`` is not one of these, or ``weight`` does not have the shape of
            ``input``.
        RuntimeError: if the shapes do not broadcast.
        TypeError: if ``eps`` is not a number.

    Follows :func:`torch.nn.functional.poisson_nll_loss`.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.poisson_nll_loss(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]), reduction="none")
        tensor([1.0000, 0.7183])
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    require_tensors("poisson_nll_loss", input=input, target=target)
    loss, params = ("poisson_log", ()) if log_input else ("poisson", (eps,))
    input = floating(input, target)
    return broadcast_loss(loss, input, target, weight, reduction, *params, float(bool(full)))


class PoissonNLLLoss(LossModule, torch.nn.PoissonNLLLoss, function=poisson_nll_loss):
    """Negative log-likelihood of a Poisson distribution; see
    :func:`lossops.functional.poisson_nll_loss`."""


@public(eps=defined)
@described(
    kernel="gaussian", formula="½ (log v + (x - y)²/v)", takes_a_difference=True,
    samples=({"eps": 1e-6}, {"eps": 0.01, "full": True}),
    params=lambda kwargs: (kwargs["eps"], _constant(kwargs.get("full"))),
    domains=("error", "variance"), other_shapes="broadcasts",
    source="Nix and Weigend, Estimating the Mean and Variance, 1994",
)  # fmt: skip
def gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Gaussian negative log-likelihood: ``½ (log v + (x - y)² / v)``.

    Use it when the model predicts a variance along with each expected value, or when the variance
    of each target is known.

    The difference x - y is materialised as a tensor; the rest is one fused pass.

    Args:
        input: x, the expected value, of any shape.
        target: y, the observed value, of a shape that broadcasts with ``input``.
        var: v, the variance: a number, or a tensor of the same shape as ``input``, of that shape
            without its last dimension, or of that shape with one dimension of size 1. It is clamped
            to at least ``eps``; the derivative ignores the clamping, as in torch.
        full: whether to add the constant ½ log 2π.
        eps: the smallest variance used.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.
        weight: w, of the shape of x - y; multiplies the loss of each element. A mean still divides
            by the number of elements.

    Returns:
        The loss: a scalar, or a tensor of the broadcast shape for "none", of shape (B,) for
        "sample".

    Raises:
        ValueError: if ``reduction`` is not one of these, ``var`` has another shape or, on the CPU,
            a negative entry. On a GPU, where the check would require a device sync, and under
            torch.func and torch.compile, the loss of such an element is NaN.
        TypeError: if ``eps`` is not a number.

    Follows :func:`torch.nn.functional.gaussian_nll_loss`. Nix and Weigend, Estimating the mean and
    variance of the target probability distribution, 1994.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.gaussian_nll_loss(torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([2.0]))
        tensor(1.3466)
    """
    require_tensors("gaussian_nll_loss", input=input, target=target)
    if not isinstance(var, Tensor):
        var = number("gaussian_nll_loss", "var", var)
        if var < 0:
            raise ValueError("var has negative entry/entries")
        var = beside(number_on(input.device, var, floating(input).dtype), input).expand_as(input)
    elif can_look(var) and gathered((var < 0).any()):
        raise ValueError("var has negative entry/entries")
    if var.shape != input.shape:
        if input.shape[:-1] == var.shape and input.dim():
            var = var.unsqueeze(-1)
        elif (
            input.dim() != var.dim()
            or sum(v for x, v in zip(input.shape, var.shape, strict=True) if x != v) != 1
        ):
            raise ValueError("var is of incorrect size")
    check_reduction(reduction)
    input = floating(input, target)
    off, dtype = difference(input, target)
    if off.device.type == "cpu":
        dtype = promoted(input, target)  # autocast widens torch's formula on GPUs only
    if var.dim() or not off.dim():
        dtype = torch.promote_types(dtype, var.dtype)
    loss = broadcast_loss("gaussian", off, var, weight, reduction, eps, _constant(full))
    return loss.to(dtype)


class GaussianNLLLoss(LossModule, torch.nn.GaussianNLLLoss, function=gaussian_nll_loss):
    """Negative log-likelihood of a normal distribution; see
    :func:`lossops.functional.gaussian_nll_loss`."""


def _constant(full: bool) -> float:
    return 0.5 * math.log(2 * math.pi) if full else 0.0
