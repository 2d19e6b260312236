"""Losses over rows of class scores; public as part of :mod:`lossops.functional`.

Optional per-row outputs (log-sum-exp, entropy, accuracy) come from the same pass as the loss.
``reduction`` works as for the elementwise losses, with rows in place of elements: "none" returns
one number per row, "sample" the mean over the rows of each sample of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.loss import _WeightedLoss

from lossops.core import plain
from lossops.core.arguments import (
    defined,
    finite,
    legacy_reduction,
    not_negative,
    number_on,
    positive,
)
from lossops.core.declaration import LossModule, described, public
from lossops.core.library import accumulator
from lossops.core.spread import whole_along
from lossops.softmax.call import (
    SMOOTHING,
    SOFTCAP,
    check_class_weight,
    check_labels,
    check_scores,
    check_target,
    class_dimension,
    softmax_loss,
)

__all__ = [
    "CrossEntropyLoss",
    "FocalLoss",
    "PolyLoss",
    "cross_entropy",
    "focal_loss",
    "poly_loss",
]


@public(label_smoothing=SMOOTHING, z_loss=finite, softcap=SOFTCAP, temperature=positive)
@described(
    kernel="cross_entropy", formula="-Σ_c t_c log q_c, t_c = w_c((1 - ε)p_c + ε/C)",
    samples=(
        {}, {"kwargs": {"label_smoothing": 0.1}}, {"target": "probs"},
        {"kwargs": {"ignore_index": 2}, "ignored": True, "per_class": "weight"},
        {"kwargs": {"label_smoothing": 0.2}, "target": "probs", "per_class": "weight"},
        {"kwargs": {"z_loss": 1e-3}}, {"kwargs": {"softcap": 5.0, "temperature": 1.5}},
    ),
    source="Good, Rational Decisions, 1952",
)  # fmt: skip
def cross_entropy(
    input: Tensor,
    target: Tensor,
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
    normalizer: float | Tensor | None = None,
    empty: str = "nan",
    return_lse: bool = False,
    return_entropy: bool = False,
    return_accuracy: bool = False,
    inplace: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    r"""Cross entropy of logits: ``-Σ_c t_c log softmax(z)_c + ζ lse²``.

    Use it to train classifiers and language models on class indices or class probabilities.

    t_c = w_c ((1 - ε) p_c + ε/C), where p is the target distribution: the given probabilities, or 1
    for the class of a label and 0 for the others. z is the input, first soft-capped
    (``s tanh(z / s)``) and then divided by the temperature, if these are given.
    lse = log Σ_c exp z_c.

    Args:
        input: logits, of shape (C), (N, C) or (N, C, d1, …, dK). Strided input is read without a
            copy if a view can merge the dimensions before the classes into one, and also those
            after them.
        target: class indices (int64, int32 or uint8) of shape (), (N) or (N, d1, …, dK); or class
            probabilities, of the shape of input.
        weight: w, a weight per class, of shape (C). If it requires a gradient, the loss is computed
            by formulas in plain torch.
        size_average, reduce: deprecated, see ``reduction``.
        ignore_index: a label to ignore. Its rows have loss and gradient 0 and do not count in the
            mean. Not supported with class probabilities.
        reduction: "none", "mean", "sum" or "sample". With class indices, a mean divides by the sum
            of the weights w_y of the labels that count; with probabilities, by the number of rows.
        label_smoothing: ε, from 0 to 1.
        z_loss: ζ, the coefficient of lse². A mean divides this term by the same denominator.
        softcap: s > 0, the bound of the capped logits.
        temperature: the divisor of the logits, > 0.
        normalizer: a number, or a tensor with one element, that replaces the denominator of the
            mean, for example the number of tokens over all micro-batches and processes. Not
            differentiable.
        empty: the value of a mean over no labels: "nan", as in torch, or "zero".
        return_lse: also return lse per row, differentiable.
        return_entropy: also return the entropy of softmax(z) per row, differentiable.
        return_accuracy: also return, per row, 1 if no class has a higher logit than the label, and
            0 otherwise or if the row does not count. With class probabilities, the most likely
            class replaces the label; torch finds it in a separate pass.
        inplace: let the gradient overwrite the logits, so that a training step needs no additional
            memory of their size. The logits must not be a leaf and must not be used afterwards.
            backward can be called only once, on the loss alone. Under ``torch.compile``, and if no
            gradient is required, the logits are left unchanged.

    Returns:
        The loss, of input's dtype (float32 under autocast); or a tuple of the loss and, in this
        order, the requested ones of lse, entropy and accuracy, in float32 for half precision.

    Raises:
        ValueError: for mismatched shapes, or an unknown ``reduction`` or ``empty``.
        IndexError: for a label out of range, on the CPU. On a GPU, raising would require a device
            sync; the row's loss is NaN and its gradient 0 instead, unless
            :func:`lossops.label_checks` is on.
        RuntimeError: for a target or weight of the wrong shape or dtype, ``label_smoothing``
            outside [0, 1] (torch accepts negative values), or a non-negative
            ``ignore_index`` with probabilities.

    Infinite logits are treated as limits. A logit of -inf makes its class impossible. Logits of
    +inf, for which torch returns NaN, share the whole probability equally. In a row that is -inf
    everywhere, all classes are equally likely.

    Follows :func:`torch.nn.functional.cross_entropy`. z-loss: de Brébisson and Vincent, The Z-loss,
    2016; label smoothing: Szegedy et al., Rethinking the Inception Architecture, 2016.

    Example:
        >>> import torch, lossops.functional as F
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        >>> F.cross_entropy(logits, torch.tensor([0, 1]), reduction="none")
        tensor([0.1269, 0.6931])
        >>> loss, accuracy = F.cross_entropy(logits, torch.tensor([0, 1]), return_accuracy=True)
        >>> accuracy
        tensor([1., 1.])
    """
    of_rows = return_lse or return_entropy or return_accuracy
    if (
        size_average is reduce is normalizer is softcap is None
        and empty == "nan"
        and not (of_rows or inplace)
    ):
        loss = plain.cross_entropy(
            input, target, weight, ignore_index, reduction, label_smoothing, z_loss, temperature
        )
        if loss is not None:
            return loss
    reduction = legacy_reduction(size_average, reduce, reduction)
    check_scores("cross_entropy", input)
    check_target("cross_entropy", input, target)
    dim = class_dimension(input)
    soft = target.shape == input.shape
    if soft or input.dim() == 0:
        if not target.is_floating_point():
            name = str(target.dtype).removeprefix("torch.").replace("int64", "long").capitalize()
            raise RuntimeError(
                f"Expected floating point type for target with class probabilities, got {name}"
            )
        if ignore_index >= 0:
            raise RuntimeError("ignore_index is not supported for floating point target")
        check_class_weight("cross_entropy", input, dim, weight, "cross_entropy: ")
    else:
        target = check_labels(input, target, dim)
        check_class_weight("cross_entropy", input, dim, weight)
    hit = None
    if return_accuracy and soft and input.shape[dim]:  # before inplace overwrites the logits
        best = whole_along(dim, target.detach()).argmax(dim, keepdim=True)
        scores = whole_along(dim, input.detach())
        hit = scores.gather(dim, best).squeeze(dim) >= scores.amax(dim)
    found = softmax_loss(
        "cross_entropy", "cross_entropy", input, target, dim=dim, reduction=reduction,
        target_form="probs" if soft else "labels", class_weight=weight, ignore_index=ignore_index,
        temperature=temperature, softcap=softcap, label_smoothing=label_smoothing, z_loss=z_loss,
        normalizer=normalizer, empty=empty,
        per_row=(return_lse, return_entropy, return_accuracy and hit is None), in_place=inplace,
    )  # fmt: skip
    if hit is not None:
        found = (*found, hit.to(accumulator(input.dtype)))
    return found if len(found) > 1 else found[0]


class CrossEntropyLoss(LossModule, torch.nn.CrossEntropyLoss, function=cross_entropy):
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


@public(gamma=not_negative)
@described(
    kernel="focal", formula="-α_y (1 - q_y)^γ log q_y", parameter="gamma",
    samples=(
        {}, {"kwargs": {"gamma": 0.5}}, {"kwargs": {"gamma": 3.0}, "per_class": "alpha"},
        {"kwargs": {"alpha": 0.25, "ignore_index": 0}, "ignored": True},
    ),
    source="Lin et al., Focal Loss for Dense Object Detection, 2017",
)  # fmt: skip
def focal_loss(
    input: Tensor,
    target: Tensor,
    alpha: float | Tensor | None = None,
    gamma: float = 2.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Focal loss of a softmax: ``-α_y (1 - p_y)^γ log p_y``, p = softmax(input).

    Use it for imbalanced classes, so that easy examples do not dominate the gradient.

    Well-classified examples are down-weighted. For independent binary labels, use
    :func:`sigmoid_focal_loss`.

    Args:
        input: logits, of shape (C), (N, C) or (N, C, d1, …, dK).
        target: class indices (int64, int32 or uint8) of shape (), (N) or (N, d1, …, dK).
        alpha: α, one number for all classes or a tensor of shape (C).
        gamma: γ ≥ 0; 0 gives the cross entropy.
        ignore_index: a label to ignore. Its rows have loss and gradient 0 and do not count.
        reduction: "none", "mean", "sum" or "sample". A mean divides by the number of labels that
            count, independently of α.
        normalizer: a number, or a one-element tensor, that replaces the denominator of the mean.

    Returns:
        The loss, of input's dtype.

    Raises:
        The same exceptions as :func:`cross_entropy`, and ValueError if ``gamma`` is negative.

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017. torch has no such loss.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.focal_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor(0.0018)
    """
    check_scores("focal_loss", input)
    weight = alpha
    if alpha is not None and not isinstance(alpha, Tensor):
        alpha = defined("focal_loss", "alpha", alpha)
        weight = number_on(input.device, alpha, accumulator(input.dtype))
    return _of_labels(
        "focal_loss", "focal", input, target, weight, (gamma,), ignore_index, reduction, normalizer
    )


class FocalLoss(LossModule, _WeightedLoss, function=focal_loss):
    """Focal loss of a softmax; see :func:`lossops.functional.focal_loss`.

    Args:
        alpha: one number for all classes or a tensor of shape (C).
        gamma: γ ≥ 0.
        ignore_index: a label to ignore.
        reduction: "none", "mean", "sum" or "sample".
    """

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
        return focal_loss(
            input, target, alpha, self.gamma, self.ignore_index, self.reduction,
            normalizer=normalizer,
        )  # fmt: skip


@public(epsilon=finite)
@described(
    kernel="poly", formula="w_y (-log q_y + ε(1 - q_y))", parameter="epsilon",
    samples=(
        {}, {"kwargs": {"epsilon": -0.5}},
        {"kwargs": {"ignore_index": 0}, "ignored": True, "per_class": "weight"},
    ),
    source="Leng et al., PolyLoss, 2022",
)  # fmt: skip
def poly_loss(
    input: Tensor,
    target: Tensor,
    epsilon: float = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    *,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Poly-1 loss: ``w_y (-log p_y + ε (1 - p_y))``, p = softmax(input).

    Use it to tune how much samples with p_y near 1 count, compared with cross entropy.

    Args:
        input: logits, of shape (C), (N, C) or (N, C, d1, …, dK).
        target: class indices (int64, int32 or uint8) of shape (), (N) or (N, d1, …, dK).
        epsilon: ε, what is added to the first coefficient of cross entropy's series in 1 - p_y.
        weight: w, a number per class, of shape (C).
        ignore_index: a label whose rows have loss and gradient 0 and do not count.
        reduction: "none", "mean", "sum" or "sample". A mean divides by the sum of the weights w_y.
        normalizer: a number, or a tensor of one, in place of the mean's denominator.

    Returns:
        The loss, of input's dtype.

    Raises:
        As :func:`cross_entropy`.

    Source: Leng et al., PolyLoss, 2022. torch has no such loss.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.poly_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor(0.2461)
    """
    return _of_labels(
        "poly_loss", "poly", input, target, weight, (epsilon,), ignore_index, reduction, normalizer
    )


class PolyLoss(LossModule, _WeightedLoss, function=poly_loss):
    """Poly-1 loss; see :func:`lossops.functional.poly_loss`.

    Args:
        epsilon: ε.
        weight: a weight per class.
        ignore_index: a label to ignore.
        reduction: "none", "mean", "sum" or "sample".
    """

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


def _of_labels(
    function: str, loss: str, input, target, weight, params, ignore_index, reduction, normalizer
) -> Tensor:
    check_scores(function, input)
    check_target(function, input, target)
    if input.dim() == 0:
        raise ValueError(f"{function}(): expected 1 or more dimensions (got 0)")
    dim = class_dimension(input)
    target = check_labels(input, target, dim)
    if isinstance(weight, Tensor) and weight.dim() == 0:  # one number for all classes
        weight = weight.expand(input.shape[dim])
    check_class_weight(function, input, dim, weight)
    return softmax_loss(
        function, loss, input, target, dim=dim, reduction=reduction, class_weight=weight,
        ignore_index=ignore_index, own_params=params, normalizer=normalizer,
    )[0]  # fmt: skip
