"""Losses with a margin; public as part of :mod:`lossops.functional`."""

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
from lossops.core.overrides import handle, overridden
from lossops.core.unfused import composed, difference, floating, has_kernels, mean_of_samples
from lossops.elementwise import reference
from lossops.elementwise.call import broadcast_loss
from lossops.elementwise.probabilities import binary_cross_entropy_with_logits

__all__ = [
    "hinge_embedding_loss",
    "margin_ranking_loss",
    "multilabel_soft_margin_loss",
    "soft_margin_loss",
]


def soft_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Logistic loss of a signed label: ``w log(1 + exp(-y x))``.

    Args:
        input: x, any shape.
        target: y, 1 or -1, of a shape that broadcasts with the input's.
        size_average, reduce: deprecated, see ``reduction``.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.
        weight: w, the shape of the input. A mean still divides by the number of elements.

    Returns:
        The loss, of input's dtype: a scalar, or a tensor of the broadcast shape for "none", of
        shape (B,) for "sample".

    Raises:
        ValueError: if ``reduction`` is none of these, or ``weight`` has another shape than input.
        RuntimeError: if the shapes do not broadcast.

    Follows :func:`torch.nn.functional.soft_margin_loss`, but does not overflow: where y x is very
    negative it is -y x, and torch's is infinite.

    Example:
        >>> import torch, lossops.functional as F
        >>> x, y = torch.tensor([0.0, 3.0]), torch.tensor([1.0, -1.0])
        >>> F.soft_margin_loss(x, y, reduction="none")
        tensor([0.6931, 3.0486])
    """
    if overridden(input, target, weight):
        return handle(
            soft_margin_loss, (input, target, weight), input, target, size_average=size_average,
            reduce=reduce, reduction=reduction, weight=weight,
        )  # fmt: skip
    reduction = legacy_reduction(size_average, reduce, reduction)
    require_tensors("soft_margin_loss", input=input, target=target)
    target = _label_like(input, target)
    return broadcast_loss("soft_margin", input, target, weight, reduction)


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
    r"""Of a distance x: itself where y is 1, ``max(0, margin - x)`` where y is -1.

    Args:
        input: x, a distance of two embeddings, any shape.
        target: y, 1 for a pair that belongs together, -1 for one that does not; of a shape that
            broadcasts with the input's.
        margin: how far apart the latter should be.
        size_average, reduce: deprecated, see ``reduction``.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.
        weight: w, the shape of the input. A mean still divides by the number of elements.

    Returns:
        The loss, of input's dtype: a scalar, or a tensor of the broadcast shape for "none", of
        shape (B,) for "sample".

    Raises:
        ValueError: if ``reduction`` is none of these, or ``weight`` has another shape than input.
        TypeError: if ``margin`` is not a number.

    Follows :func:`torch.nn.functional.hinge_embedding_loss`, also in that other labels than 1 and
    -1 give the sum of both; but infinite ones and NaN give NaN.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.hinge_embedding_loss(
        ...     torch.tensor([0.3, 0.3]), torch.tensor([1, -1]), reduction="none")
        tensor([0.3000, 0.7000])
    """
    if overridden(input, target, weight):
        return handle(
            hinge_embedding_loss, (input, target, weight), input, target, margin=margin,
            size_average=size_average, reduce=reduce, reduction=reduction, weight=weight,
        )  # fmt: skip
    reduction = legacy_reduction(size_average, reduce, reduction)
    require_tensors("hinge_embedding_loss", input=input, target=target)
    target = _label_like(input, target)
    margin = defined("hinge_embedding_loss", "margin", margin)
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
    r"""Whether x1 ranks above x2 by a margin: ``max(0, margin - y (x1 - x2))``.

    The difference of the two is a tensor of its own; what comes after it is one pass.

    Args:
        input1, input2: x1 and x2, of shapes that broadcast.
        target: y, 1 where x1 should rank higher, -1 where x2 should.
        margin: by how much.
        size_average, reduce: deprecated, see ``reduction``.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.
        weight: w, the shape of x1 - x2. A mean still divides by the number of elements.

    Returns:
        The loss: a scalar, or a tensor of the broadcast shape for "none", of shape (B,) for
        "sample".

    Raises:
        ValueError: if ``reduction`` is none of these, or ``weight`` has another shape than x1 - x2.
        RuntimeError: if the tensors do not have the same number of dimensions, or do not broadcast.
        TypeError: if ``margin`` is not a number.

    Follows :func:`torch.nn.functional.margin_ranking_loss`.

    Example:
        >>> import torch, lossops.functional as F
        >>> x1, x2 = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])
        >>> F.margin_ranking_loss(x1, x2, torch.tensor([1.0, 1.0]), reduction="none")
        tensor([0., 1.])
    """
    if overridden(input1, input2, target, weight):
        return handle(
            margin_ranking_loss, (input1, input2, target, weight), input1, input2, target,
            margin=margin, size_average=size_average, reduce=reduce, reduction=reduction,
            weight=weight,
        )  # fmt: skip
    reduction = legacy_reduction(size_average, reduce, reduction)
    check_reduction(reduction)
    require_tensors("margin_ranking_loss", input1=input1, input2=input2, target=target)
    if not input1.dim() == input2.dim() == target.dim():
        raise RuntimeError(
            "margin_ranking_loss : All input tensors should have same dimension but got sizes: "
            f"input1: {input1.size()}, input2: {input2.size()}, target: {target.size()} "
        )
    margin = defined("margin_ranking_loss", "margin", margin)
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


def multilabel_soft_margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Binary cross entropy of logits, the mean over the classes of a row.

    Args:
        input: x, logits of shape (…, C).
        target: y, between 0 and 1, of the shape of input.
        weight: a number per class, of shape (C), or of one that broadcasts to the input's.
        size_average, reduce: deprecated, see ``reduction``.
        reduction: "none", "mean", "sum" or "sample", of the numbers per row.

    Returns:
        The loss: a scalar, or for "none" a number per row.

    Raises:
        ValueError: if ``reduction`` is none of these, or target does not broadcast to the shape of
            input.
        NotImplementedError: if the tensors are not floating point.

    Follows :func:`torch.nn.functional.multilabel_soft_margin_loss`.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.multilabel_soft_margin_loss(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 1.0]]))
        tensor(0.4100)
    """
    if overridden(input, target, weight):
        return handle(
            multilabel_soft_margin_loss, (input, target, weight), input, target, weight=weight,
            size_average=size_average, reduce=reduce, reduction=reduction,
        )  # fmt: skip
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
    if input.device.type == "cpu" and autocasts("cpu"):  # which does not widen torch's there
        loss = loss.to(torch.promote_types(input.dtype, target.dtype))
    return loss


def _label_like(input: Tensor, target: Tensor) -> Tensor:
    """Labels of another floating dtype in the input's, which the loss has, as in torch."""
    both = input.is_floating_point() and target.is_floating_point()
    return target.to(input.dtype) if both else target
