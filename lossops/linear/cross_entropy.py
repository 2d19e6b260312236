"""Cross entropy of a linear layer's logits, without materialising all of them; public as part of
:mod:`lossops.functional`.

Higher-order derivatives, ``torch.func`` transforms and small logits use the definition,
``cross_entropy(linear(x, weight), target)``. Otherwise :mod:`lossops.linear.chunks` processes the
rows in chunks. In both cases, logits are never in half precision.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.modules.loss import _WeightedLoss

from lossops.core import backends
from lossops.core.arguments import (
    HALF_DTYPES,
    autocasts,
    finite,
    positive,
    require_tensors,
    savable,
)
from lossops.core.declaration import LossModule, public
from lossops.core.fused import one_pass
from lossops.core.library import accumulator
from lossops.core.transforms import transforms_active
from lossops.linear.chunks import Walk, without_autocast
from lossops.softmax.autograd import SoftmaxCall
from lossops.softmax.call import (
    SMOOTHING,
    SOFTCAP,
    check_class_weight,
    check_labels,
    check_target,
    softmax_call,
)
from lossops.softmax.classification import cross_entropy

__all__ = [
    "LinearCrossEntropyLoss",
    "linear_cross_entropy",
]

# Logits of up to this size are computed at once: they fit in a cache, and a walk is slower.
_FEW_BYTES = 1 << 18


@public(label_smoothing=SMOOTHING, z_loss=finite, softcap=SOFTCAP, temperature=positive)
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: object | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    r"""Cross entropy of a linear layer's output: ``cross_entropy(x Aᵀ + b, target)``.

    Use it for language models with a large vocabulary, whose logits need too much memory.

    Only the logits of a few rows exist at a time. With a vocabulary of 128000, all logits together
    would be by far the largest tensor of a language model. Logits are float32 even if the layer is
    in half precision or under autocast, and so is the sum that forms the gradient of the weight.
    Derivatives of any order and ``torch.func`` transforms are supported, but materialise all
    logits; in half precision, they compute these from a float32 copy of the layer. Logits in other
    dtypes of up to 256 KiB are also computed at once.

    Args:
        input: x, of shape (H) or (N, H).
        linear_weight: A, of shape (C, H); or (C, d1, …, dK, H), whose logits, of shape
            (N, C, d1, …, dK), are computed at once.
        target: class indices (int64, int32 or uint8) of shape () or (N) (or (N, d1, …, dK)); or
            class probabilities, of the shape of the logits.
        linear_bias: b, of the shape of A without H.
        weight: a weight per class, of shape (C).
        reduction: "none", "mean", "sum" or "sample", as in :func:`cross_entropy`.
        ignore_index: a label to ignore, -100 by default. Its rows have loss and gradient 0 and do
            not count. Not supported with class probabilities.
        label_smoothing, z_loss, softcap, temperature, normalizer: as in :func:`cross_entropy`.
        options: torch's ``LinearCrossEntropyOptions``, or None. Its ``batch_chunk_size``, if given,
            is the number of rows per chunk; its other fields are not needed here.

    Returns:
        The loss, of input's dtype (float32 under autocast): a scalar, or a number per row.

    Raises:
        RuntimeError: for mismatched shapes, or ``ignore_index`` with class probabilities.
        ValueError, IndexError: as :func:`cross_entropy`.

    Follows :func:`torch.nn.functional.linear_cross_entropy`. Wijmans et al., Cut Your Losses in
    Large-Vocabulary Language Models, 2024.

    Example:
        >>> import torch, lossops.functional as F
        >>> x, a = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> F.linear_cross_entropy(x, a, torch.tensor([1]))
        tensor(0.3133)
    """
    require_tensors("linear_cross_entropy", input=input, linear_weight=linear_weight, target=target)
    given = (input, linear_weight, target, linear_bias, weight)
    input, linear_weight, target, linear_bias, weight = map(savable, given)
    shape = _logits_shape(input, linear_weight, linear_bias)
    if target.shape == shape and ignore_index is not None:
        raise RuntimeError("ignore_index cannot be specified when target contains probabilities")
    extras = {
        "ignore_index": -100 if ignore_index is None else ignore_index,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss, "softcap": softcap, "temperature": temperature, "normalizer": normalizer,
    }  # fmt: skip
    moving = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (target, weight)
    )
    backend = backends.resolve(input, linear_weight, target, linear_bias, weight)
    whole = moving or transforms_active() or backend == "reference"
    whole = whole or linear_weight.dim() > 2 or not input.is_floating_point()
    if whole or (options is None and _are_few(shape, input)):
        layer = (input, linear_weight, linear_bias)
        return _at_once(layer, shape, target, weight, reduction=reduction, **extras)
    rows = input if input.dim() == 2 else input.unsqueeze(0)
    if input.dim() == 1:
        if reduction == "sample":
            raise ValueError("linear_cross_entropy: reduction='sample' needs a batch of rows")
        if target.shape != (1,) or target.is_floating_point():
            target = target.unsqueeze(0)
        shape = (1, *shape)
    dtype = _dtype_of_products(input, linear_weight, linear_bias)
    stand_in = torch.empty((), dtype=dtype, device=input.device).expand(shape)  # for logits
    check_target("linear_cross_entropy", stand_in, target)
    soft = target.shape == shape
    if not soft:
        target = check_labels(stand_in, target, 1)
    check_class_weight("linear_cross_entropy", stand_in, 1, weight)
    normalizer, call = softmax_call(
        "linear_cross_entropy", "cross_entropy", stand_in, target, weight, 1, reduction,
        target_form="probs" if soft else "labels", **extras,
    )  # fmt: skip
    denominator = _denominator(target, weight, normalizer, call)
    chunked = Walk(call.backend, call.arguments, call.out_dtype, dtype, _rows_at_a_time(options))
    (loss,) = one_pass(
        chunked, rows, linear_weight, linear_bias, target, weight, normalizer, denominator
    )
    if input.dim() == 1 and reduction == "none":
        return torch.ops.aten._unsafe_view(loss, ())  # not a view, like any other loss
    return loss


# The oldest torch that lossops supports does not have this class.
class LinearCrossEntropyLoss(
    LossModule,
    getattr(torch.nn, "LinearCrossEntropyLoss", _WeightedLoss),
    function=linear_cross_entropy,
):
    """A linear layer and its cross entropy; see :func:`lossops.functional.linear_cross_entropy`.

    Args:
        in_features: H.
        num_classes: C.
        out_features: d1, …, dK.
        bias: whether the layer has a bias.
        device, dtype: those of the layer's parameters.
        weight, reduction, ignore_index, label_smoothing, options, z_loss, softcap, temperature: as
            for the function.

    Raises:
        RuntimeError: if ``weight`` is not of shape (C), or ``label_smoothing`` is outside [0, 1].

    Follows :class:`torch.nn.LinearCrossEntropyLoss`, and has the same parameters.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: object | None = None,
        z_loss: float = 0.0,
        softcap: float | None = None,
        temperature: float = 1.0,
    ) -> None:
        if weight is not None and weight.shape != (num_classes,):
            raise RuntimeError(
                f"expected weight shape to be {(num_classes,)}, got {tuple(weight.shape)}"
            )
        if not 0 <= label_smoothing <= 1:
            raise RuntimeError(
                f"expected label_smoothing to be in range [0, 1], got {label_smoothing}"
            )
        _WeightedLoss.__init__(self, weight=weight, reduction=reduction)
        self.num_classes = num_classes
        self.out_features = out_features
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        outputs = math.prod(out_features, start=num_classes)
        self.linear = torch.nn.Linear(in_features, outputs, bias=bias, device=device, dtype=dtype)
        self.options = options
        self.z_loss = z_loss
        self.softcap = softcap
        self.temperature = temperature

    def forward(
        self, input: Tensor, target: Tensor, normalizer: float | Tensor | None = None
    ) -> Tensor:
        shape = (self.num_classes, *self.out_features)
        bias = self.linear.bias
        return linear_cross_entropy(
            input, self.linear.weight.reshape(*shape, self.linear.in_features), target,
            linear_bias=None if bias is None else bias.reshape(shape), weight=self.weight,
            reduction=self.reduction, ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing, options=self.options, z_loss=self.z_loss,
            softcap=self.softcap, temperature=self.temperature, normalizer=normalizer,
        )  # fmt: skip

    def extra_repr(self) -> str:
        linear, names = self.linear, ("out_features", "reduction", "ignore_index")
        names += ("label_smoothing", "options", "z_loss", "softcap", "temperature")
        rest = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        layer = f"in_features={linear.in_features}, num_classes={self.num_classes}"
        return f"{layer}, bias={linear.bias is not None}, {rest}"


def _dtype_of_products(*tensors: Tensor | None) -> torch.dtype:
    """The dtype in which torch's linear multiplies. Like it, rejects tensors of different dtypes
    that autocast does not cast to the same one."""
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
    if autocasts(tensors[0].device.type):  # which leaves float64 unchanged
        narrow = torch.get_autocast_dtype(tensors[0].device.type)
        dtypes = {dtype if dtype == torch.float64 else narrow for dtype in dtypes}
    if len(dtypes) > 1:
        raise RuntimeError(
            "expected input, linear_weight and linear_bias to have the same dtype, got "
            + ", ".join(str(tensor.dtype) for tensor in tensors if tensor is not None)
        )
    return dtypes.pop()


def _are_few(shape: tuple, input: Tensor) -> bool:
    """Whether all logits may be computed at once. Not in half precision, because that needs a wider
    copy of the weight. Not under export either, because it would specialise the program to small or
    to large logits."""
    if input.dtype in HALF_DTYPES or autocasts(input.device.type):
        return False
    if torch.compiler.is_exporting():
        return False
    return math.prod(shape) * input.dtype.itemsize <= _FEW_BYTES


def _rows_at_a_time(options: object | None) -> int:
    """The number of rows per chunk; 0 means chosen automatically."""
    chosen = getattr(options, "batch_chunk_size", None)
    if chosen is not None and chosen < 0:
        raise ValueError(f"batch_chunk_size should not be negative, got {chosen}")
    return chosen or 0


def _denominator(target, weight, normalizer, call: SoftmaxCall) -> Tensor | None:
    """The divisor of a mean that is a number, if no normalizer is given."""
    arguments = call.arguments
    if arguments.reduction != "mean" or not call.gives_a_number:
        return None
    if normalizer is not None:
        return None
    wide = accumulator(call.out_dtype)
    if arguments.target_form != "labels":
        return torch.full((), target.shape[0], dtype=wide, device=target.device)
    target = target.long()  # as uint8, an ignore_index of -100 would be 156
    counts = (target != arguments.ignore_index) & (target >= 0)
    if weight is None:
        return counts.sum(dtype=wide)
    counts = counts & (target < weight.shape[0])
    return torch.where(counts, weight[torch.where(counts, target, 0)], 0.0).sum(dtype=wide)


def _logits_shape(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> tuple:
    if input.dim() not in (1, 2):
        raise RuntimeError(f"expected input with dimensionality 1 or 2, got {input.dim()}")
    if linear_weight.dim() < 2:
        raise RuntimeError(
            f"expected linear_weight with dimensionality at least 2, got {linear_weight.dim()}"
        )
    if input.shape[-1] != linear_weight.shape[-1]:
        raise RuntimeError(
            "expected equal input and linear_weight last dimensions (in_features), "
            f"got {input.shape[-1]} and {linear_weight.shape[-1]}, respectively"
        )
    classes = tuple(linear_weight.shape[:-1])
    if linear_bias is not None and tuple(linear_bias.shape) != classes:
        raise RuntimeError(f"expected linear_bias shape {classes}, got {tuple(linear_bias.shape)}")
    if len(classes) > 1 and input.dim() == 1:
        raise RuntimeError(
            f"K-dimensional loss defined by linear_weight shape {tuple(linear_weight.shape)} "
            f"requires batched input, (N, {input.shape[-1]}), got unbatched input with shape "
            f"{tuple(input.shape)}"
        )
    return (*input.shape[:-1], *classes)


def _at_once(layer, shape, target, weight, **options) -> Tensor:
    """Computes the loss from all logits, which are float32 if the layer is in half precision."""
    device, dtype = layer[0].device.type, _dtype_of_products(*layer)
    if dtype in HALF_DTYPES:
        layer = (None if tensor is None else tensor.float() for tensor in layer)
    loss = cross_entropy(_all_logits(*layer, shape), target, weight, **options)
    if dtype not in HALF_DTYPES or autocasts(device):
        return loss
    soft = target.is_floating_point()
    return loss.to(torch.promote_types(dtype, target.dtype) if soft else dtype)


@without_autocast
def _all_logits(input, linear_weight, linear_bias, shape) -> Tensor:
    if linear_weight.dim() == 2:
        return torch.nn.functional.linear(input, linear_weight, linear_bias)
    weight = linear_weight.reshape(math.prod(linear_weight.shape[:-1]), input.shape[-1])
    bias = None if linear_bias is None else linear_bias.reshape(-1)
    return torch.nn.functional.linear(input, weight, bias).reshape(shape)
