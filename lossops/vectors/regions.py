"""Losses of regions that should overlap; public as part of :mod:`lossops.functional`."""

from __future__ import annotations

import math

from torch import Tensor

from lossops.core.arguments import number, require_tensors
from lossops.core.overrides import handle, overridden
from lossops.core.unfused import composed
from lossops.vectors.call import vectors_loss
from lossops.vectors.reference import tversky

__all__ = ["dice_loss", "tversky_loss"]


def dice_loss(
    input: Tensor,
    target: Tensor,
    *,
    input_form: str = "logits",
    smooth: float = 1.0,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""Dice loss of two regions: ``1 - (2 Σ p y + s) / (Σ p + Σ y + s)``.

    The Tversky loss with α = β = ½, of which the smoothing is s/2: :func:`tversky_loss` says more.

    Args:
        input: of shape (N, …) or (N, C, …, …); logits, or probabilities p.
        target: y, between 0 and 1, of the shape of input; a mask may hold integers or truth values.
        input_form: "logits", of which p is the sigmoid, or "probs".
        smooth: s, above 0: the loss of two empty regions is 0.
        reduction: "none", "mean", "sum" or "sample", of the numbers per region.
        weight: w, of the shape of input: how much an element counts in every sum.

    Returns:
        The loss, of input's dtype: a scalar, or for "none" of shape (N) or (N, C).

    Raises:
        ValueError: if the shapes differ, ``input_form`` or ``reduction`` is none of these, or
            ``smooth`` is not above 0.
        TypeError: if ``smooth`` is not a number, or the tensors are none.
        NotImplementedError: if input is not floating point.

    Source: Milletari, Navab and Ahmadi, V-Net, 2016, without the squares. torch has no such loss.

    Example:
        >>> import torch, lossops.functional as F
        >>> p, y = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[1, 0, 0]])
        >>> F.dice_loss(p, y, input_form="probs")
        tensor(0.2500)
    """
    if overridden(input, target, weight):
        return handle(
            dice_loss, (input, target, weight), input, target, input_form=input_form, smooth=smooth,
            reduction=reduction, weight=weight,
        )  # fmt: skip
    smooth = 0.5 * number("dice_loss", "smooth", smooth)
    return _overlap("dice_loss", input, target, 0.5, 0.5, input_form, smooth, reduction, weight)


def tversky_loss(
    input: Tensor,
    target: Tensor,
    alpha: float = 0.5,
    beta: float = 0.5,
    *,
    input_form: str = "logits",
    smooth: float = 1.0,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""Tversky loss of two regions: ``1 - (TP + s) / (TP + α FP + β FN + s)``.

    TP = Σ p y, FP = Σ p (1 - y), FN = Σ (1 - p) y. α = β = ½ gives the Dice loss, α = β = 1 the
    Jaccard loss. The sums are over all dimensions but the first, or the first two where there are
    more than two: a region per sample, or per sample and class.

    Args:
        input: of shape (N, …) or (N, C, …, …); logits, or probabilities p.
        target: y, between 0 and 1, of the shape of input; a mask may hold integers or truth values.
        alpha: α ≥ 0, of what is found and should not be.
        beta: β ≥ 0, of what should be found and is not.
        input_form: "logits", of which p is the sigmoid, or "probs".
        smooth: s, above 0: the loss of two empty regions is 0.
        reduction: "none", "mean", "sum" or "sample", of the numbers per region.
        weight: w, of the shape of input: how much an element counts in every sum.

    Returns:
        The loss, of input's dtype: a scalar, or for "none" of shape (N) or (N, C).

    Raises:
        ValueError: if the shapes differ, ``input_form`` or ``reduction`` is none of these,
            ``alpha`` or ``beta`` is negative, or ``smooth`` is not above 0.
        TypeError: if a hyperparameter is not a number, or the tensors are none.
        NotImplementedError: if input is not floating point.

    One pass over x and y; with ``weight`` a formula in plain torch. Source: Salehi, Erdogmus and
    Gholipour, Tversky Loss Function for Image Segmentation, 2017. torch has no such loss.

    Example:
        >>> import torch, lossops.functional as F
        >>> p, y = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[1, 0, 0]])
        >>> F.tversky_loss(p, y, alpha=0.3, beta=0.7, input_form="probs")
        tensor(0.1304)
    """
    if overridden(input, target, weight):
        return handle(
            tversky_loss, (input, target, weight), input, target, alpha=alpha, beta=beta,
            input_form=input_form, smooth=smooth, reduction=reduction, weight=weight,
        )  # fmt: skip
    alpha, beta, smooth = (
        number("tversky_loss", name, value)
        for name, value in (("alpha", alpha), ("beta", beta), ("smooth", smooth))
    )
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value < math.inf:
            raise ValueError(f"tversky_loss(): {name} should be 0 or more, and finite, got {value}")
    return _overlap(
        "tversky_loss", input, target, alpha, beta, input_form, smooth, reduction, weight
    )


def _overlap(function, input, target, alpha, beta, form, smooth, reduction, weight) -> Tensor:
    given = {"target": target} if weight is None else {"target": target, "weight": weight}
    require_tensors(function, input=input, **given)
    if not input.is_floating_point():
        raise NotImplementedError(
            f"{function}(): input should be floating point, got {input.dtype}"
        )
    for name, tensor in given.items():
        given[name] = tensor.to(input.dtype)
        if tensor.shape != input.shape:
            raise ValueError(
                f"{function}(): {name} should have the shape of input, {tuple(input.shape)}, "
                f"got {tuple(tensor.shape)}"
            )
    if input.dim() == 0:
        raise ValueError(f"{function}(): input should have a batch dimension, got shape ()")
    if form not in ("logits", "probs"):
        raise ValueError(f"{function}(): input_form should be logits or probs, got {form!r}")
    if not 0 < smooth < math.inf:
        raise ValueError(f"{function}(): smooth should be above 0, and finite, got {smooth}")
    kept = 2 if input.dim() > 2 else 1

    params, logits = (alpha, beta, smooth), form == "logits"
    shape = (*input.shape[:kept], math.prod(input.shape[kept:]))
    moving = tuple(tensor.reshape(shape) for tensor in (input, *given.values()))
    if weight is None:
        return vectors_loss(
            function, "tversky_of_logits" if logits else "tversky", moving, reduction, params
        )

    def formula(*vectors: Tensor) -> Tensor:
        return tversky(vectors, None, *params, logits)

    return composed(function, formula, moving, reduction)
