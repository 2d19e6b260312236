"""The curves of the losses, computed by lossops' own kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lossops.specs.elementwise import REGRESSION, Spec, spec


@dataclass(frozen=True)
class Curve:
    """A loss with its hyperparameters, to be plotted."""

    label: str
    spec: Spec
    kwargs: dict[str, float]

    @staticmethod
    def of(name: str, label: str = "", **kwargs: float) -> Curve:
        return Curve(label or PLAIN_NAMES.get(name, name), spec(name), kwargs)

    def derivatives(self, prediction: Tensor, truth: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Value, first and second derivative at each prediction."""
        x = prediction.detach().double().requires_grad_()
        y = torch.full_like(x, truth)
        value = self.spec.function(x, y, reduction="none", **self.kwargs)
        ones = torch.ones_like(value)
        (first,) = torch.autograd.grad(value, x, ones, create_graph=True)
        (second,) = torch.autograd.grad(first, x, ones)
        return value.detach(), first.detach(), second


PLAIN_NAMES = {
    "mse_loss": "MSE",
    "l1_loss": "L1 (MAE)",
    "smooth_l1_loss": "smooth L1",
    "huber_loss": "Huber",
    "log_cosh_loss": "log-cosh",
    "quantile_loss": "quantile",
}


def plain(name: str) -> str:
    """A readable name of a loss."""
    return PLAIN_NAMES.get(name, name.removesuffix("_loss").replace("_", " "))


def differentiability() -> list[dict[str, Any]]:
    """How often each loss is differentiable, measured from the kernels on both sides of every
    kink."""
    rows = []
    for row in REGRESSION:
        jumps = [0.0, 0.0, 0.0]
        for kink in row.kinks(row.defaults) or (0.0, 1.0):
            sides = torch.tensor([kink - 1e-9, kink + 1e-9], dtype=torch.float64)
            derivatives = Curve(plain(row.name), row, row.defaults).derivatives(sides)
            jumps = [
                max(j, abs(d[1] - d[0]).item()) for j, d in zip(jumps, derivatives, strict=True)
            ]
        times = next((i - 1 for i, jump in enumerate(jumps) if jump > 1e-3), 2)  # 2: or more
        rows.append({"loss": row.name, "jumps": jumps, "times": times})
    return rows
