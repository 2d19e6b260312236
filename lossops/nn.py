"""Loss modules: subclasses of those in ``torch.nn``, and modules that torch lacks.

Most ``forward`` methods take the optional ``weight`` of their function in
:mod:`lossops.functional`; those of cross entropy, its relatives and divergences take
``normalizer`` instead. ``reduction`` may also be "sample".
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss, _WeightedLoss

from lossops import functional as F
from lossops import nn_composed, nn_divergences
from lossops.nn_composed import *  # noqa: F403
from lossops.nn_divergences import *  # noqa: F403

__all__ = [
    *nn_composed.__all__,
    *nn_divergences.__all__,
    "BCELoss",
    "BCEWithLogitsLoss",
    "CharbonnierLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "LogCoshLoss",
    "MSELoss",
    "NLLLoss",
    "PolyLoss",
    "QuantileLoss",
    "SigmoidFocalLoss",
    "SmoothL1Loss",
]


class MSELoss(torch.nn.MSELoss):
    """Squared error loss; see :func:`lossops.functional.mse_loss`."""

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.mse_loss(input, target, reduction=self.reduction, weight=weight)


class L1Loss(torch.nn.L1Loss):
    """Absolute error loss; see :func:`lossops.functional.l1_loss`."""

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.l1_loss(input, target, reduction=self.reduction, weight=weight)


class SmoothL1Loss(torch.nn.SmoothL1Loss):
    """Smooth L1 loss; see :func:`lossops.functional.smooth_l1_loss`."""

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.smooth_l1_loss(
            input, target, reduction=self.reduction, beta=self.beta, weight=weight
        )


class HuberLoss(torch.nn.HuberLoss):
    """Huber loss; see :func:`lossops.functional.huber_loss`."""

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.huber_loss(
            input, target, reduction=self.reduction, delta=self.delta, weight=weight
        )


class LogCoshLoss(_Loss):
    """Log-cosh loss; see :func:`lossops.functional.log_cosh_loss`.

    Args:
        reduction: "none", "mean", "sum" or "sample".
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.log_cosh_loss(input, target, reduction=self.reduction, weight=weight)


class QuantileLoss(_Loss):
    """Quantile (pinball) loss; see :func:`lossops.functional.quantile_loss`.

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


class CharbonnierLoss(_Loss):
    """Charbonnier loss; see :func:`lossops.functional.charbonnier_loss`.

    Args:
        epsilon: ε > 0.
        reduction: "none", "mean", "sum" or "sample".
    """

    __constants__ = ["epsilon", "reduction"]

    def __init__(self, epsilon: float = 1e-3, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.epsilon = epsilon

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.charbonnier_loss(input, target, self.epsilon, self.reduction, weight)


class KLDivLoss(torch.nn.KLDivLoss):
    """Kullback-Leibler divergence; see :func:`lossops.functional.kl_div`."""

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.kl_div(
            input, target, reduction=self.reduction, log_target=self.log_target, weight=weight
        )


def _product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Combines two weights, the module's own and that of the call."""
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
        pos_weight: a tensor, as in torch, or a number.
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
        alpha: the weight of the positive class, at most 1. A negative number means no weight.
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


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """Cross entropy; see :func:`lossops.functional.cross_entropy`.

    Args:
        weight, size_average, ignore_index, reduce, reduction, label_smoothing: as in torch.
        z_loss, softcap, temperature, empty, inplace: as for the function.
        return_lse, return_entropy, return_accuracy: as for the function. With any of these, the
            module returns a tuple.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        softcap: float | None = None,
        temperature: float = 1.0,
        empty: str = "nan",
        inplace: bool = False,
        return_lse: bool = False,
        return_entropy: bool = False,
        return_accuracy: bool = False,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.z_loss = z_loss
        self.softcap = softcap
        self.temperature = temperature
        self.empty = empty
        self.inplace = inplace
        self.return_lse = return_lse
        self.return_entropy = return_entropy
        self.return_accuracy = return_accuracy

    def forward(
        self, input: Tensor, target: Tensor, normalizer: float | Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        return F.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap,
            temperature=self.temperature,
            normalizer=normalizer,
            empty=self.empty,
            return_lse=self.return_lse,
            return_entropy=self.return_entropy,
            return_accuracy=self.return_accuracy,
            inplace=self.inplace,
        )


class NLLLoss(torch.nn.NLLLoss):
    """Negative log-likelihood; see :func:`lossops.functional.nll_loss`.

    Args:
        weight, size_average, ignore_index, reduce, reduction: as in torch.
        empty: as for the function.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        empty: str = "nan",
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction)
        self.empty = empty

    def forward(
        self, input: Tensor, target: Tensor, normalizer: float | Tensor | None = None
    ) -> Tensor:
        return F.nll_loss(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            normalizer=normalizer,
            empty=self.empty,
        )


class FocalLoss(_WeightedLoss):
    """Focal loss of a softmax; see :func:`lossops.functional.focal_loss`.

    Args:
        alpha: one number for all classes or a tensor of shape (C).
        gamma: γ ≥ 0.
        ignore_index: a label to ignore.
        reduction: "none", "mean", "sum" or "sample".
    """

    __constants__ = ["gamma", "ignore_index", "reduction"]

    def __init__(
        self,
        alpha: float | Tensor | None = None,
        gamma: float = 2.0,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__(alpha if isinstance(alpha, Tensor) else None, reduction=reduction)
        self.alpha = None if isinstance(alpha, Tensor) else alpha
        self.gamma = gamma
        self.ignore_index = ignore_index

    def forward(
        self, input: Tensor, target: Tensor, normalizer: float | Tensor | None = None
    ) -> Tensor:
        alpha = self.alpha if self.weight is None else self.weight
        return F.focal_loss(
            input, target, alpha, self.gamma, self.ignore_index, self.reduction,
            normalizer=normalizer,
        )  # fmt: skip


class PolyLoss(_WeightedLoss):
    """Poly-1 loss; see :func:`lossops.functional.poly_loss`.

    Args:
        epsilon: ε.
        weight: a weight per class.
        ignore_index: a label to ignore.
        reduction: "none", "mean", "sum" or "sample".
    """

    __constants__ = ["epsilon", "ignore_index", "reduction"]

    def __init__(
        self,
        epsilon: float = 1.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__(weight, reduction=reduction)
        self.epsilon = epsilon
        self.ignore_index = ignore_index

    def forward(
        self, input: Tensor, target: Tensor, normalizer: float | Tensor | None = None
    ) -> Tensor:
        return F.poly_loss(
            input, target, self.epsilon, self.weight, self.ignore_index, self.reduction,
            normalizer=normalizer,
        )  # fmt: skip


# Classes that torch.load may construct by default (weights_only=True): our modules, and the torch
# classes that some of them hold. Loading them only copies attributes and runs no other code.
_HELD = ("Linear", "PairwiseDistance", "LinearCrossEntropyOptions")  # the last: in newer torch only
torch.serialization.add_safe_globals(
    [globals()[name] for name in __all__]
    + [getattr(torch.nn, name) for name in _HELD if hasattr(torch.nn, name)]
)
