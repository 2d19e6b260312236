"""What a loss is compared with: the same loss as a torch user has it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lossops import reference
from lossops.specs import Spec

Loss = Callable[..., Tensor]


def _log_cosh(input: Tensor, target: Tensor) -> Tensor:
    z = (input - target).abs()
    return z + torch.nn.functional.softplus(-2 * z) - math.log(2)


def _quantile(input: Tensor, target: Tensor, above: float, below: float) -> Tensor:
    d = input - target
    return torch.where(d > 0, above * d, -below * d)


# Losses that torch lacks, as its users write them. One that is not here is taken from the
# reference, which is more careful, and slower, than most.
AS_USERS_WRITE_IT: dict[str, Callable[..., Tensor]] = {
    "log_cosh": _log_cosh,
    "quantile": _quantile,
}


def written_in_torch(spec: Spec) -> Loss:
    """torch's own function, or the loss as a user writes it in torch."""
    if spec.torch_function is not None:
        return spec.torch_function
    formula = AS_USERS_WRITE_IT.get(spec.kernel, reference.FORMULAS[spec.kernel])

    def loss(input: Tensor, target: Tensor, reduction: str = "mean", **kwargs: float) -> Tensor:
        value = formula(input, target, *spec.params({**spec.defaults, **kwargs}))
        if reduction == "none":
            return value
        return value.mean() if reduction == "mean" else value.sum()

    return loss
