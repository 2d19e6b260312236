"""The losses to compare with: each loss as a user of torch has it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from lossops.elementwise import reference
from lossops.specs.elementwise import Spec

Loss = Callable[..., Tensor]


def _log_cosh(input: Tensor, target: Tensor) -> Tensor:
    z = (input - target).abs()
    return z + torch.nn.functional.softplus(-2 * z) - math.log(2)


def _quantile(input: Tensor, target: Tensor, above: float, below: float) -> Tensor:
    d = input - target
    return torch.where(d > 0, above * d, -below * d)


def _charbonnier(input: Tensor, target: Tensor, epsilon: float) -> Tensor:
    return ((input - target).square() + epsilon**2).sqrt()


def _sigmoid_focal(input: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    """The formula of torchvision."""
    p = torch.sigmoid(input)
    cross = torch.nn.functional.binary_cross_entropy_with_logits(input, target, reduction="none")
    p_t = p * target + (1 - p) * (1 - target)
    loss = cross * (1 - p_t) ** gamma
    if alpha >= 0:
        loss = (alpha * target + (1 - alpha) * (1 - target)) * loss
    return loss


# Losses that torch lacks, as its users write them. A loss that is missing here is taken from the
# reference, which is more careful and slower than what most users write.
AS_USERS_WRITE_IT: dict[str, Callable[..., Tensor]] = {
    "log_cosh": _log_cosh,
    "quantile": _quantile,
    "charbonnier": _charbonnier,
    "sigmoid_focal": _sigmoid_focal,
}


def _by_torch(
    spec: Spec, input: Tensor, target: Tensor, reduction: str = "mean", **kwargs
) -> Tensor:
    input, target, kwargs = spec.for_torch(input, target, **{**spec.defaults, **kwargs})
    return spec.torch_function(input, target, reduction=reduction, **kwargs)


def written_in_torch(spec: Spec) -> Loss:
    """Returns torch's own function, or else the loss as a user writes it in torch."""
    if spec.torch_function is not None and not spec.regression:
        return functools.partial(_by_torch, spec)
    if spec.torch_function is not None:
        return spec.torch_function
    formula = AS_USERS_WRITE_IT.get(spec.kernel, reference.FORMULAS[spec.kernel])

    def loss(input: Tensor, target: Tensor, reduction: str = "mean", **kwargs: float) -> Tensor:
        value = formula(input, target, *spec.params({**spec.defaults, **kwargs}))
        if reduction == "none":
            return value
        return value.mean() if reduction == "mean" else value.sum()

    return loss
