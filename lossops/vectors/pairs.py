"""Losses of pairs and triplets of vectors; public as part of :mod:`lossops.functional`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lossops.core.arguments import (
    Range,
    check_reduction,
    defined,
    legacy_reduction,
    require_tensors,
)
from lossops.core.declaration import LossModule, described, public
from lossops.core.unfused import composed
from lossops.vectors import reference
from lossops.vectors.call import vectors_loss

KERNELS = {2.0: "triplet_margin", 1.0: "triplet_margin_l1"}  # keyed by the p of the norm
_MARGIN = Range(
    "greater than 0", lambda margin: margin > 0, (-1.0, 0.0),
    message="{name} must be {wanted}, got {value}",  # torch's message
)  # fmt: skip

__all__ = [
    "CosineEmbeddingLoss",
    "TripletMarginLoss",
    "TripletMarginWithDistanceLoss",
    "cosine_embedding_loss",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
]


@public(margin=defined)
@described(
    kernels=("cosine_embedding",),
    formula="1 - cos(x₁, x₂) where y is 1, max(0, cos(x₁, x₂) - m) where it is -1",
    vectors=2, samples=({}, {"margin": 0.3}), given="number",
    size="value and 1", gradient_is_a_difference=True,
)  # fmt: skip
def cosine_embedding_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Cosine embedding loss: a loss of the cosine similarity of two vectors.

    Use it to learn embeddings from similar and dissimilar pairs if only directions matter.

    It is ``1 - cos(x1, x2)`` where y is 1, and ``max(0, cos(x1, x2) - margin)`` where y is -1.

    Args:
        input1, input2: x1 and x2, of shape (N, D) or (D).
        target: y, 1 for similar and -1 for dissimilar pairs, of shape (N) or ().
        margin: the cosine that dissimilar pairs may have without loss, from -1 to 1.
        size_average, reduce: deprecated, see ``reduction``.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.

    Returns:
        The loss: a scalar, or for "none" a number per pair.

    Raises:
        ValueError: if ``reduction`` is unknown.
        RuntimeError: for mismatched shapes.
        TypeError: if ``margin`` is not a number.

    Follows :func:`torch.nn.functional.cosine_embedding_loss`.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.cosine_embedding_loss(torch.eye(2), torch.ones(2, 2), torch.tensor([1, -1]))
        tensor(0.5000)
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    check_reduction(reduction)
    require_tensors("cosine_embedding_loss", input1=input1, input2=input2, target=target)
    if target.dim() not in (0, 1):
        raise RuntimeError(
            "0D or 1D target tensor expected, multi-target not supported, got target of shape "
            f"{tuple(target.shape)}"
        )
    if input1.dim() != target.dim() + 1 or input2.dim() != target.dim() + 1:
        raise RuntimeError(
            f"{target.dim()}D target tensor expects {target.dim() + 1}D input tensors, but found "
            f"inputs with sizes {tuple(input1.shape)} and {tuple(input2.shape)}"
        )
    label = target if target.is_floating_point() else target.to(torch.float32)
    return vectors_loss(
        "cosine_embedding_loss", "cosine_embedding", (input1, input2), reduction, (margin,), label
    )


class CosineEmbeddingLoss(LossModule, torch.nn.CosineEmbeddingLoss, function=cosine_embedding_loss):
    """Loss of the cosine of two vectors; see :func:`lossops.functional.cosine_embedding_loss`."""


@public(margin=_MARGIN, p=defined, eps=defined)
@described(
    kernels=("triplet_margin", "triplet_margin_l1"),
    formula="max(0, ‖a - p‖ - ‖a - n‖ + m)",
    vectors=3, samples=({}, {"swap": True, "margin": 2.0}, {"p": 1.0}), size="norms",
)  # fmt: skip
def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Triplet margin loss: ``max(0, |a - p| - |a - n| + margin)``.

    Use it to learn embeddings in which an anchor is closer to its positive than to its negative.

    It runs in one pass for p = 1 and p = 2, and by a formula in plain torch for other norms.

    Args:
        anchor, positive, negative: a, p and n, of shape (N, D) or (D).
        margin: the margin by which the positive should be closer to the anchor, above 0.
        p: the order of the norm.
        eps: is added to the differences, so that the norm is differentiable at 0.
        swap: use \|p - n\| instead of \|a - n\| where it is smaller.
        size_average, reduce: deprecated, see ``reduction``.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.

    Returns:
        The loss: a scalar, or for "none" a number per triplet.

    Raises:
        ValueError: if ``margin`` is not above 0, or ``reduction`` is unknown.
        RuntimeError: if the tensors do not have the same number of dimensions.
        TypeError: if ``margin``, ``p`` or ``eps`` is not a number.

    Follows :func:`torch.nn.functional.triplet_margin_loss`. Balntas et al., Learning local feature
    descriptors with triplets and shallow convolutional neural networks, 2016.

    Example:
        >>> import torch, lossops.functional as F
        >>> a, p, n = torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]], [[1.0, 0.0]]])
        >>> F.triplet_margin_loss(a, p, n)
        tensor(5.0000)
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    check_reduction(reduction)
    _check_triplet("triplet_margin_loss", anchor, positive, negative)
    vectors, params = (anchor, positive, negative), (margin, float(bool(swap)), eps)
    if p in KERNELS and anchor.dim():
        return vectors_loss("triplet_margin_loss", KERNELS[p], vectors, reduction, params)

    def formula(*vectors: Tensor) -> Tensor:
        return reference.triplet_margin(vectors, None, *params, p)

    return composed("triplet_margin_loss", formula, vectors, reduction)


class TripletMarginLoss(LossModule, torch.nn.TripletMarginLoss, function=triplet_margin_loss):
    """Triplet margin loss of a p-norm; see :func:`lossops.functional.triplet_margin_loss`."""


@public(margin=_MARGIN)
def triplet_margin_with_distance_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    distance_function: Callable[[Tensor, Tensor], Tensor] | None = None,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
) -> Tensor:
    r"""Triplet margin loss of any distance: ``max(0, d(a, p) - d(a, n) + margin)``.

    Use it in place of :func:`triplet_margin_loss` if the distance is not a p-norm.

    With a ``distance_function``, it uses a formula in plain torch.

    Args:
        anchor, positive, negative: a, p and n, in the form that ``distance_function`` takes.
        distance_function: d, a function of two tensors, the Euclidean distance by default. Tensors
            in half precision are passed to it as float32.
        margin: the margin by which the positive should be closer to the anchor, above 0.
        swap: use d(p, n) instead of d(a, n) where it is smaller.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.

    Returns:
        The loss: a scalar, or for "none" a number per triplet.

    Raises:
        ValueError: if ``margin`` is not above 0, or ``reduction`` is unknown.
        RuntimeError: if the tensors do not have the same number of dimensions.
        TypeError: if ``margin`` is not a number.

    Follows :func:`torch.nn.functional.triplet_margin_with_distance_loss`.

    Example:
        >>> import torch, lossops.functional as F
        >>> def distance(x, y):
        ...     return 1 - torch.nn.functional.cosine_similarity(x, y)
        >>> a, p, n = torch.tensor([[[0.0, 1.0]], [[3.0, 4.0]], [[1.0, 0.0]]])
        >>> F.triplet_margin_with_distance_loss(a, p, n, distance_function=distance)
        tensor(0.2000)
    """
    check_reduction(reduction)
    _check_triplet("triplet_margin_with_distance_loss", anchor, positive, negative)
    if distance_function is None and anchor.dim():
        return vectors_loss(
            "triplet_margin_with_distance_loss", KERNELS[2.0], (anchor, positive, negative),
            reduction, (margin, float(bool(swap)), 1e-6),
            widens=anchor.device.type != "cpu",  # as in torch
        )  # fmt: skip
    distance = distance_function or torch.pairwise_distance

    def formula(*vectors: Tensor) -> Tensor:
        return reference.triplets(distance, vectors, margin, swap)

    return composed(
        "triplet_margin_with_distance_loss", formula, (anchor, positive, negative), reduction
    )


class TripletMarginWithDistanceLoss(
    LossModule, torch.nn.TripletMarginWithDistanceLoss, function=triplet_margin_with_distance_loss
):
    """Triplet margin loss of any distance; see
    :func:`lossops.functional.triplet_margin_with_distance_loss`."""


def _check_triplet(function, anchor, positive, negative) -> None:
    require_tensors(function, anchor=anchor, positive=positive, negative=negative)
    if not anchor.dim() == positive.dim() == negative.dim():
        raise RuntimeError(
            "The anchor, positive, and negative tensors are expected to have the same number of "
            f"dimensions, but got: anchor {anchor.dim()}D, positive {positive.dim()}D, and "
            f"negative {negative.dim()}D inputs"
        )
