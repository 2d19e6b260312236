"""Losses of the overlap of two regions; public as part of :mod:`lossops.functional`."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.modules.loss import _Loss

from lossops.core.arguments import not_negative, positive, require_tensors
from lossops.core.declaration import LossModule, described, public
from lossops.core.unfused import composed
from lossops.vectors.call import vectors_loss
from lossops.vectors.reference import tversky

__all__ = [
    "DiceLoss",
    "TverskyLoss",
    "dice_loss",
    "tversky_loss",
]


@public(smooth=positive)
@described(
    kernels=("tversky_of_logits", "tversky"),
    formula="1 - (2 Σ p y + s) / (Σ p + Σ y + s)", vectors=1, given="mask",
)  # fmt: skip
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

    Use it for segmentation if the foreground is small compared with the background.

    It is the Tversky loss with α = β = ½ and smoothing s/2; see :func:`tversky_loss`.

    Args:
        input: logits, or probabilities p, of shape (N, …) or (N, C, …, …).
        target: y, between 0 and 1, of the shape of input. A mask may be integer or bool.
        input_form: "logits", which means p = sigmoid(input), or "probs".
        smooth: s, above 0, which makes the loss of two empty regions 0.
        reduction: "none", "mean", "sum" or "sample", over the losses of the regions.
        weight: w, of the shape of input: the weight of each element in every sum.

    Returns:
        The loss, of input's dtype: a scalar, or for "none" a tensor of shape (N) or (N, C).

    Raises:
        ValueError: if the shapes differ, ``input_form`` or ``reduction`` is unknown, or ``smooth``
            is not above 0.
        TypeError: if ``smooth`` is not a number, or input, target or weight is not a tensor.
        NotImplementedError: if input is not floating point.

    Source: Milletari, Navab and Ahmadi, V-Net, 2016, without the squares. torch has no such loss.

    Example:
        >>> import torch, lossops.functional as F
        >>> p, y = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[1, 0, 0]])
        >>> F.dice_loss(p, y, input_form="probs")
        tensor(0.2500)
    """
    return _overlap(
        "dice_loss", input, target, 0.5, 0.5, input_form, 0.5 * smooth, reduction, weight
    )


class DiceLoss(LossModule, _Loss, function=dice_loss):
    """Dice loss of two regions; see :func:`lossops.functional.dice_loss`.

    Args:
        input_form: "logits" or "probs".
        smooth: s, above 0.
        reduction: "none", "mean", "sum" or "sample".
    """

    def __init__(
        self, input_form: str = "logits", smooth: float = 1.0, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction=reduction)
        self.input_form = input_form
        self.smooth = smooth


@public(alpha=not_negative, beta=not_negative, smooth=positive)
@described(
    kernels=("tversky_of_logits", "tversky"),
    formula="1 - (TP + s) / (TP + α FP + β FN + s)", vectors=1, given="mask",
    samples=({"alpha": 0.3, "beta": 0.7}, {"alpha": 1.0, "beta": 0.5, "input_form": "probs"}),
)  # fmt: skip
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

    Use it for segmentation if false positives and false negatives should cost differently.

    TP = Σ p y, FP = Σ p (1 - y), FN = Σ (1 - p) y. α = β = ½ gives the Dice loss, α = β = 1 the
    Jaccard loss. There is one region per sample or, if the input has more than two dimensions, per
    sample and class: the sums are over all dimensions after the first, or after the first two. The
    loss takes one pass over x and y; with ``weight``, it uses a formula in plain torch.

    Args:
        input: logits, or probabilities p, of shape (N, …) or (N, C, …, …).
        target: y, between 0 and 1, of the shape of input. A mask may be integer or bool.
        alpha: α ≥ 0, the weight of false positives.
        beta: β ≥ 0, the weight of false negatives.
        input_form: "logits", which means p = sigmoid(input), or "probs".
        smooth: s, above 0, which makes the loss of two empty regions 0.
        reduction: "none", "mean", "sum" or "sample", over the losses of the regions.
        weight: w, of the shape of input: the weight of each element in every sum.

    Returns:
        The loss, of input's dtype: a scalar, or for "none" a tensor of shape (N) or (N, C).

    Raises:
        ValueError: if the shapes differ, ``input_form`` or ``reduction`` is unknown, ``alpha`` or
            ``beta`` is negative, or ``smooth`` is not above 0.
        TypeError: if a hyperparameter is not a number, or input, target or weight is not a tensor.
        NotImplementedError: if input is not floating point.

    Source: Salehi, Erdogmus and Gholipour, Tversky Loss Function for Image Segmentation, 2017.
    torch has no such loss.

    Example:
        >>> import torch, lossops.functional as F
        >>> p, y = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[1, 0, 0]])
        >>> F.tversky_loss(p, y, alpha=0.3, beta=0.7, input_form="probs")
        tensor(0.1304)
    """
    return _overlap(
        "tversky_loss", input, target, alpha, beta, input_form, smooth, reduction, weight
    )


class TverskyLoss(LossModule, _Loss, function=tversky_loss):
    """Tversky loss of two regions; see :func:`lossops.functional.tversky_loss`.

    Args:
        alpha: α ≥ 0, the weight of false positives.
        beta: β ≥ 0, the weight of false negatives.
        input_form: "logits" or "probs".
        smooth: s, above 0.
        reduction: "none", "mean", "sum" or "sample".
    """

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
