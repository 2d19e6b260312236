"""Loss modules: the classes of ``torch.nn`` with only ``forward`` replaced, and those torch lacks.

Every ``forward`` takes the optional ``weight`` of its function in :mod:`lossops.functional`, and
``reduction`` may also be "sample".
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from lossops import functional as F

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "LogCoshLoss",
    "MSELoss",
    "QuantileLoss",
    "SigmoidFocalLoss",
    "SmoothL1Loss",
]


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


class KLDivLoss(torch.nn.KLDivLoss):
    """Kullback-Leibler divergence; see :func:`lossops.functional.kl_div`."""

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.kl_div(
            input, target, reduction=self.reduction, log_target=self.log_target, weight=weight
        )


def _product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Of two weights, the module's own and the call's."""
    if a is None or b is None:
        return b if a is None else a
    return a * b


class BCELoss(torch.nn.BCELoss):
    """Binary cross entropy of probabilities; see :func:`lossops.functional.binary_cross_entropy`.

    Args:
        weight, size_average, reduce, reduction: as in :class:`torch.nn.BCELoss`.
        label_smoothing: between 0 and 1.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average=None,
        reduce=None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction)
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.binary_cross_entropy(
            input, target, _product(self.weight, weight), reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )  # fmt: skip


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """Binary cross entropy of logits; see
    :func:`lossops.functional.binary_cross_entropy_with_logits`.

    Args:
        weight, size_average, reduce, reduction: as in :class:`torch.nn.BCEWithLogitsLoss`.
        pos_weight: a tensor, as there, or a number.
        label_smoothing: between 0 and 1.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average=None,
        reduce=None,
        reduction: str = "mean",
        pos_weight: Tensor | float | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        tensor = pos_weight if isinstance(pos_weight, Tensor) else None
        super().__init__(weight, size_average, reduce, reduction, tensor)
        if tensor is None and pos_weight is not None:
            del self._buffers["pos_weight"]
            self.pos_weight = pos_weight
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            input, target, _product(self.weight, weight), reduction=self.reduction,
            pos_weight=self.pos_weight, label_smoothing=self.label_smoothing,
        )  # fmt: skip


class SigmoidFocalLoss(_Loss):
    """RetinaNet's focal loss; see :func:`lossops.functional.sigmoid_focal_loss`.

    Args:
        alpha: the weight of the positive class, at most 1; a negative number for none.
        gamma: γ ≥ 0.
        reduction: "none", "mean", "sum" or "sample".
    """

    __constants__ = ["alpha", "gamma", "reduction"]

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.alpha = alpha
        self.gamma = gamma

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.sigmoid_focal_loss(input, target, self.alpha, self.gamma, self.reduction, weight)
