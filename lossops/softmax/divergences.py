"""Losses between two distributions per row; public as part of :mod:`lossops.functional`."""

from __future__ import annotations

from torch import Tensor
from torch.nn.modules.loss import _Loss

from lossops.core.arguments import positive
from lossops.core.declaration import LossModule, described, public
from lossops.softmax.call import (
    any_dimension,
    check_form,
    check_scores,
    check_target,
    labels_along,
    softmax_loss,
)

__all__ = [
    "JSDivergenceLoss",
    "KLDivergenceLoss",
    "L1DistributionLoss",
    "SoftCrossEntropyLoss",
    "TotalVariationLoss",
    "js_divergence",
    "kl_divergence",
    "l1_distribution_loss",
    "soft_cross_entropy",
    "total_variation",
]


def _divergence(
    function, loss, input, target, input_form, target_form, dim, temperature, ignore_index,
    reduction, normalizer,
) -> Tensor:  # fmt: skip
    check_scores(function, input)
    check_target(function, input, target)
    dim = any_dimension(function, input, dim)
    form = check_form(function, "input_form", input_form)
    if not target.is_floating_point():
        if target_form not in (None, "labels"):
            raise ValueError(
                f"{function}(): a target of {target.dtype} holds class indices; target_form should "
                f"be 'labels' or left out, got {target_form!r}"
            )
        target = labels_along(function, input, target, dim)
        target_form = "labels"
    else:
        target_form = check_form(
            function, "target_form", form if target_form is None else target_form
        )
        check_scores(function, target)
        if target.shape != input.shape:
            raise ValueError(
                f"{function}(): target should have the shape of input, {tuple(input.shape)}, or be "
                f"class indices; got {tuple(target.shape)}"
            )
    if temperature != 1 and "logits" not in (form, target_form):
        raise ValueError(
            f"{function}(): temperature is for logits, and neither input nor target holds any"
        )
    return softmax_loss(
        function, loss, input, target, dim=dim, reduction=reduction, form=form,
        target_form=target_form, ignore_index=ignore_index, temperature=temperature,
        normalizer=normalizer,
    )[0]  # fmt: skip


# For tests: both kinds of target, and all forms.
_SAMPLES = (
    {"target": "logits"}, {}, {"target": "probs"},
    {"kwargs": {"temperature": 2.0}, "target": "logits"},
    {"target": "probs", "input": "probs"}, {"target": "log_probs", "input": "log_probs"},
)  # fmt: skip


class _DivergenceLoss(_Loss):
    """Base class of the modules of this file; see their functions.

    Args:
        input_form, target_form, dim, temperature, ignore_index: as for the function.
        reduction: "none", "mean", "sum" or "sample".
    """

    def __init__(
        self,
        *,
        input_form: str = "logits",
        target_form: str | None = None,
        dim: int | None = None,
        temperature: float = 1.0,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        self.input_form = input_form
        self.target_form = target_form
        self.dim = dim
        self.temperature = temperature
        self.ignore_index = ignore_index


_DIVERGENCE = """{line}

    {more}

    Args:
        input: a distribution q over the classes per row, of any shape: logits, log-probabilities
            or probabilities, as ``input_form`` says.
        target: p, a distribution of the same shape; or class indices (int64, int32 or uint8) of
            the shape without the classes, which are p = 1 for their class.
        input_form: "logits", "log_probs" or "probs". For logits, the kernel computes the softmax.
        target_form: the same for the target. Defaults to ``input_form``.
        dim: the dimension of the classes. Defaults to 1, or to 0 for a single row.
        temperature: T > 0. Logits are divided by it; the loss is not multiplied by T².
        ignore_index: a label to ignore. Its rows have loss and gradient 0 and do not count.
        {own}reduction: "none", "mean", "sum" or "sample". A mean divides by the number of rows.
        normalizer: a number, or a tensor of one, that replaces the mean's denominator.

    Returns:
        The loss, in the dtype that input and target promote to. It is differentiable by both.

    Raises:
        ValueError: for shapes that do not match, or an unknown form or ``reduction``.
        IndexError: for a label out of range, on the CPU. On a GPU its row's loss is NaN.
        RuntimeError: if the tensors are on different devices.

    {source}

    Example:
        >>> import torch, lossops.functional as F
        >>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
        >>> F.{example}
    """


def _documented(line: str, more: str, source: str, example: str, own: str = ""):
    def decorate(function):
        function.__doc__ = _DIVERGENCE.format(
            line=line, more=more, source=source, example=example, own=own
        )
        return function

    return decorate


@public(temperature=positive)
@described(
    kernel="kl", formula="Σ_c p_c (log p_c - log q_c)",
    samples=(
        *_SAMPLES, {"kwargs": {"reverse": True}, "target": "logits"},
        {"kwargs": {"reverse": True}, "target": "probs", "input": "probs"},
    ),
    source="Kullback and Leibler, On Information and Sufficiency, 1951",
)  # fmt: skip
@_documented(
    "Kullback-Leibler divergence: ``KL(P ‖ Q) = Σ_c p_c (log p_c - log q_c)``.",
    "Use it to distil a teacher's distribution P into a student Q. It sums :func:`kl_div` over\n"
    "    the classes, and takes logits without a tensor of log-probabilities. 0 log 0 is 0.",
    "Source: Kullback and Leibler, On Information and Sufficiency, 1951.",
    'kl_divergence(q, p, input_form="probs")\n        tensor(0.5108)',
    "reverse: compute KL(Q ‖ P) instead, which favours the mode of P over its mean.\n        ",
)
def kl_divergence(
    input: Tensor,
    target: Tensor,
    *,
    input_form: str = "logits",
    target_form: str | None = None,
    dim: int | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    reverse: bool = False,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
) -> Tensor:
    return _divergence(
        "kl_divergence", "reverse_kl" if reverse else "kl", input, target, input_form, target_form,
        dim, temperature, ignore_index, reduction, normalizer,
    )  # fmt: skip


class KLDivergenceLoss(LossModule, _DivergenceLoss, function=kl_divergence):
    """Kullback-Leibler divergence; see :func:`lossops.functional.kl_divergence`.

    Args:
        reverse: compute KL(Q ‖ P), where Q is the input, instead of KL(P ‖ Q).
        input_form, target_form, dim, temperature, ignore_index: as for the function.
        reduction: "none", "mean", "sum" or "sample".
    """

    def __init__(
        self,
        *,
        reverse: bool = False,
        input_form: str = "logits",
        target_form: str | None = None,
        dim: int | None = None,
        temperature: float = 1.0,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            input_form=input_form, target_form=target_form, dim=dim, temperature=temperature,
            ignore_index=ignore_index, reduction=reduction,
        )  # fmt: skip
        self.reverse = reverse


@public(temperature=positive)
@described(
    kernel="jensen_shannon", symmetric=True, bounded=True,
    samples=_SAMPLES,
    formula="½ Σ_c p_c log(p_c/m_c) + q_c log(q_c/m_c), m = ½(p + q)",
    source="Lin, Divergence Measures Based on the Shannon Entropy, 1991",
)  # fmt: skip
@_documented(
    "Jensen-Shannon divergence: ``½ KL(P ‖ M) + ½ KL(Q ‖ M)``, M = ½ (P + Q).",
    "Use it for a symmetric, bounded distance of two predictions: it is at most log 2. It is\n"
    "    accurate also where the two are close.",
    "Source: Lin, Divergence Measures Based on the Shannon Entropy, 1991.",
    'js_divergence(q, p, input_form="probs")\n        tensor(0.1017)',
)
def js_divergence(
    input: Tensor,
    target: Tensor,
    *,
    input_form: str = "logits",
    target_form: str | None = None,
    dim: int | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
) -> Tensor:
    return _divergence(
        "js_divergence", "jensen_shannon", input, target, input_form, target_form, dim,
        temperature, ignore_index, reduction, normalizer,
    )  # fmt: skip


class JSDivergenceLoss(LossModule, _DivergenceLoss, function=js_divergence):
    """Jensen-Shannon divergence; see :func:`lossops.functional.js_divergence`."""


@public(temperature=positive)
@described(
    kernel="total_variation", formula="½ Σ_c |p_c - q_c|", symmetric=True, bounded=True,
    samples=_SAMPLES,
    source="Levin and Peres, Markov Chains and Mixing Times, 2017",
)  # fmt: skip
@_documented(
    "Total variation distance: ``½ Σ_c |p_c - q_c|``.",
    "Use it to bound how often two distributions disagree: it is at most 1. The derivative where\n"
    "    p_c = q_c is 0.",
    "Source: Levin and Peres, Markov Chains and Mixing Times, 2017, chapter 4.",
    'total_variation(q, p, input_form="probs")\n        tensor(0.4000)',
)
def total_variation(
    input: Tensor,
    target: Tensor,
    *,
    input_form: str = "logits",
    target_form: str | None = None,
    dim: int | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
) -> Tensor:
    return _divergence(
        "total_variation", "total_variation", input, target, input_form, target_form, dim,
        temperature, ignore_index, reduction, normalizer,
    )  # fmt: skip


class TotalVariationLoss(LossModule, _DivergenceLoss, function=total_variation):
    """Total variation distance; see :func:`lossops.functional.total_variation`."""


@public(temperature=positive)
@described(
    kernel="l1_distribution", formula="Σ_c |p_c - q_c|", symmetric=True, bounded=True,
    samples=_SAMPLES,
    source="Ghosh, Kumar and Sastry, Robust Loss Functions under Label Noise, 2017",
)  # fmt: skip
@_documented(
    "L1 distance (MAE) of two distributions: ``Σ_c |p_c - q_c|``.",
    "Use it where labels are often wrong. It is robust to them, and trains more slowly than cross\n"
    "    entropy. The derivative where p_c = q_c is 0.",
    "Source: Ghosh, Kumar and Sastry, Robust Loss Functions under Label Noise, 2017.",
    'l1_distribution_loss(q, p, input_form="probs")\n        tensor(0.8000)',
)
def l1_distribution_loss(
    input: Tensor,
    target: Tensor,
    *,
    input_form: str = "logits",
    target_form: str | None = None,
    dim: int | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
) -> Tensor:
    return _divergence(
        "l1_distribution_loss", "l1_distribution", input, target, input_form, target_form, dim,
        temperature, ignore_index, reduction, normalizer,
    )  # fmt: skip


class L1DistributionLoss(LossModule, _DivergenceLoss, function=l1_distribution_loss):
    """L1 distance of two distributions; see :func:`lossops.functional.l1_distribution_loss`."""


@public(temperature=positive)
@described(
    kernel="soft_cross_entropy", formula="-Σ_c p_c log q_c", samples=_SAMPLES,
    source="Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015",
)  # fmt: skip
@_documented(
    "Cross entropy of two distributions: ``-Σ_c p_c log q_c``.",
    "Use it for soft targets of any form. With labels and logits it equals :func:`cross_entropy`,\n"
    "    which also has weights and smoothing. 0 log 0 is 0.",
    "Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015.",
    'soft_cross_entropy(q, p, input_form="probs")\n        tensor(1.2040)',
)
def soft_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    input_form: str = "logits",
    target_form: str | None = None,
    dim: int | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
) -> Tensor:
    return _divergence(
        "soft_cross_entropy", "soft_cross_entropy", input, target, input_form, target_form, dim,
        temperature, ignore_index, reduction, normalizer,
    )  # fmt: skip


class SoftCrossEntropyLoss(LossModule, _DivergenceLoss, function=soft_cross_entropy):
    """Cross entropy of two distributions; see :func:`lossops.functional.soft_cross_entropy`."""
