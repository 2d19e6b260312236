"""Losses over rows of class scores; public as part of :mod:`lossops.functional`.

Optional per-row outputs (log-sum-exp, entropy, accuracy) come from the same pass as the loss.
``reduction`` works as for the elementwise losses, with rows in place of elements: "none" returns
one number per row, "sample" the mean over the rows of each sample of the batch.
"""

from __future__ import annotations

import math

from torch import Tensor

from lossops.core import plain
from lossops.core.arguments import defined, finite, legacy_reduction, number, number_on
from lossops.core.library import accumulator
from lossops.core.overrides import handle, overridden
from lossops.core.spread import whole_along
from lossops.softmax.call import (
    any_dimension,
    check_class_weight,
    check_labels,
    check_scores,
    check_smoothing,
    check_target,
    class_dimension,
    labels_along,
    softmax_loss,
)

__all__ = ["cross_entropy", "focal_loss", "log_prob_of", "nll_loss", "poly_loss"]


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
    if overridden(input, target, weight):
        return handle(
            cross_entropy, (input, target, weight), input, target, weight=weight,
            size_average=size_average, ignore_index=ignore_index, reduce=reduce,
            reduction=reduction, label_smoothing=label_smoothing, z_loss=z_loss, softcap=softcap,
            temperature=temperature, normalizer=normalizer, empty=empty, return_lse=return_lse,
            return_entropy=return_entropy, return_accuracy=return_accuracy, inplace=inplace,
        )  # fmt: skip
    reduction = legacy_reduction(size_average, reduce, reduction)
    label_smoothing = check_smoothing(label_smoothing)
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


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    normalizer: float | Tensor | None = None,
    empty: str = "nan",
) -> Tensor:
    r"""Negative log-likelihood: ``-w_y x_y``, for log-probabilities x and labels y.

    Use it when the model already returns log-probabilities; for logits, use :func:`cross_entropy`.

    Args:
        input: log-probabilities, of shape (C), (N, C) or (N, C, d1, …, dK).
        target: class indices (int64, int32 or uint8) of shape (), (N) or (N, d1, …, dK).
        weight: w, a weight per class, of shape (C).
        size_average, reduce: deprecated, see ``reduction``.
        ignore_index: a label to ignore. Its rows have loss and gradient 0 and do not count.
        reduction: "none", "mean", "sum" or "sample". A mean divides by the sum of the weights w_y.
        normalizer: a number, or a one-element tensor, that replaces the denominator of the mean.
        empty: the value of a mean over no labels: "nan", as in torch, or "zero".

    Returns:
        The loss, of input's dtype.

    Raises:
        The same exceptions as :func:`cross_entropy`.

    Follows :func:`torch.nn.functional.nll_loss`.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.nll_loss(torch.tensor([[-0.5, -0.9], [-2.0, -0.1]]), torch.tensor([0, 1]))
        tensor(0.3000)
    """
    if size_average is reduce is normalizer is None and empty == "nan":
        loss = plain.cross_entropy(input, target, weight, ignore_index, reduction, form="log_probs")
        if loss is not None:
            return loss
    if overridden(input, target, weight):
        return handle(
            nll_loss, (input, target, weight), input, target, weight=weight,
            size_average=size_average, ignore_index=ignore_index, reduce=reduce,
            reduction=reduction, normalizer=normalizer, empty=empty,
        )  # fmt: skip
    reduction = legacy_reduction(size_average, reduce, reduction)
    check_scores("nll_loss", input)
    check_target("nll_loss", input, target)
    if input.dim() == 0:
        raise ValueError("nll_loss(): expected 1 or more dimensions (got 0)")
    dim = class_dimension(input)
    target = check_labels(input, target, dim)
    check_class_weight("nll_loss", input, dim, weight)
    return softmax_loss(
        "nll_loss", "cross_entropy", input, target, dim=dim, reduction=reduction, form="log_probs",
        class_weight=weight, ignore_index=ignore_index, normalizer=normalizer, empty=empty,
    )[0]  # fmt: skip


def log_prob_of(
    logits: Tensor,
    index: Tensor,
    *,
    dim: int = -1,
    temperature: float = 1.0,
    return_entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""The log-probability of one class per row: ``log softmax(logits / T)[index]``.

    Use it for policy gradients, which need the log-probability of each sampled token.

    It does not materialise the tensor of all log-probabilities.

    Args:
        logits: a tensor of any shape, with the classes in dimension ``dim``.
        index: class indices (int64, int32 or uint8), of the shape of logits without ``dim``.
        dim: the class dimension.
        temperature: T > 0.
        return_entropy: also return the entropy of the distribution per row, differentiable.

    Returns:
        The log-probabilities, with the dtype of logits and the shape of index; or a tuple of them
        and the entropies, in float32 for half precision.

    Raises:
        ValueError: for mismatched shapes.
        RuntimeError: if index does not have one of these integer dtypes.
        IndexError: for an index out of range, on the CPU. On a GPU its result is NaN.

    Source: Williams, Simple Statistical Gradient-Following Algorithms, 1992. torch has no such
    function.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.log_prob_of(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
        tensor([-0.1269, -0.6931])
    """
    if overridden(logits, index):
        return handle(
            log_prob_of, (logits, index), logits, index, dim=dim, temperature=temperature,
            return_entropy=return_entropy,
        )  # fmt: skip
    check_scores("log_prob_of", logits)
    check_target("log_prob_of", logits, index)
    dim = any_dimension("log_prob_of", logits, dim)
    index = labels_along("log_prob_of", logits, index, dim)
    found = softmax_loss(
        "log_prob_of", "cross_entropy", logits, index, dim=dim, reduction="none",
        ignore_index=_NO_CLASS, temperature=temperature, per_row=(False, return_entropy, False),
    )  # fmt: skip
    return (-found[0], found[1]) if return_entropy else -found[0]


_NO_CLASS = -(2**63)  # an ignore_index that no label has, so that every label counts


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
    if overridden(input, target, alpha):
        return handle(
            focal_loss, (input, target, alpha), input, target, alpha=alpha, gamma=gamma,
            ignore_index=ignore_index, reduction=reduction, normalizer=normalizer,
        )  # fmt: skip
    gamma = number("focal_loss", "gamma", gamma)
    if not gamma >= 0:
        raise ValueError(f"focal_loss(): gamma should not be negative, got {gamma}")
    if gamma == math.inf:
        raise ValueError("focal_loss(): gamma should be finite, got inf")
    check_scores("focal_loss", input)
    weight = alpha
    if alpha is not None and not isinstance(alpha, Tensor):
        alpha = defined("focal_loss", "alpha", alpha)
        weight = number_on(input.device, alpha, accumulator(input.dtype))
    return _of_labels(
        "focal_loss", "focal", input, target, weight, (gamma,), ignore_index, reduction, normalizer
    )


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
    if overridden(input, target, weight):
        return handle(
            poly_loss, (input, target, weight), input, target, epsilon=epsilon, weight=weight,
            ignore_index=ignore_index, reduction=reduction, normalizer=normalizer,
        )  # fmt: skip
    epsilon = finite("poly_loss", "epsilon", epsilon)
    return _of_labels(
        "poly_loss", "poly", input, target, weight, (epsilon,), ignore_index, reduction, normalizer
    )


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
