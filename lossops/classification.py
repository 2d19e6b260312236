"""The losses over rows of class scores; public as part of :mod:`lossops.functional`.

A loss that also returns numbers per row (log-sum-exp, entropy, accuracy) takes them from the same
pass. ``reduction`` is as everywhere, a row being what an element is elsewhere: "none" gives one
number per row, "sample" the mean over the rows of each sample of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from lossops.checks import legacy_reduction, number
from lossops.softmax_checks import (
    check_class_weight,
    check_form,
    check_labels,
    check_scores,
    check_smoothing,
    check_target,
    class_dimension,
    softmax_loss,
)

__all__ = [
    "cross_entropy",
    "focal_loss",
    "js_divergence",
    "kl_divergence",
    "l1_distribution_loss",
    "log_prob_of",
    "nll_loss",
    "poly_loss",
    "soft_cross_entropy",
    "total_variation",
]


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

    t_c = w_c ((1 - ε) p_c + ε/C), where p is the target's distribution: 1 for a label's class and
    0 for the others, or the given probabilities. z = input, first capped (``s tanh(z / s)``) and
    divided by the temperature where these are given; lse = log Σ_c exp z_c.

    Args:
        input: logits, of shape (C), (N, C) or (N, C, d1, …, dK); read in place, whatever its
            strides, where the dimensions before and those behind the classes each step evenly.
        target: class indices (int64, int32 or uint8) of shape (), (N) or (N, d1, …, dK); or class
            probabilities, of the shape of input.
        weight: w, a number per class, of shape (C).
        size_average, reduce: deprecated, see ``reduction``.
        ignore_index: a label whose rows have loss and gradient 0 and do not count. Not with
            probabilities.
        reduction: "none", "mean", "sum" or "sample". With labels a mean divides by the sum of the
            weights w_y of the labels that count, with probabilities by the number of rows.
        label_smoothing: ε, from 0 to 1.
        z_loss: ζ, the coefficient of lse²; that term is divided by what the mean divides by.
        softcap: s > 0, the bound of capped logits.
        temperature: what logits are divided by, > 0.
        normalizer: a number, or a tensor of one, in place of the mean's denominator: the tokens of
            all micro-batches and processes, say. Not differentiated by.
        empty: what a mean over no labels is: "nan", as in torch, or "zero".
        return_lse: also return lse per row, differentiable.
        return_entropy: also return the entropy of softmax(z) per row, differentiable.
        return_accuracy: also return, per row, whether no class has a higher logit than the label:
            1 or 0, and 0 for rows that do not count. With probabilities, than the likeliest class.
        inplace: let the gradient overwrite the logits, so that a step needs no memory of their
            size. They must not be a leaf, and nothing else may need them afterwards; backward can
            be called once, on the loss alone.

    Returns:
        The loss, of input's dtype (float32 under autocast); or a tuple of it and, in this order,
        lse, entropy and accuracy as far as asked for, in float32 for half precision.

    Raises:
        ValueError: for shapes that do not match, or an unknown ``reduction`` or ``empty``.
        IndexError: for a label that is no class, on the CPU. On a GPU, where to raise would mean to
            wait for the device, its row's loss is NaN and its gradient 0.
        RuntimeError: for a target or weight of a wrong shape or dtype, ``label_smoothing`` outside
            of [0, 1] (torch takes negative ones), or ``ignore_index`` with probabilities.

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
    if has_torch_function_variadic(input, target, weight):
        return handle_torch_function(
            cross_entropy, (input, target, weight), input, target, weight, size_average,
            ignore_index, reduce, reduction, label_smoothing, z_loss=z_loss, softcap=softcap,
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
    found = softmax_loss(
        "cross_entropy", "cross_entropy", input, target, dim=dim, reduction=reduction,
        target_form="probs" if soft else "labels", class_weight=weight, ignore_index=ignore_index,
        temperature=temperature, softcap=softcap, label_smoothing=label_smoothing, z_loss=z_loss,
        normalizer=normalizer, empty=empty,
        per_row=(return_lse, return_entropy, return_accuracy and not soft), in_place=inplace,
    )  # fmt: skip
    if return_accuracy and soft:
        hit = input.detach().argmax(dim) == target.detach().argmax(dim)
        found = (*found, hit.to(torch.float64 if input.dtype == torch.float64 else torch.float32))
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
    r"""Negative log-likelihood: ``-w_y x_y``, of log-probabilities x and labels y.

    Args:
        input: log-probabilities, of shape (C), (N, C) or (N, C, d1, …, dK).
        target: class indices (int64, int32 or uint8) of shape (), (N) or (N, d1, …, dK).
        weight: w, a number per class, of shape (C).
        size_average, reduce: deprecated, see ``reduction``.
        ignore_index: a label whose rows have loss and gradient 0 and do not count.
        reduction: "none", "mean", "sum" or "sample". A mean divides by the sum of the weights w_y.
        normalizer: a number, or a tensor of one, in place of the mean's denominator.
        empty: what a mean over no labels is: "nan", as in torch, or "zero".

    Returns:
        The loss, of input's dtype.

    Raises:
        As :func:`cross_entropy`.

    Follows :func:`torch.nn.functional.nll_loss`.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.nll_loss(torch.tensor([[-0.5, -0.9], [-2.0, -0.1]]), torch.tensor([0, 1]))
        tensor(0.3000)
    """
    if has_torch_function_variadic(input, target, weight):
        return handle_torch_function(
            nll_loss, (input, target, weight), input, target, weight, size_average, ignore_index,
            reduce, reduction, normalizer=normalizer, empty=empty,
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

    What policy gradients need of each token, without a tensor of all log-probabilities.

    Args:
        logits: of any shape, with the classes in dimension ``dim``.
        index: class indices (int64, int32 or uint8), of the shape of logits without ``dim``.
        dim: the dimension of the classes.
        temperature: T > 0.
        return_entropy: also return the entropy of the distribution per row, differentiable.

    Returns:
        The log-probabilities, of logits' dtype and index' shape; or a tuple of them and the
        entropies, in float32 for half precision.

    Raises:
        ValueError: if the shapes do not match. RuntimeError: if the index is not of an integer
        dtype. IndexError: for an index that is no class, on the CPU; on a GPU its result is NaN.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.log_prob_of(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
        tensor([-0.1269, -0.6931])
    """
    if has_torch_function_variadic(logits, index):
        return handle_torch_function(
            log_prob_of, (logits, index), logits, index, dim=dim, temperature=temperature,
            return_entropy=return_entropy,
        )  # fmt: skip
    check_scores("log_prob_of", logits)
    check_target("log_prob_of", logits, index)
    dim = _dimension("log_prob_of", logits, dim)
    index = _labels_along("log_prob_of", logits, index, dim)
    found = softmax_loss(
        "log_prob_of", "cross_entropy", logits, index, dim=dim, reduction="none",
        ignore_index=_NO_CLASS, temperature=temperature, per_row=(False, return_entropy, False),
    )  # fmt: skip
    return (-found[0], found[1]) if return_entropy else -found[0]


_NO_CLASS = -(2**63)  # an ignore_index that no label has: all others count or are refused


def _dimension(function: str, input: Tensor, dim: int | None) -> int:
    if input.dim() == 0:
        raise ValueError(f"{function}(): expected 1 or more dimensions (got 0)")
    if dim is None:
        return class_dimension(input)
    if not -input.dim() <= dim < input.dim():
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-input.dim()}, "
            f"{input.dim() - 1}], but got {dim})"
        )
    return dim % input.dim()


def _labels_along(function: str, input: Tensor, target: Tensor, dim: int) -> Tensor:
    rows = (*input.shape[:dim], *input.shape[dim + 1 :])
    if tuple(target.shape) != rows:
        raise ValueError(
            f"{function}(): class indices should have the shape {rows}, got {tuple(target.shape)}"
        )
    if target.dtype not in (torch.int64, torch.int32, torch.uint8):
        name = str(target.dtype).removeprefix("torch.").capitalize()
        raise RuntimeError(f"expected target dtype to be Long, Int or Byte, but got {name}")
    if input.shape[dim] == 0 and target.numel():
        raise IndexError("Target is out of bounds: input has no classes.")
    return target


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

    What is predicted well counts less. The sigmoid's form is :func:`sigmoid_focal_loss`.

    Args:
        input: logits, of shape (C), (N, C) or (N, C, d1, …, dK).
        target: class indices (int64, int32 or uint8) of shape (), (N) or (N, d1, …, dK).
        alpha: α, one number for all classes or a tensor of shape (C).
        gamma: γ ≥ 0; 0 gives the cross entropy.
        ignore_index: a label whose rows have loss and gradient 0 and do not count.
        reduction: "none", "mean", "sum" or "sample". A mean divides by the number of labels that
            count, whatever their α.
        normalizer: a number, or a tensor of one, in place of the mean's denominator.

    Returns:
        The loss, of input's dtype.

    Raises:
        As :func:`cross_entropy`; ValueError if ``gamma`` is negative.

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017. torch has no such loss.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.focal_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor(0.0018)
    """
    if has_torch_function_variadic(input, target, alpha):
        return handle_torch_function(
            focal_loss, (input, target, alpha), input, target, alpha, gamma, ignore_index,
            reduction, normalizer=normalizer,
        )  # fmt: skip
    gamma = number("focal_loss", "gamma", gamma)
    if not gamma >= 0:
        raise ValueError(f"focal_loss(): gamma should not be negative, got {gamma}")
    weight = alpha
    if alpha is not None and not (isinstance(alpha, Tensor) and alpha.dim()):
        alpha = number("focal_loss", "alpha", alpha)
        weight = torch.full((), alpha, dtype=torch.float32, device=input.device)
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
    if has_torch_function_variadic(input, target, weight):
        return handle_torch_function(
            poly_loss, (input, target, weight), input, target, epsilon, weight, ignore_index,
            reduction, normalizer=normalizer,
        )  # fmt: skip
    epsilon = number("poly_loss", "epsilon", epsilon)
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
    if weight is not None and weight.dim() == 0:  # one for all classes
        weight = weight.expand(input.shape[dim])
    check_class_weight(function, input, dim, weight)
    return softmax_loss(
        function, loss, input, target, dim=dim, reduction=reduction, class_weight=weight,
        ignore_index=ignore_index, own_params=params, normalizer=normalizer,
    )[0]  # fmt: skip


def _divergence(
    function, loss, input, target, input_form, target_form, dim, temperature, ignore_index,
    reduction, normalizer,
) -> Tensor:  # fmt: skip
    check_scores(function, input)
    check_target(function, input, target)
    dim = _dimension(function, input, dim)
    form = check_form(function, "input_form", input_form)
    if not target.is_floating_point():
        if target_form not in (None, "labels"):
            raise ValueError(
                f"{function}(): a target of {target.dtype} holds class indices; target_form should "
                f"be 'labels' or left out, got {target_form!r}"
            )
        target = _labels_along(function, input, target, dim)
        target_form = "labels"
    else:
        target_form = check_form(function, "target_form", target_form or form)
        check_scores(function, target)
        if target.shape != input.shape:
            raise ValueError(
                f"{function}(): target should have the shape of input, {tuple(input.shape)}, or be "
                f"class indices; got {tuple(target.shape)}"
            )
    return softmax_loss(
        function, loss, input, target, dim=dim, reduction=reduction, form=form,
        target_form=target_form, ignore_index=ignore_index, temperature=temperature,
        normalizer=normalizer,
    )[0]  # fmt: skip


_DIVERGENCE = """{line}

    {more}

    Args:
        input: a distribution q over the classes per row, of any shape: logits, log-probabilities
            or probabilities, as ``input_form`` says.
        target: p, a distribution of the same shape; or class indices (int64, int32 or uint8) of
            the shape without the classes, which are p = 1 for their class.
        input_form: "logits", "log_probs" or "probs". Of logits the softmax is part of the kernel.
        target_form: the same of target; where left out, that of input.
        dim: the dimension of the classes; where left out 1, or 0 of a single row.
        temperature: T > 0, which logits are divided by. The loss is not multiplied by T².
        ignore_index: a label whose rows have loss and gradient 0 and do not count.
        {own}reduction: "none", "mean", "sum" or "sample". A mean divides by the number of rows.
        normalizer: a number, or a tensor of one, in place of the mean's denominator.

    Returns:
        The loss, of the dtype that input's and target's promote to. It is differentiable by both.

    Raises:
        ValueError: for shapes that do not match, or an unknown form or ``reduction``.
        IndexError: for a label that is no class, on the CPU; on a GPU its row's loss is NaN.
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


@_documented(
    "Kullback-Leibler divergence: ``KL(P ‖ Q) = Σ_c p_c (log p_c - log q_c)``.",
    "The sum over the classes of what :func:`kl_div` has one by one; of logits, without a tensor\n"
    "    of log-probabilities: what distillation minimises. 0 log 0 is 0.",
    "Source: Kullback and Leibler, On Information and Sufficiency, 1951.",
    'kl_divergence(q, p, input_form="probs")\n        tensor(0.5108)',
    "reverse: KL(Q ‖ P) instead, of which the mode of P is the minimiser rather than its mean.\n"
    "        ",
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
    if has_torch_function_variadic(input, target):
        return handle_torch_function(
            kl_divergence, (input, target), input, target, input_form=input_form,
            target_form=target_form, dim=dim, temperature=temperature, ignore_index=ignore_index,
            reverse=reverse, reduction=reduction, normalizer=normalizer,
        )  # fmt: skip
    return _divergence(
        "kl_divergence", "reverse_kl" if reverse else "kl", input, target, input_form, target_form,
        dim, temperature, ignore_index, reduction, normalizer,
    )  # fmt: skip


@_documented(
    "Jensen-Shannon divergence: ``½ KL(P ‖ M) + ½ KL(Q ‖ M)``, M = ½ (P + Q).",
    "Symmetric, and at most log 2. Accurate also where the two are close.",
    "Source: Lin, Divergence Measures Based on the Shannon Entropy, 1991.",
    'js_divergence(q, p, input_form="probs")\n        tensor(0.1018)',
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
    if has_torch_function_variadic(input, target):
        return handle_torch_function(
            js_divergence, (input, target), input, target, input_form=input_form,
            target_form=target_form, dim=dim, temperature=temperature, ignore_index=ignore_index,
            reduction=reduction, normalizer=normalizer,
        )  # fmt: skip
    return _divergence(
        "js_divergence", "jensen_shannon", input, target, input_form, target_form, dim,
        temperature, ignore_index, reduction, normalizer,
    )  # fmt: skip


@_documented(
    "Total variation distance: ``½ Σ_c |p_c - q_c|``.",
    "At most 1. The derivative where p_c = q_c is 0.",
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
    if has_torch_function_variadic(input, target):
        return handle_torch_function(
            total_variation, (input, target), input, target, input_form=input_form,
            target_form=target_form, dim=dim, temperature=temperature, ignore_index=ignore_index,
            reduction=reduction, normalizer=normalizer,
        )  # fmt: skip
    return _divergence(
        "total_variation", "total_variation", input, target, input_form, target_form, dim,
        temperature, ignore_index, reduction, normalizer,
    )  # fmt: skip


@_documented(
    "L1 distance (MAE) of two distributions: ``Σ_c |p_c - q_c|``.",
    "Robust to wrong labels, and slower to learn from than cross entropy. The derivative where\n"
    "    p_c = q_c is 0.",
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
    if has_torch_function_variadic(input, target):
        return handle_torch_function(
            l1_distribution_loss, (input, target), input, target, input_form=input_form,
            target_form=target_form, dim=dim, temperature=temperature, ignore_index=ignore_index,
            reduction=reduction, normalizer=normalizer,
        )  # fmt: skip
    return _divergence(
        "l1_distribution_loss", "l1_distribution", input, target, input_form, target_form, dim,
        temperature, ignore_index, reduction, normalizer,
    )  # fmt: skip


@_documented(
    "Cross entropy of two distributions: ``-Σ_c p_c log q_c``.",
    "With labels and logits this is :func:`cross_entropy`, which has weights and smoothing, too.\n"
    "    0 log 0 is 0.",
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
    if has_torch_function_variadic(input, target):
        return handle_torch_function(
            soft_cross_entropy, (input, target), input, target, input_form=input_form,
            target_form=target_form, dim=dim, temperature=temperature, ignore_index=ignore_index,
            reduction=reduction, normalizer=normalizer,
        )  # fmt: skip
    return _divergence(
        "soft_cross_entropy", "soft_cross_entropy", input, target, input_form, target_form, dim,
        temperature, ignore_index, reduction, normalizer,
    )  # fmt: skip
