"""Log-probabilities of classes, exported by :mod:`lossops.functional`."""

from __future__ import annotations

import torch
from torch import Tensor

from lossops.core import plain
from lossops.core.arguments import legacy_reduction, positive
from lossops.core.declaration import LossModule, described, public
from lossops.softmax.call import (
    any_dimension,
    check_class_weight,
    check_labels,
    check_scores,
    check_target,
    class_dimension,
    labels_along,
    softmax_loss,
)

__all__ = ["NLLLoss", "log_prob_of", "nll_loss"]

_NO_CLASS = -(2**63)  # an ignore_index that no label has, so that every label counts


@public()
@described(
    kernel="cross_entropy", formula="-w_y x_y, x log-probabilities",
    samples=(
        {"input": "log_probs"},
        {
            "kwargs": {"ignore_index": 1}, "input": "log_probs", "ignored": True,
            "per_class": "weight",
        },
    ),
    source="Fisher, On the Mathematical Foundations of Theoretical Statistics, 1922",
)  # fmt: skip
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


class NLLLoss(LossModule, torch.nn.NLLLoss, function=nll_loss):
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


@public(temperature=positive)
@described(
    kernel="cross_entropy", formula="log q_y", sign=-1.0,
    samples=({}, {"kwargs": {"temperature": 2.0}}),
    source="Williams, Simple Statistical Gradient-Following Algorithms, 1992",
)  # fmt: skip
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
    check_scores("log_prob_of", logits)
    check_target("log_prob_of", logits, index)
    dim = any_dimension("log_prob_of", logits, dim)
    index = labels_along("log_prob_of", logits, index, dim)
    found = softmax_loss(
        "log_prob_of", "cross_entropy", logits, index, dim=dim, reduction="none",
        ignore_index=_NO_CLASS, temperature=temperature, per_row=(False, return_entropy, False),
    )  # fmt: skip
    return (-found[0], found[1]) if return_entropy else -found[0]
