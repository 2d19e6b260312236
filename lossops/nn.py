"""Loss modules: the classes of ``torch.nn`` with only ``forward`` replaced, and those torch lacks.

Every ``forward`` takes the optional ``weight`` of its function in :mod:`lossops.functional`, and
``reduction`` may also be "sample".
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from lossops import functional as F

__all__ = ["HuberLoss", "L1Loss", "LogCoshLoss", "MSELoss", "QuantileLoss", "SmoothL1Loss"]


class MSELoss(torch.nn.MSELoss):
    """Squared error; see :func:`lossops.functional.mse_loss`."""

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.mse_loss(input, target, reduction=self.reduction, weight=weight)


class L1Loss(torch.nn.L1Loss):
    """Absolute error; see :func:`lossops.functional.l1_loss`."""

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.l1_loss(input, target, reduction=self.reduction, weight=weight)


class SmoothL1Loss(torch.nn.SmoothL1Loss):
    """Smooth L1; see :func:`lossops.functional.smooth_l1_loss`."""

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.smooth_l1_loss(
            input, target, reduction=self.reduction, beta=self.beta, weight=weight
        )


class HuberLoss(torch.nn.HuberLoss):
    """Huber; see :func:`lossops.functional.huber_loss`."""

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.huber_loss(
            input, target, reduction=self.reduction, delta=self.delta, weight=weight
        )


class LogCoshLoss(_Loss):
    """Log-cosh; see :func:`lossops.functional.log_cosh_loss`.

    Args:
        reduction: "none", "mean", "sum" or "sample".
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.log_cosh_loss(input, target, reduction=self.reduction, weight=weight)


class QuantileLoss(_Loss):
    """Quantile (pinball); see :func:`lossops.functional.quantile_loss`.

    Args:
        quantile: q, 0 < q < 1.
        reduction: "none", "mean", "sum" or "sample".
    """

    __constants__ = ["quantile", "reduction"]

    def __init__(self, quantile: float = 0.5, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.quantile = quantile

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.quantile_loss(input, target, self.quantile, self.reduction, weight)
