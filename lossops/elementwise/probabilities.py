"""Losses of probabilities, log-probabilities and logits, exported by :mod:`lossops.functional`."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from lossops.core.arguments import autocasts, legacy_reduction, number
from lossops.core.labels import can_look
from lossops.core.overrides import handle, overridden
from lossops.core.transforms import transforms_active
from lossops.elementwise.call import elementwise_loss


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Kullback-Leibler divergence, pointwise: ``w y (log(y) - x)``, or ``w exp(y) (y - x)``.

    Use it to train a model to match a target distribution, for example in knowledge distillation.

    Where the target probability is 0, the loss is 0, the limit. This also holds for an input of
    -inf and, with ``log_target``, for a target of -inf, for which torch returns NaN. At a target of
    0, the derivative with respect to the target is -inf, also the limit, where torch returns NaN.

    Args:
        input: x, the log-probabilities of the model, of any shape.
        target: y, probabilities, or log-probabilities if ``log_target``, of the same shape as
            ``input`` or one that broadcasts with it (without a warning, as in torch).
        size_average, reduce: deprecated, see ``reduction``.
        reduction: "batchmean", the sum divided by the size of the first dimension of ``input``,
            which matches the mathematical definition of the divergence; or "none", "mean", "sum" or
            "sample", see :mod:`lossops.functional`. "mean" divides by the number of elements and
            warns, as in torch.
        log_target: whether ``target`` contains log-probabilities.
        weight: w, of the same shape as ``input`` (torch has no weight here). A mean still divides
            by the number of elements, and "batchmean" by the batch size.

    Returns:
        The loss: a scalar, or a tensor of the broadcast shape for "none", of shape (B,) for
        "sample".

    Raises:
        ValueError: if ``reduction`` is not one of these, or ``weight`` does not have the shape of
            ``input``.
        RuntimeError: if a tensor is integral, the shapes do not broadcast, or the tensors are on
            different devices.

    Follows :func:`torch.nn.functional.kl_div`; Kullback and Leibler, On Information and
    Sufficiency, 1951.

    Example:
        >>> import torch, lossops.functional as F
        >>> x = torch.tensor([[0.5, 0.5, 0.0]]).log()
        >>> F.kl_div(x, torch.tensor([[1.0, 0.0, 0.0]]), reduction="batchmean")
        tensor(0.6931)
    """
    if overridden(input, target, weight):
        return handle(
            kl_div, (input, target, weight), input, target, size_average=size_average,
            reduce=reduce, reduction=reduction, log_target=log_target, weight=weight,
        )  # fmt: skip
    if reduction == "mean" and size_average is None and reduce is None:
        _warn_of_mean()
    asked = reduction
    reduction = legacy_reduction(size_average, reduce, reduction)
    for tensor in (input, target):
        if isinstance(tensor, Tensor) and not (tensor.is_floating_point() or tensor.is_complex()):
            raise RuntimeError(
                "kl_div: Integral inputs not supported. "
                f"Got input of {_dtype(input)}, target of {_dtype(target)}"
            )
    normalizer = None
    if reduction == "batchmean":
        reduction = "sum"
        if isinstance(input, Tensor) and input.dim() > 0:
            batch = input.size(0)
            normalizer = torch.full((), batch, dtype=torch.float64, device=input.device)
    loss = elementwise_loss(
        "kl_div_log_target" if log_target else "kl_div", input, target, weight, reduction,
        divides_by_weight=False, normalizer=normalizer, warns_of_broadcast=False,
    )  # fmt: skip
    # As in torch: deprecated arguments override the reduction, but "batchmean" still divides.
    overruled = asked == "batchmean" and not (size_average is None and reduce is None)
    return loss / input.size(0) if overruled and input.size(0) != 0 else loss


def _dtype(tensor) -> str:
    return str(getattr(tensor, "dtype", type(tensor).__name__))


def _warn_of_mean() -> None:
    if torch.compiler.is_compiling():  # torch.compile cannot trace a warning
        return
    warnings.warn(
        "reduction: 'mean' divides the total loss by both the batch size and the support size."
        "'batchmean' divides only by the batch size, and aligns with the KL div math definition."
        "'mean' will be changed to behave the same as 'batchmean' in the next major release.",
        stacklevel=3,
    )


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Binary cross entropy of probabilities: ``-w (y log(x) + (1 - y) log(1 - x))``.

    Use it when the model outputs probabilities. If logits are available,
    :func:`~lossops.functional.binary_cross_entropy_with_logits` is more accurate and faster.

    Both logarithms are clamped to at least -100, and the denominator of the derivative
    ``(x - y) / (x (1 - x))`` to at least 1e-12, as in torch.

    Args:
        input: x, probabilities between 0 and 1, of any shape.
        target: y, between 0 and 1, of the same shape as ``input``.
        weight: w, of a shape that broadcasts to ``input``. A mean still divides by the number of
            elements, as in torch.
        size_average, reduce: deprecated, see ``reduction``.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.
        label_smoothing: s in [0, 1]; y becomes ``y (1 - s) + s/2``. torch has no such option here.

    Returns:
        The loss: a scalar, or a tensor of the same shape as ``input`` for "none", of shape (B,) for
        "sample".

    Raises:
        ValueError: if ``input`` and ``target`` differ in size, ``weight`` does not broadcast to
            them, ``reduction`` is not one of these, or ``label_smoothing`` is not in [0, 1].
        RuntimeError: on the CPU, if an element of ``input`` or ``target`` is outside [0, 1]. On a
            GPU, where the check would require a device sync, and under torch.func and
            torch.compile, the loss of such an element is NaN. A NaN element gives NaN, where torch
            raises.
        NotImplementedError: if the tensors are not floating point.
        TypeError: if ``label_smoothing`` is not a number.

    Follows :func:`torch.nn.functional.binary_cross_entropy`.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.binary_cross_entropy(torch.tensor([0.5, 1.0]), torch.tensor([1.0, 1.0]))
        tensor(0.3466)
    """
    if overridden(input, target, weight):
        return handle(
            binary_cross_entropy, (input, target, weight), input, target, weight=weight,
            size_average=size_average, reduce=reduce, reduction=reduction,
            label_smoothing=label_smoothing,
        )  # fmt: skip
    reduction = legacy_reduction(size_average, reduce, reduction)
    smoothing = _smoothing("binary_cross_entropy", label_smoothing)
    if _differ(input, target):
        raise ValueError(
            f"Using a target size ({target.size()}) that is different to the input size "
            f"({input.size()}) is deprecated. Please ensure they have the same size."
        )
    weight = _expanded(weight, input)
    loss = elementwise_loss(
        "bce", input, target, weight, reduction, (smoothing,), divides_by_weight=False
    )
    _refuse_what_is_no_probability(loss, input, target)
    return loss


def _refuse_what_is_no_probability(loss: Tensor, input: Tensor, target: Tensor) -> None:
    """Raises if an element is outside [0, 1]. The kernels return NaN for such an element, so the
    tensors are searched only if the loss, or the sum of all losses, is NaN, which is rare."""
    if type(loss) is not Tensor or not can_look(loss):
        return
    total = loss.detach()
    if total.dim() > 0:
        total = total.sum()
    if not math.isnan(total):
        return
    for name, tensor in (("input", input), ("target", target)):
        if ((tensor < 0) | (tensor > 1)).any():
            raise RuntimeError(f"all elements of {name} should be between 0 and 1")


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | float | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Binary cross entropy of logits: ``w (p y softplus(-x) + (1 - y) softplus(x))``.

    Use it for binary or multi-label classification, with the logits of the model as input.

    Correct at infinite logits: an infinite logit that agrees with the target has loss 0, where
    torch returns NaN, and the gradient with respect to ``input`` is finite.

    Args:
        input: x, the logits, of any shape.
        target: y, usually between 0 and 1, of the same shape as ``input``.
        weight: w, of a shape that broadcasts to ``input``. A mean still divides by the number of
            elements, as in torch.
        size_average, reduce: deprecated, see ``reduction``.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.
        pos_weight: p, the weight of the positive class: a number, or a tensor of a shape that
            broadcasts to ``input``. The loss is differentiable with respect to a tensor that
            requires grad.
        label_smoothing: s in [0, 1]; y becomes ``y (1 - s) + s/2``. torch has no such option here.

    Returns:
        The loss: a scalar, or a tensor of the same shape as ``input`` for "none", of shape (B,) for
        "sample".

    Raises:
        ValueError: if ``input`` and ``target`` differ in size, ``weight`` or ``pos_weight`` does
            not broadcast to them, ``pos_weight`` is a negative number, ``reduction`` is not one of
            these, or ``label_smoothing`` is not in [0, 1].
        NotImplementedError: if the tensors are not floating point.
        RuntimeError: if the tensors are on different devices.
        TypeError: if ``label_smoothing`` is not a number, or ``pos_weight`` is neither a number nor
            a tensor.

    Follows :func:`torch.nn.functional.binary_cross_entropy_with_logits`.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.binary_cross_entropy_with_logits(torch.tensor([0.0, torch.inf]), torch.ones(2))
        tensor(0.3466)
    """
    if overridden(input, target, weight, pos_weight):
        return handle(
            binary_cross_entropy_with_logits, (input, target, weight, pos_weight), input, target,
            weight=weight, size_average=size_average, reduce=reduce, reduction=reduction,
            pos_weight=pos_weight, label_smoothing=label_smoothing,
        )  # fmt: skip
    reduction = legacy_reduction(size_average, reduce, reduction)
    smoothing = _smoothing("binary_cross_entropy_with_logits", label_smoothing)
    _refuse_another_size(input, target)
    weight = _expanded(weight, input)
    pos_weight = _pos_weight(pos_weight)
    if isinstance(pos_weight, Tensor) and isinstance(target, Tensor) and isinstance(input, Tensor):
        return _with_a_weight_per_element(input, target, weight, reduction, pos_weight, smoothing)
    return elementwise_loss(
        "bce_with_logits", input, target, weight, reduction, (pos_weight, smoothing),
        divides_by_weight=False,
    )  # fmt: skip


def _pos_weight(pos_weight) -> float | Tensor:
    """Converts ``pos_weight`` to a number, which the kernels accept, if that needs no device sync
    and no gradient."""
    if pos_weight is None:
        return 1.0
    if isinstance(pos_weight, Tensor):
        known = pos_weight.numel() == 1 and pos_weight.device.type == "cpu"
        followed = pos_weight.requires_grad or transforms_active() or type(pos_weight) is not Tensor
        if not known or followed or torch.compiler.is_compiling():
            return pos_weight
        return float(pos_weight)
    value = number("binary_cross_entropy_with_logits", "pos_weight", pos_weight)
    if not value >= 0:
        raise ValueError(
            f"binary_cross_entropy_with_logits(): pos_weight should not be negative, got {value}"
        )
    return value


def _with_a_weight_per_element(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    pos_weight: Tensor,
    smoothing: float,
) -> Tensor:
    """The loss for a tensor ``pos_weight``.

    p y softplus(-x) + (1 - y) softplus(x) equals v times the plain loss for the target p y / v,
    where v = p y + (1 - y). The kernels receive v as a weight, and autograd differentiates v.
    """
    if pos_weight.device != input.device and pos_weight.dim() == 0:
        pos_weight = pos_weight.to(input.device)
    if not _broadcasts_to(pos_weight, input):
        raise ValueError(
            "pos_weight should broadcast to the shape of input. "
            f"Got pos_weight of shape {tuple(pos_weight.shape)}, input of shape "
            f"{tuple(input.shape)}"
        )
    dtype = torch.promote_types(input.dtype, target.dtype)
    wide = torch.promote_types(dtype, torch.float32)  # half-precision weights would lose digits
    y = target.to(wide)
    if smoothing:
        y = y * (1 - smoothing) + 0.5 * smoothing
    positive = pos_weight.to(wide) * y
    total = positive + (1 - y)
    nothing = total == 0  # neither class has any weight
    share = torch.where(nothing, y, positive / torch.where(nothing, 1.0, total))
    total = total.expand(input.shape)
    loss = elementwise_loss(
        "bce_with_logits", input, share, total if weight is None else total * weight, reduction,
        (1.0, 0.0), divides_by_weight=False,
    )  # fmt: skip
    if weight is not None:
        dtype = torch.promote_types(dtype, weight.dtype)
    return loss if autocasts(input.device.type) else loss.to(dtype)


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""RetinaNet's focal loss of logits: ``w α_t (1 - p_t)^γ BCE(x, y)``.

    Use it for binary classification in which many easy examples would otherwise dominate the loss,
    as in dense object detection.

    Here ``p = sigmoid(x)``, ``p_t = p y + (1 - p)(1 - y)`` is the probability of the true class,
    and ``α_t = α y + (1 - α)(1 - y)``. Well-classified examples are down-weighted: γ = 2 divides
    the loss at p_t = 0.9 by 100. Accurate near p_t = 1 and correct at infinite logits.

    Args:
        input: x, the logits, of any shape.
        target: y, 0 or 1, or a soft target in between, of the same shape as ``input``.
        alpha: α ≤ 1, the weight of the positive class; the weight of the negative class is 1 - α. A
            negative number disables both weights.
        gamma: γ ≥ 0; 0 gives the weighted cross entropy.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`. The default is
            "mean", as for the other losses; torchvision's is "none".
        weight: w, of a shape that broadcasts to ``input`` (torchvision has no weight here). A mean
            still divides by the number of elements.

    Returns:
        The loss: a scalar, or a tensor of the same shape as ``input`` for "none", of shape (B,) for
        "sample".

    Raises:
        ValueError: if ``input`` and ``target`` differ in size, ``weight`` does not broadcast to
            them, ``alpha`` is above 1, ``gamma`` is negative or infinite, or ``reduction`` is not
            one of these.
        NotImplementedError: if the tensors are not floating point.
        RuntimeError: if the tensors are on different devices.
        TypeError: if ``alpha`` or ``gamma`` is not a number.

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017; torchvision's
    ``sigmoid_focal_loss``. torch itself has no such loss.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.sigmoid_focal_loss(torch.tensor([0.0, 4.0]), torch.ones(2), reduction="none")
        tensor([4.3322e-02, 1.4679e-06])
    """
    if overridden(input, target, weight):
        return handle(
            sigmoid_focal_loss, (input, target, weight), input, target, alpha=alpha, gamma=gamma,
            reduction=reduction, weight=weight,
        )  # fmt: skip
    alpha = number("sigmoid_focal_loss", "alpha", alpha)
    gamma = number("sigmoid_focal_loss", "gamma", gamma)
    if not alpha <= 1:
        raise ValueError(f"sigmoid_focal_loss(): alpha should be at most 1, got {alpha}")
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"sigmoid_focal_loss(): gamma should be at least 0, finite, got {gamma}")
    _refuse_another_size(input, target)
    return elementwise_loss(
        "sigmoid_focal", input, target, _expanded(weight, input), reduction, (alpha, gamma),
        divides_by_weight=False,
    )  # fmt: skip


def _smoothing(function: str, label_smoothing) -> float:
    value = number(function, "label_smoothing", label_smoothing)
    if not 0 <= value <= 1:
        raise ValueError(
            f"{function}(): label_smoothing should be between 0.0 and 1.0, got {value}"
        )
    return value


def _differ(input, target) -> bool:
    tensors = isinstance(input, Tensor) and isinstance(target, Tensor)
    return tensors and target.shape != input.shape


def _refuse_another_size(input, target) -> None:
    if _differ(input, target):
        raise ValueError(
            f"Target size ({target.size()}) must be the same as input size ({input.size()})"
        )


def _broadcasts_to(tensor: Tensor, input: Tensor) -> bool:
    pairs = zip(reversed(tensor.shape), reversed(input.shape), strict=False)
    return tensor.dim() <= input.dim() and all(m == n or m == 1 for m, n in pairs)


def _expanded(weight, input):
    """Expands the weight to the shape of ``input``. A weight that does not broadcast to it is
    rejected later."""
    if isinstance(weight, Tensor) and isinstance(input, Tensor) and weight.shape != input.shape:
        return weight.expand(input.shape) if _broadcasts_to(weight, input) else weight
    return weight
