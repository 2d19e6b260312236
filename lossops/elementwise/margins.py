"""Margin-based losses, exported by :mod:`lossops.functional`."""

from __future__ import annotations

import torch
from torch import Tensor

from lossops.core.arguments import (
    autocasts,
    check_reduction,
    defined,
    legacy_reduction,
    require_tensors,
)
from lossops.core.declaration import LossModule, described, public
from lossops.core.unfused import composed, difference, floating, has_kernels, mean_of_samples
from lossops.elementwise import reference
from lossops.elementwise.call import broadcast_loss
from lossops.elementwise.logits import binary_cross_entropy_with_logits

__all__ = [
    "HingeEmbeddingLoss",
    "MarginRankingLoss",
    "MultiLabelSoftMarginLoss",
    "SoftMarginLoss",
    "hinge_embedding_loss",
    "margin_ranking_loss",
    "multilabel_soft_margin_loss",
    "soft_margin_loss",
]


@public()
@described(
    kernel="soft_margin", formula="log(1 + exp(-x y))",
    domains=("number", "sign"), other_shapes="broadcasts",
    source="Cox, The Regression Analysis of Binary Sequences, 1958",
)  # fmt: skip
def soft_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Logistic loss of labels 1 and -1: ``w log(1 + exp(-y x))``.

    Use it for binary classification when the labels are 1 and -1 instead of 1 and 0.

    Args:
        input: x, the scores, of any shape.
        target: y, 1 or -1, of a shape that broadcasts with ``input``.
        size_average, reduce: deprecated, see ``reduction``.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.
        weight: w, of the same shape as ``input``. A mean still divides by the number of elements.

    Returns:
        The loss, of the dtype of ``input``: a scalar, or a tensor of the broadcast shape for
        "none", of shape (B,) for "sample".

    Raises:
        ValueError: if ``reduction`` is not one of these, or ``weight`` does not have the shape of
            ``input``.
        RuntimeError: if the shapes do not broadcast.

    Follows :func:`torch.nn.functional.soft_margin_loss`, but does not overflow: where y x is very
    negative, the loss is -y x, whereas torch's is infinite.

    Example:
        >>> import torch, lossops.functional as F
        >>> x, y = torch.tensor([0.0, 3.0]), torch.tensor([1.0, -1.0])
        >>> F.soft_margin_loss(x, y, reduction="none")
        tensor([0.6931, 3.0486])
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    require_tensors("soft_margin_loss", input=input, target=target)
    target = _label_like(input, target)
    return broadcast_loss("soft_margin", input, target, weight, reduction)


class SoftMarginLoss(LossModule, torch.nn.SoftMarginLoss, function=soft_margin_loss):
    """Logistic loss of labels 1 and -1; see :func:`lossops.functional.soft_margin_loss`."""


@public(margin=defined)
@described(
    kernel="hinge_embedding", formula="x where y is 1, max(0, m - x) where it is -1",
    samples=({"margin": 1.0}, {"margin": 0.3}), differentiable=1,
    domains=("distance", "sign"), other_shapes="broadcasts", takes_integers=True,
    source="Hadsell, Chopra and LeCun, Learning an Invariant Mapping, 2006",
)  # fmt: skip
def hinge_embedding_loss(
    input: Tensor,
    target: Tensor,
    margin: float = 1.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Hinge embedding loss: ``x`` where y is 1, ``max(0, margin - x)`` where y is -1.

    Use it to learn embeddings from pairs that are labelled as similar or dissimilar.

    Args:
        input: x, the distance between two embeddings, of any shape.
        target: y, 1 for a similar pair and -1 for a dissimilar pair, of a shape that broadcasts
            with that of ``input``.
        margin: the distance beyond which a dissimilar pair has loss 0.
        size_average, reduce: deprecated, see ``reduction``.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.
        weight: w, of the same shape as ``input``. A mean still divides by the number of elements.

    Returns:
        The loss, of the dtype of ``input``: a scalar, or a tensor of the broadcast shape for
        "none", of shape (B,) for "sample".

    Raises:
        ValueError: if ``reduction`` is not one of these, or ``weight`` does not have the shape of
            ``input``.
        RuntimeError: if the shapes do not broadcast, or the tensors are on different devices.
        TypeError: if ``margin`` is not a number.

    Follows :func:`torch.nn.functional.hinge_embedding_loss`, including the sum of both branches for
    targets other than 1 and -1. Infinite and NaN targets, however, give NaN.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.hinge_embedding_loss(
        ...     torch.tensor([0.3, 0.3]), torch.tensor([1, -1]), reduction="none")
        tensor([0.3000, 0.7000])
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    require_tensors("hinge_embedding_loss", input=input, target=target)
    target = _label_like(input, target)
    if weight is not None:
        input = floating(input)
    if not has_kernels(input):
        return composed(
            "hinge_embedding_loss",
            lambda x: reference.FORMULAS["hinge_embedding"](x, target, margin),
            (input,),
            reduction,
        )
    return broadcast_loss("hinge_embedding", input, target, weight, reduction, margin)


class HingeEmbeddingLoss(LossModule, torch.nn.HingeEmbeddingLoss, function=hinge_embedding_loss):
    """Hinge loss of a distance; see :func:`lossops.functional.hinge_embedding_loss`."""


@public(margin=defined)
@described(
    kernel="margin_ranking", formula="max(0, m - y (x₁ - x₂))",
    samples=({"margin": 0.0}, {"margin": 0.5}), takes_a_difference=True,
    domains=("margin", "sign"), other_shapes="broadcasts", slope_without_input=True,
    source="Herbrich, Graepel and Obermayer, Large Margin Rank Boundaries, 2000",
)  # fmt: skip
def margin_ranking_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Margin ranking loss of two scores: ``max(0, margin - y (x1 - x2))``.

    Use it to learn a ranking from pairs of which one should score higher than the other.

    The difference x1 - x2 is materialised as a tensor; the rest is one fused pass.

    Args:
        input1, input2: the scores x1 and x2, of shapes that broadcast.
        target: y, 1 where x1 should rank higher, -1 where x2 should.
        margin: the difference of the scores beyond which a correctly ranked pair has loss 0.
        size_average, reduce: deprecated, see ``reduction``.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.
        weight: w, of the shape of x1 - x2. A mean still divides by the number of elements.

    Returns:
        The loss: a scalar, or a tensor of the broadcast shape for "none", of shape (B,) for
        "sample".

    Raises:
        ValueError: if ``reduction`` is not one of these, or ``weight`` does not have the shape of
            x1 - x2.
        RuntimeError: if the tensors do not have the same number of dimensions, or do not broadcast.
        TypeError: if ``margin`` is not a number.

    Follows :func:`torch.nn.functional.margin_ranking_loss`.

    Example:
        >>> import torch, lossops.functional as F
        >>> x1, x2 = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])
        >>> F.margin_ranking_loss(x1, x2, torch.tensor([1.0, 1.0]), reduction="none")
        tensor([0., 1.])
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    check_reduction(reduction)
    require_tensors("margin_ranking_loss", input1=input1, input2=input2, target=target)
    if not input1.dim() == input2.dim() == target.dim():
        raise RuntimeError(
            "margin_ranking_loss : All input tensors should have same dimension but got sizes: "
            f"input1: {input1.size()}, input2: {input2.size()}, target: {target.size()} "
        )
    if weight is not None:
        input1 = floating(input1, input2)
    if has_kernels(input1, input2):
        apart, dtype = difference(input1, input2)
        dtype = torch.promote_types(dtype, target.dtype)
        return broadcast_loss("margin_ranking", apart, target, weight, reduction, margin).to(dtype)
    return composed(
        "margin_ranking_loss",
        lambda x1, x2, y: reference.FORMULAS["margin_ranking"](x1 - x2, y, margin),
        (input1, input2, target),
        reduction,
    )


class MarginRankingLoss(LossModule, torch.nn.MarginRankingLoss, function=margin_ranking_loss):
    """Ranking loss of two scores; see :func:`lossops.functional.margin_ranking_loss`."""


@public()
def multilabel_soft_margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Binary cross entropy of logits, averaged over the classes of each row.

    Use it for multi-label classification, where a sample may belong to several classes at once.

    Args:
        input: x, the logits, of shape (…, C).
        target: y, between 0 and 1, of the same shape as ``input`` or broadcastable to it.
        weight: one weight per class, of shape (C), or of a shape that broadcasts to ``input``.
        size_average, reduce: deprecated, see ``reduction``.
        reduction: "none", "mean", "sum" or "sample", applied to the losses of the rows.

    Returns:
        The loss: a scalar, or one value per row for "none", of shape (B,) for "sample".

    Raises:
        ValueError: if ``reduction`` is not one of these, or ``target`` does not broadcast to the
            shape of ``input``.
        NotImplementedError: if the tensors are not floating point.

    Follows :func:`torch.nn.functional.multilabel_soft_margin_loss`.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.multilabel_soft_margin_loss(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 1.0]]))
        tensor(0.4100)
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    check_reduction(reduction)
    require_tensors("multilabel_soft_margin_loss", input=input, target=target)
    if input.dim() == 0:
        raise IndexError("multilabel_soft_margin_loss(): input should have a dimension of classes")
    if target.shape != input.shape:
        if torch.broadcast_shapes(input.shape, target.shape) != input.shape:
            raise ValueError(
                "multilabel_soft_margin_loss(): target should have the shape of input, "
                f"{tuple(input.shape)}, or broadcast to it, got {tuple(target.shape)}"
            )
        target = target.expand(input.shape)
    each = "none" if reduction == "sample" else reduction
    loss = binary_cross_entropy_with_logits(input, target, weight, reduction=each)
    if each == "sum":
        loss = loss / input.shape[-1]
    elif each == "none":
        loss = loss.mean(-1)
        if reduction == "sample":
            loss = mean_of_samples("multilabel_soft_margin_loss", loss)
    if input.device.type == "cpu" and autocasts("cpu"):  # CPU autocast does not widen torch's loss
        loss = loss.to(torch.promote_types(input.dtype, target.dtype))
    return loss


class MultiLabelSoftMarginLoss(
    LossModule, torch.nn.MultiLabelSoftMarginLoss, function=multilabel_soft_margin_loss
):
    """Binary cross entropy over the classes; see
    :func:`lossops.functional.multilabel_soft_margin_loss`."""


def _label_like(input: Tensor, target: Tensor) -> Tensor:
    """Casts floating-point labels to the dtype of ``input``, so that the loss has that dtype, as in
    torch."""
    both = input.is_floating_point() and target.is_floating_point()
    return target.to(input.dtype) if both else target
