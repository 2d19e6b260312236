"""Modules of losses with margins, of likelihoods, and of pairs, regions and sequences; public as
part of :mod:`lossops.nn`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss, _WeightedLoss

from lossops import functional as F

__all__ = [
    "CTCLoss",
    "CosineEmbeddingLoss",
    "DiceLoss",
    "GaussianNLLLoss",
    "HingeEmbeddingLoss",
    "LinearCrossEntropyLoss",
    "MarginRankingLoss",
    "MultiLabelMarginLoss",
    "MultiLabelSoftMarginLoss",
    "MultiMarginLoss",
    "PoissonNLLLoss",
    "SoftMarginLoss",
    "TripletMarginLoss",
    "TripletMarginWithDistanceLoss",
    "TverskyLoss",
]


class SoftMarginLoss(torch.nn.SoftMarginLoss):
    """Logistic loss of labels 1 and -1; see :func:`lossops.functional.soft_margin_loss`."""

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.soft_margin_loss(input, target, reduction=self.reduction, weight=weight)


class HingeEmbeddingLoss(torch.nn.HingeEmbeddingLoss):
    """Hinge loss of a distance; see :func:`lossops.functional.hinge_embedding_loss`."""

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.hinge_embedding_loss(
            input, target, self.margin, reduction=self.reduction, weight=weight
        )


class MarginRankingLoss(torch.nn.MarginRankingLoss):
    """Ranking loss of two scores; see :func:`lossops.functional.margin_ranking_loss`."""

    def forward(
        self, input1: Tensor, input2: Tensor, target: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        return F.margin_ranking_loss(
            input1, input2, target, self.margin, reduction=self.reduction, weight=weight
        )


class MultiMarginLoss(torch.nn.MultiMarginLoss):
    """Multi-class hinge loss; see :func:`lossops.functional.multi_margin_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.multi_margin_loss(
            input, target, self.p, self.margin, self.weight, reduction=self.reduction
        )


class MultiLabelMarginLoss(torch.nn.MultiLabelMarginLoss):
    """Multi-label hinge loss; see :func:`lossops.functional.multilabel_margin_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.multilabel_margin_loss(input, target, reduction=self.reduction)


class MultiLabelSoftMarginLoss(torch.nn.MultiLabelSoftMarginLoss):
    """Multi-label loss, the binary cross entropy over classes; see
    :func:`lossops.functional.multilabel_soft_margin_loss`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.multilabel_soft_margin_loss(input, target, self.weight, reduction=self.reduction)


class PoissonNLLLoss(torch.nn.PoissonNLLLoss):
    """Negative log-likelihood of a Poisson distribution; see
    :func:`lossops.functional.poisson_nll_loss`."""

    def forward(self, log_input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.poisson_nll_loss(
            log_input, target, log_input=self.log_input, full=self.full, eps=self.eps,
            reduction=self.reduction, weight=weight,
        )  # fmt: skip


class GaussianNLLLoss(torch.nn.GaussianNLLLoss):
    """Negative log-likelihood of a normal distribution; see
    :func:`lossops.functional.gaussian_nll_loss`."""

    def forward(
        self, input: Tensor, target: Tensor, var: Tensor | float, weight: Tensor | None = None
    ) -> Tensor:
        return F.gaussian_nll_loss(
            input,
            target,
            var,
            full=self.full,
            eps=self.eps,
            reduction=self.reduction,
            weight=weight,
        )


class CosineEmbeddingLoss(torch.nn.CosineEmbeddingLoss):
    """Loss of the cosine of two vectors; see :func:`lossops.functional.cosine_embedding_loss`."""

    def forward(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor:
        return F.cosine_embedding_loss(
            input1, input2, target, self.margin, reduction=self.reduction
        )


class TripletMarginLoss(torch.nn.TripletMarginLoss):
    """Triplet margin loss of a p-norm; see :func:`lossops.functional.triplet_margin_loss`."""

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return F.triplet_margin_loss(
            anchor, positive, negative, self.margin, self.p, self.eps, self.swap,
            reduction=self.reduction,
        )  # fmt: skip


class TripletMarginWithDistanceLoss(torch.nn.TripletMarginWithDistanceLoss):
    """Triplet margin loss of any distance; see
    :func:`lossops.functional.triplet_margin_with_distance_loss`."""

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return F.triplet_margin_with_distance_loss(
            anchor, positive, negative, distance_function=self.distance_function,
            margin=self.margin, swap=self.swap, reduction=self.reduction,
        )  # fmt: skip


class CTCLoss(torch.nn.CTCLoss):
    """Connectionist temporal classification; see :func:`lossops.functional.ctc_loss`."""

    def forward(
        self, log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor
    ) -> Tensor:
        return F.ctc_loss(
            log_probs, targets, input_lengths, target_lengths, self.blank, self.reduction,
            self.zero_infinity,
        )  # fmt: skip


# The oldest torch that lossops supports does not have this class.
class LinearCrossEntropyLoss(getattr(torch.nn, "LinearCrossEntropyLoss", _WeightedLoss)):
    """A linear layer and its cross entropy; see :func:`lossops.functional.linear_cross_entropy`.

    Args:
        in_features: H.
        num_classes: C.
        out_features: d1, …, dK.
        bias: whether the layer has a bias.
        device, dtype: those of the layer's parameters.
        weight, reduction, ignore_index, label_smoothing, options, z_loss, softcap, temperature: as
            for the function.

    Raises:
        RuntimeError: if ``weight`` is not of shape (C), or ``label_smoothing`` is outside [0, 1].

    Follows :class:`torch.nn.LinearCrossEntropyLoss`, and has the same parameters.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: object | None = None,
        z_loss: float = 0.0,
        softcap: float | None = None,
        temperature: float = 1.0,
    ) -> None:
        if weight is not None and weight.shape != (num_classes,):
            raise RuntimeError(
                f"expected weight shape to be {(num_classes,)}, got {tuple(weight.shape)}"
            )
        if not 0 <= label_smoothing <= 1:
            raise RuntimeError(
                f"expected label_smoothing to be in range [0, 1], got {label_smoothing}"
            )
        _WeightedLoss.__init__(self, weight=weight, reduction=reduction)
        self.num_classes = num_classes
        self.out_features = out_features
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        outputs = math.prod(out_features, start=num_classes)
        self.linear = torch.nn.Linear(in_features, outputs, bias=bias, device=device, dtype=dtype)
        self.options = options
        self.z_loss = z_loss
        self.softcap = softcap
        self.temperature = temperature

    def forward(
        self, input: Tensor, target: Tensor, normalizer: float | Tensor | None = None
    ) -> Tensor:
        shape = (self.num_classes, *self.out_features)
        bias = self.linear.bias
        return F.linear_cross_entropy(
            input, self.linear.weight.reshape(*shape, self.linear.in_features), target,
            linear_bias=None if bias is None else bias.reshape(shape), weight=self.weight,
            reduction=self.reduction, ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing, options=self.options, z_loss=self.z_loss,
            softcap=self.softcap, temperature=self.temperature, normalizer=normalizer,
        )  # fmt: skip

    def extra_repr(self) -> str:
        linear, names = self.linear, ("out_features", "reduction", "ignore_index")
        names += ("label_smoothing", "options", "z_loss", "softcap", "temperature")
        rest = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        layer = f"in_features={linear.in_features}, num_classes={self.num_classes}"
        return f"{layer}, bias={linear.bias is not None}, {rest}"


class DiceLoss(_Loss):
    """Dice loss of two regions; see :func:`lossops.functional.dice_loss`.

    Args:
        input_form: "logits" or "probs".
        smooth: s, above 0.
        reduction: "none", "mean", "sum" or "sample".
    """

    __constants__ = ["input_form", "smooth", "reduction"]

    def __init__(
        self, input_form: str = "logits", smooth: float = 1.0, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction=reduction)
        self.input_form = input_form
        self.smooth = smooth

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.dice_loss(
            input, target, input_form=self.input_form, smooth=self.smooth,
            reduction=self.reduction, weight=weight,
        )  # fmt: skip


class TverskyLoss(_Loss):
    """Tversky loss of two regions; see :func:`lossops.functional.tversky_loss`.

    Args:
        alpha: α ≥ 0, the weight of false positives.
        beta: β ≥ 0, the weight of false negatives.
        input_form: "logits" or "probs".
        smooth: s, above 0.
        reduction: "none", "mean", "sum" or "sample".
    """

    __constants__ = ["alpha", "beta", "input_form", "smooth", "reduction"]

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.5,
        input_form: str = "logits",
        smooth: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        self.alpha = alpha
        self.beta = beta
        self.input_form = input_form
        self.smooth = smooth

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.tversky_loss(
            input, target, self.alpha, self.beta, input_form=self.input_form, smooth=self.smooth,
            reduction=self.reduction, weight=weight,
        )  # fmt: skip
