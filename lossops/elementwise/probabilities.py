"""Losses of probabilities and log-probabilities, exported by :mod:`lossops.functional`."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from lossops.core.arguments import Range, legacy_reduction
from lossops.core.declaration import LossModule, described, public
from lossops.core.labels import can_look
from lossops.elementwise.call import elementwise_loss

__all__ = [
    "BCELoss",
    "KLDivLoss",
    "binary_cross_entropy",
    "kl_div",
]

SMOOTHING = Range("between 0 and 1", lambda value: 0 <= value <= 1, (-0.1, 1.5))


@public()
@described(
    kernel="kl_div", formula="y (log y - x)", domains=("log_probability", "probability"),
    other_shapes="broadcasts", slope_without_input=True, integers=RuntimeError,
    source="Kullback and Leibler, On Information and Sufficiency, 1951",
)  # fmt: skip
@described(
    name="kl_div_log_target", kernel="kl_div_log_target", formula="eʸ (y - x)",
    samples=({"log_target": True},), params=lambda kwargs: (),
    domains=("log_probability", "log_probability"),
    other_shapes="broadcasts", slope_without_input=True, integers=RuntimeError,
    source="Kullback and Leibler, On Information and Sufficiency, 1951",
)  # fmt: skip
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


class KLDivLoss(LossModule, torch.nn.KLDivLoss, function=kl_div):
    """Kullback-Leibler divergence; see :func:`lossops.functional.kl_div`."""


def _dtype(tensor) -> str:
    return str(getattr(tensor, "dtype", type(tensor).__name__))


def _warn_of_mean() -> None:
    if torch.compiler.is_compiling():  # torch.compile cannot trace a warning
        return
    warnings.warn(
        "reduction: 'mean' divides the total loss by both the batch size and the support size."
        "'batchmean' divides only by the batch size, and aligns with the KL div math definition."
        "'mean' will be changed to behave the same as 'batchmean' in the next major release.",
        stacklevel=4,
    )


@public(label_smoothing=SMOOTHING)
@described(
    kernel="bce", formula="-y log x - (1 - y) log(1 - x)",
    samples=({}, {"label_smoothing": 0.1}),
    params=lambda kwargs: (kwargs.get("label_smoothing", 0.0),),
    domains=("probability", "label"), other_shapes="raises", expands_weight=True,
    source="Good, Rational Decisions, 1952",
)  # fmt: skip
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
    reduction = legacy_reduction(size_average, reduce, reduction)
    if differ(input, target):
        raise ValueError(
            f"Using a target size ({target.size()}) that is different to the input size "
            f"({input.size()}) is deprecated. Please ensure they have the same size."
        )
    weight = expanded(weight, input)
    loss = elementwise_loss(
        "bce", input, target, weight, reduction, (label_smoothing,), divides_by_weight=False
    )
    _refuse_what_is_no_probability(loss, input, target)
    return loss


class BCELoss(LossModule, torch.nn.BCELoss, function=binary_cross_entropy):
    """Binary cross entropy of probabilities; see :func:`lossops.functional.binary_cross_entropy`.

    Args:
        weight, size_average, reduce, reduction: as in :class:`torch.nn.BCELoss`.
        label_smoothing: between 0 and 1.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average=None,
        reduce=None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction)
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return binary_cross_entropy(
            input, target, product(self.weight, weight), reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )  # fmt: skip


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


def differ(input, target) -> bool:
    tensors = isinstance(input, Tensor) and isinstance(target, Tensor)
    return tensors and target.shape != input.shape


def broadcasts_to(tensor: Tensor, input: Tensor) -> bool:
    pairs = zip(reversed(tensor.shape), reversed(input.shape), strict=False)
    return tensor.dim() <= input.dim() and all(m == n or m == 1 for m, n in pairs)


def expanded(weight, input):
    """Expands the weight to the shape of ``input``. A weight that does not broadcast to it is
    rejected later."""
    if isinstance(weight, Tensor) and isinstance(input, Tensor) and weight.shape != input.shape:
        return weight.expand(input.shape) if broadcasts_to(weight, input) else weight
    return weight


def product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Combines two weights, the module's own and that of the call."""
    if a is None or b is None:
        return b if a is None else a
    return a * b
