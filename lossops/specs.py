"""One row per loss: what tests, benchmarks, plots and documents need to know about it.

Read by those, never by the library itself. A new row brings a loss into every test, benchmark,
plot and table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from lossops import functional, nn, reference


@dataclass(frozen=True)
class Spec:
    """What is known of an elementwise loss."""

    name: str  # in lossops.functional
    kernel: str  # its name in the kernels and in lossops.reference
    module: type[torch.nn.Module]
    formula: str  # with d = x - y
    samples: tuple[dict[str, float], ...] = ({},)  # hyperparameters to test with; defaults first
    # Where the loss or its derivatives jump, as differences x - y.
    kinks: Callable[[dict[str, float]], Iterable[float]] = lambda kwargs: ()
    differentiable: int = 2  # how often, away from kinks, with a derivative that is not all zero
    torch_function: Callable[..., Tensor] | None = None  # torch's own, where it has one
    torch_module: type[torch.nn.Module] | None = None
    divides_by_weight: bool = True  # a weighted mean divides by the sum of weights
    source: str = ""
    refused: tuple[tuple[dict[str, Any], type[Exception], str], ...] = field(default=())

    # The hyperparameters as the kernels take them.
    params: Callable[[dict[str, float]], tuple[float, ...]] = lambda kwargs: tuple(kwargs.values())

    @property
    def function(self) -> Callable[..., Tensor]:
        """The loss itself."""
        return getattr(functional, self.name)

    @property
    def defaults(self) -> dict[str, float]:
        return self.samples[0]

    def in_torch(self, input: Tensor, target: Tensor, reduction: str = "mean", **kwargs) -> Tensor:
        """The loss as a torch user would write it: torch's function, or its formula in torch."""
        if self.torch_function is not None:
            return self.torch_function(input, target, reduction=reduction, **kwargs)
        params = self.params({**self.defaults, **kwargs})
        value = reference.FORMULAS[self.kernel](input, target, *params)
        return reference.reduce(value, reduction)

    # Passes over memory of the input's size in a training step, with a scalar reduction: input and
    # target are read, the gradient is written.
    passes_per_step: int = 3
    passes_per_forward: int = 2


SPECS: tuple[Spec, ...] = (
    Spec(
        name="mse_loss",
        kernel="mse",
        module=nn.MSELoss,
        formula="d²",
        torch_function=torch_functional.mse_loss,
        torch_module=torch.nn.MSELoss,
        source="Gauss, Theoria combinationis observationum, 1823",
    ),
    Spec(
        name="l1_loss",
        kernel="l1",
        module=nn.L1Loss,
        formula="|d|",
        kinks=lambda kwargs: (0.0,),
        differentiable=1,
        torch_function=torch_functional.l1_loss,
        torch_module=torch.nn.L1Loss,
        source="Laplace, Mémoire sur la probabilité des causes, 1774",
    ),
    Spec(
        name="smooth_l1_loss",
        kernel="smooth_l1",
        module=nn.SmoothL1Loss,
        formula="½d²/β where |d| < β, else |d| - ½β",
        samples=({"beta": 1.0}, {"beta": 0.3}, {"beta": 0.0}),
        kinks=lambda kwargs: (-kwargs["beta"], kwargs["beta"]),
        torch_function=torch_functional.smooth_l1_loss,
        torch_module=torch.nn.SmoothL1Loss,
        source="Girshick, Fast R-CNN, 2015",
        refused=(
            ({"beta": -1.0}, RuntimeError, "negative values for beta"),
            ({"beta": float("nan")}, RuntimeError, "negative values for beta"),
            ({"beta": "wide"}, TypeError, "beta should be a number"),
        ),
    ),
    Spec(
        name="huber_loss",
        kernel="huber",
        module=nn.HuberLoss,
        formula="½d² where |d| < δ, else δ(|d| - ½δ)",
        samples=({"delta": 1.0}, {"delta": 0.3}, {"delta": 5.0}, {"delta": float("inf")}),
        kinks=lambda kwargs: (
            () if math.isinf(kwargs["delta"]) else (-kwargs["delta"], kwargs["delta"])
        ),
        torch_function=torch_functional.huber_loss,
        torch_module=torch.nn.HuberLoss,
        divides_by_weight=False,
        source="Huber, Robust Estimation of a Location Parameter, 1964",
        refused=(
            ({"delta": 0.0}, RuntimeError, "non-positive values for delta"),
            ({"delta": -1.0}, RuntimeError, "non-positive values for delta"),
            ({"delta": float("nan")}, RuntimeError, "non-positive values for delta"),
            ({"delta": "wide"}, TypeError, "delta should be a number"),
        ),
    ),
    Spec(
        name="log_cosh_loss",
        kernel="log_cosh",
        module=nn.LogCoshLoss,
        formula="log(cosh(d))",
        source="Saleh and Saleh, Statistical Properties of the log-cosh Loss Function, 2022",
    ),
    Spec(
        name="quantile_loss",
        kernel="quantile",
        module=nn.QuantileLoss,
        formula="(1 - q)d where d > 0, else -q d",
        samples=({"quantile": 0.5}, {"quantile": 0.9}),
        params=lambda kwargs: (1.0 - kwargs["quantile"], kwargs["quantile"]),
        kinks=lambda kwargs: (0.0,),
        differentiable=1,
        source="Koenker and Bassett, Regression Quantiles, 1978",
        refused=(
            ({"quantile": 0.0}, ValueError, "quantile should be between 0 and 1"),
            ({"quantile": 1.0}, ValueError, "quantile should be between 0 and 1"),
            ({"quantile": float("nan")}, ValueError, "quantile should be between 0 and 1"),
            ({"quantile": "high"}, TypeError, "quantile should be a number"),
        ),
    ),
)


def spec(name: str) -> Spec:
    """The row of a loss, by its name in ``lossops.functional``."""
    for row in SPECS:
        if row.name == name:
            return row
    raise KeyError(f"no loss named {name!r}; there are {', '.join(row.name for row in SPECS)}")
