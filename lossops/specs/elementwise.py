"""One row per elementwise loss, which describes it for tests, benchmarks, plots and documentation.

The rows come from the declarations of the losses (:func:`lossops.core.declaration.described`). The
library itself never reads them. A declared loss is part of all tests, benchmarks, plots and tables.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from lossops.elementwise import likelihoods, logits, margins, probabilities, regression
from lossops.specs.spec import Spec, declared

# Losses that torch lacks, as its users write them, if that is faster than the reference.


def _log_cosh(input: Tensor, target: Tensor) -> Tensor:
    z = (input - target).abs()
    return z + torch_functional.softplus(-2 * z) - math.log(2)


def _charbonnier(input: Tensor, target: Tensor, epsilon: float) -> Tensor:
    return ((input - target).square() + epsilon**2).sqrt()


def _sigmoid_focal(input: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    """The formula of torchvision."""
    p = torch.sigmoid(input)
    cross = torch_functional.binary_cross_entropy_with_logits(input, target, reduction="none")
    p_t = p * target + (1 - p) * (1 - target)
    loss = cross * (1 - p_t) ** gamma
    if alpha >= 0:
        loss = (alpha * target + (1 - alpha) * (1 - target)) * loss
    return loss


_USERS = {"log_cosh": _log_cosh, "charbonnier": _charbonnier, "sigmoid_focal": _sigmoid_focal}

SPECS: tuple[Spec, ...] = tuple(
    Spec(
        **{"name": function.__name__, "public": function, **row},
        users_formula=_USERS.get(row["kernel"]),
    )
    for function, row in declared(regression, probabilities, logits, margins, likelihoods)
)

# The losses that compare a prediction with a measurement.
REGRESSION = tuple(row for row in SPECS if row.regression)


def spec(name: str) -> Spec:
    """The row of a loss, by its name in ``lossops.functional``."""
    for row in SPECS:
        if row.name == name:
            return row
    raise KeyError(f"no loss named {name!r}; there are {', '.join(row.name for row in SPECS)}")
