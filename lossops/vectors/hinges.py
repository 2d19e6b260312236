"""Hinge losses over the class scores of a row."""

from __future__ import annotations

import torch
from torch import Tensor

from lossops.core import plain
from lossops.core.arguments import check_reduction, defined, legacy_reduction, require_tensors
from lossops.core.declaration import LossModule, described, public
from lossops.vectors.call import vectors_loss

__all__ = [
    "MultiLabelMarginLoss",
    "MultiMarginLoss",
    "multi_margin_loss",
    "multilabel_margin_loss",
]


@public(margin=defined)
@described(
    kernels=("multi_margin", "multi_margin_squared"),
    formula="w_y Σ_(c ≠ y) max(0, m - x_y + x_c)^p / C",
    vectors=1, samples=({}, {"p": 2, "margin": 0.5}), given="index",
    size="value and 1",
)  # fmt: skip
def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Multi-class hinge loss: ``w_y Σ_(c ≠ y) max(0, margin - x_y + x_c)^p / C``.

    Use it to train a classifier for a margin between scores instead of for probabilities.

    Args:
        input: x, scores of shape (C) or (N, C).
        target: y, class indices (int64) of shape () or (N).
        p: 1 or 2.
        margin: the margin by which the label's score should exceed all other scores.
        weight: w, a weight per class, of shape (C).
        size_average, reduce: deprecated, see ``reduction``.
        reduction: "none", "mean", "sum" or "sample". A mean divides by the number of rows.

    Returns:
        The loss, of input's dtype: a scalar, or for "none" a tensor of the shape of the target.

    Raises:
        ValueError: if ``p`` is neither 1 nor 2, or ``reduction`` is unknown.
        RuntimeError: for mismatched shapes or dtypes, or, on the CPU, a label out of range. On a
            GPU the loss of its row is NaN.

    Follows :func:`torch.nn.functional.multi_margin_loss`, which cannot be differentiated twice;
    Crammer and Singer, On the Algorithmic Implementation of Multiclass Kernel-based Vector
    Machines, 2001.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.multi_margin_loss(torch.tensor([[0.5, 0.0, 1.0]]), torch.tensor([2]))
        tensor(0.1667)
    """
    if size_average is reduce is weight is None:
        loss = plain.multi_margin_loss(input, target, p, margin, reduction)
        if loss is not None:
            return loss
    reduction = legacy_reduction(size_average, reduce, reduction)
    check_reduction(reduction)
    if p not in (1, 2):
        raise ValueError("only p == 1 and p == 2 supported")
    if weight is not None and weight.dim() != 1:
        raise ValueError("weight must be one-dimensional")
    _check_rows("multi_margin_loss", input, target)
    rows = 1 if input.dim() < 2 else input.shape[0]
    if target.dim() > 1 or target.numel() != rows:
        raise RuntimeError(
            f"inconsistent target size, expected {rows} labels but got {tuple(target.shape)}"
        )
    classes = input.shape[-1] if input.dim() else 1
    if weight is not None and weight.numel() != classes:
        raise RuntimeError(
            f"inconsistent weight size, expected {classes} but got {tuple(weight.shape)}"
        )
    label, row_weight = target, None
    if input.dim() != 2 or label.dim() != 1:
        label = label.reshape(() if label.dim() == 0 else (rows,))
        input = input.reshape(*label.shape, classes)
    if weight is not None:
        inside = (label >= 0) & (label < classes)
        row_weight = weight.to(input.dtype)[torch.where(inside, label, 0)]
    return vectors_loss(
        "multi_margin_loss", "multi_margin" if p == 1 else "multi_margin_squared",
        (input,), reduction, (margin,), label, row_weight,
    )  # fmt: skip


class MultiMarginLoss(LossModule, torch.nn.MultiMarginLoss, function=multi_margin_loss):
    """Multi-class hinge loss; see :func:`lossops.functional.multi_margin_loss`."""


@public()
@described(
    kernels=("multilabel_margin",),
    formula="Σ_(y in labels) Σ_(c in others) max(0, 1 - x_y + x_c) / C", vectors=1, given="list",
    size="value and 1",
    compiles=False,  # torch's loss allocates all pairs: 64 GiB for 16384 rows of 1024
)  # fmt: skip
def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Multi-label hinge loss: ``Σ_(y in labels) Σ_(c in others) max(0, 1 - x_y + x_c) / C``.

    Use it if a sample has several labels, and each should outscore all other classes by a margin.

    All pairs of a label and another class contribute, but they are never stored.

    Args:
        input: x, scores of shape (C) or (N, C).
        target: class indices (int64) of the shape of input. The labels of a row are the indices
            before its first -1.
        size_average, reduce: deprecated, see ``reduction``.
        reduction: "none", "mean", "sum" or "sample". A mean divides by the number of rows.

    Returns:
        The loss, of input's dtype: a scalar, or for "none" a number per row.

    Raises:
        ValueError: if ``reduction`` is unknown.
        RuntimeError: for mismatched shapes or dtypes, for more than 1.7 million classes on a GPU,
            or, on the CPU, for a number that is neither a class nor -1. On a GPU such a number
            among the labels makes the loss of its row NaN.

    Follows :func:`torch.nn.functional.multilabel_margin_loss`, which cannot be differentiated
    twice.

    Example:
        >>> import torch, lossops.functional as F
        >>> x = torch.tensor([[0.1, 0.2, 0.4, 0.8]])
        >>> F.multilabel_margin_loss(x, torch.tensor([[3, 0, -1, 1]]))
        tensor(0.8500)
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    check_reduction(reduction)
    _check_rows("multilabel_margin_loss", input, target)
    same = target.shape == input.shape
    if not same and not (max(input.dim(), target.dim()) < 2 and target.numel() == input.numel()):
        raise RuntimeError(
            f"inconsistent target size: {tuple(target.shape)} for input of size: "
            f"{tuple(input.shape)}"
        )
    if not same or input.dim() == 0:
        target = target.reshape(-1)
        input = input.reshape(target.shape)
    return vectors_loss(
        "multilabel_margin_loss", "multilabel_margin", (input,), reduction, label=target
    )


class MultiLabelMarginLoss(
    LossModule, torch.nn.MultiLabelMarginLoss, function=multilabel_margin_loss
):
    """Multi-label hinge loss; see :func:`lossops.functional.multilabel_margin_loss`."""


def _check_rows(function: str, input: Tensor, target: Tensor) -> None:
    require_tensors(function, input=input, target=target)
    if input.dim() > 2 or (input.dim() and input.shape[-1] == 0):
        raise RuntimeError(
            "Expected non-empty vector or matrix with optional 0-dim batch size, but got: "
            f"{tuple(input.shape)}"
        )
    if not input.is_floating_point():
        raise RuntimeError(f"{function}(): input should be floating point, got {input.dtype}")
    if target.dtype != torch.int64:
        raise RuntimeError(f"{function}(): target should be int64, got {target.dtype}")
