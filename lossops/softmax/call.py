"""Argument handling of losses over rows of class scores, between the public functions and autograd.

Validates arguments; normalises shapes and dtypes. Exceptions have the same types as torch's, and
the same messages where torch has one.
"""

from __future__ import annotations

import math
import operator
from dataclasses import replace

import torch
from torch import Tensor

from lossops.core import backends
from lossops.core.arguments import (
    HALF_DTYPES,
    KERNEL_DTYPES,
    REDUCTIONS,
    Range,
    autocasts,
    number,
    number_on,
    positive,
    require_tensors,
    savable,
)
from lossops.core.contract import overlaps_itself
from lossops.core.fused import one_pass
from lossops.core.labels import check_range
from lossops.core.spread import beside, is_spread, is_whole, leaves_softmax_to_the_loss, whole_along
from lossops.core.transforms import transforms_active
from lossops.softmax.autograd import Outputs, SoftmaxCall
from lossops.softmax.ops import SoftmaxArguments

FORMS = ("logits", "log_probs", "probs")
SMOOTHING = Range(
    "between 0 and 1", lambda value: 0 <= value <= 1, (-0.1, 1.5), RuntimeError,
    "{name} must be between 0.0 and 1.0. Got: {value}",  # torch's message
)  # fmt: skip
SOFTCAP = replace(positive, optional=True)
_LABEL_DTYPES = (torch.int64, torch.int32, torch.uint8)


def softmax_loss(
    function: str,
    loss: str,
    input: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    **options,  # passed to softmax_call
) -> Outputs:
    """Runs a loss whose shapes have been checked."""
    input, target, class_weight = map(savable, (input, target, class_weight))
    normalizer, call = softmax_call(function, loss, input, target, class_weight, **options)
    if is_spread(input):
        arguments = call.arguments
        to_log_probs = arguments.form == "log_probs"
        if to_log_probs and leaves_softmax_to_the_loss(function, input, arguments.dim):
            # Log-probabilities are valid logits.
            call = replace(call, arguments=arguments._replace(form="logits"))
        input, target, class_weight = _whole_rows(input, target, class_weight, arguments)
    return one_pass(call, input, target, class_weight, normalizer)


def _whole_rows(input, target, class_weight, call: SoftmaxArguments) -> tuple:
    """Redistributes DTensors so that every process has whole rows, as the formulas require."""
    input, class_weight = whole_along(call.dim, input), whole_along(0, class_weight)
    if call.target_form != "labels":
        target = whole_along(call.dim, target)
    if is_whole(input):  # else a plain target may hold local rows only: torch rejects it
        target = beside(target, input)
    return input, target, beside(class_weight, input)


def softmax_call(
    function: str,
    loss: str,
    input: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    dim: int,
    reduction: str,
    form: str = "logits",
    target_form: str = "labels",
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    own_params: tuple[float, ...] = (),
    normalizer: float | Tensor | None = None,
    empty: str = "nan",
    per_row: tuple[bool, bool, bool] = (False, False, False),
    in_place: bool = False,
) -> tuple[Tensor | None, SoftmaxCall]:
    """Validates and normalises the arguments of a loss. Returns the normalizer in the form that the
    kernels take, and the call. Reads only shapes, dtypes and the range of labels of the tensors."""
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"{reduction} is not a valid value for reduction")
    if empty not in ("nan", "zero"):
        raise ValueError(f"{function}(): empty should be 'nan' or 'zero', got {empty!r}")
    if type(ignore_index) is not int:
        ignore_index = operator.index(ignore_index)
    if target_form == "labels":
        check_range(target, input.shape[dim], ignore_index)
    mode, keep_dims = REDUCTIONS[reduction]
    if keep_dims > dim:
        raise ValueError(
            f"{function}(): reduction='sample' needs a batch dimension before the classes, got "
            f"an input of shape {tuple(input.shape)} with its classes in dimension {dim}"
        )
    params = (
        temperature,
        0.0 if softcap is None else softcap,
        label_smoothing,
        z_loss,
        *(*own_params, 0.0, 0.0)[:2],
    )
    dtype = input.dtype
    if target_form != "labels":
        dtype = torch.promote_types(dtype, target.dtype)
    if dtype in HALF_DTYPES and autocasts(input.device.type):
        dtype = torch.float32
    if normalizer is not None:
        normalizer = _normalizer(function, normalizer, input, mode, keep_dims)
    if in_place:
        in_place = _may_overwrite(function, input, target, mode, keep_dims)
    backend = backends.resolve(input, target, class_weight)
    arguments = SoftmaxArguments(
        loss, dim, form, target_form, params, ignore_index, empty == "zero", mode, keep_dims
    )
    return normalizer, SoftmaxCall(backend, arguments, dtype, per_row=per_row, in_place=in_place)


def _normalizer(function: str, normalizer, input: Tensor, mode: str, keep_dims: int) -> Tensor:
    if mode != "mean" or keep_dims:
        raise ValueError(f"{function}(): normalizer replaces the denominator of reduction='mean'")
    if isinstance(normalizer, Tensor):
        if normalizer.numel() != 1 or normalizer.requires_grad:
            raise ValueError(
                f"{function}(): normalizer should be a number without gradient, got a Tensor of "
                f"shape {tuple(normalizer.shape)}, requires_grad={normalizer.requires_grad}"
            )
        if normalizer.dtype not in KERNEL_DTYPES:
            normalizer = normalizer.to(torch.float32)
        return savable(normalizer.detach()).reshape(())
    value = number(function, "normalizer", normalizer)
    if not 0 < value < math.inf:
        raise ValueError(f"{function}(): normalizer should be positive and finite, got {value}")
    return number_on(input.device, value)


def _may_overwrite(function: str, input: Tensor, target: Tensor, mode: str, keep_dims: int) -> bool:
    """Whether the gradient will overwrite the logits. Raises if ``inplace=True`` is not possible
    for this call."""
    if mode == "none" or keep_dims:
        raise ValueError(
            f"{function}(): inplace=True needs a loss that is a single number, of reduction "
            "'mean' or 'sum'"
        )
    if torch.compiler.is_compiling() or transforms_active():
        return False  # these decide themselves which memory is reused
    if torch.is_grad_enabled() and target.requires_grad:
        raise RuntimeError(
            f"{function}(): with inplace=True there is no gradient by the target, and it requires "
            "one"
        )
    if not (torch.is_grad_enabled() and input.requires_grad):
        return False
    if (input._base if input._is_view() else input).is_leaf:
        raise RuntimeError(
            f"{function}(): a leaf Variable that requires grad is being used in an in-place "
            "operation: with inplace=True its gradient would overwrite it"
        )
    if overlaps_itself(input):
        raise RuntimeError(
            f"{function}(): with inplace=True the logits should not share memory with each other, "
            f"got strides {input.stride()} of shape {tuple(input.shape)}"
        )
    # If the target shares memory with the logits, it would be overwritten before it is read.
    return not torch._C._is_alias_of(input, target)


def check_scores(function: str, input) -> None:
    """Checks the input of any loss over rows."""
    require_tensors(function, input=input)
    if input.layout is not torch.strided:
        raise NotImplementedError(
            f"{function}(): input should be a dense tensor, got layout {input.layout}"
        )
    if input.dtype not in KERNEL_DTYPES:
        raise NotImplementedError(
            f"{function}(): input should be a float64, float32, bfloat16 or float16 tensor, "
            f"got {input.dtype}"
        )


def check_target(function: str, input: Tensor, target) -> None:
    require_tensors(function, target=target)
    if target.device != input.device:
        raise RuntimeError(
            f"{function}(): expected all tensors to be on the same device, but found target on "
            f"{target.device} and input on {input.device}"
        )


def class_dimension(input: Tensor) -> int:
    """torch's class dimension: 0 for a single sample, 1 after a batch dimension."""
    return 0 if input.dim() == 1 else 1


def check_class_weight(function: str, input: Tensor, dim: int, weight, prefix: str = "") -> None:
    if weight is None:
        return
    require_tensors(function, weight=weight)
    classes = input.shape[dim]
    if weight.dim() != 1 or weight.shape[0] != classes:
        raise RuntimeError(
            f"{prefix}weight tensor should be defined either for all {classes} classes or no "
            f"classes but got weight tensor of shape: {list(weight.shape)}"
        )
    if weight.dtype not in KERNEL_DTYPES:
        raise RuntimeError(f"expected a floating point weight but got {weight.dtype}")
    if weight.device != input.device:
        raise RuntimeError(
            f"{function}(): expected all tensors to be on the same device, but found weight on "
            f"{weight.device} and input on {input.device}"
        )


def check_label_dtype(target: Tensor) -> None:
    if target.dtype not in _LABEL_DTYPES:
        name = torch.empty(0, dtype=target.dtype).type().removeprefix("torch.")
        name = name.removesuffix("Tensor")
        raise RuntimeError(f"expected target dtype to be Long, Int or Byte, but got {name}")


def check_labels(input: Tensor, target: Tensor, dim: int) -> Tensor:
    """Validates labels as torch does, and returns them in the shape of the rows."""
    if input.dim() == 1 and target.dim() == 1:
        if target.shape[0] != 1:
            raise ValueError(
                f"For 1D input, 1D target must have size 1, but got target size: {target.shape[0]}"
            )
        target = target.reshape(())
    if dim > 0 and (target.dim() == 0 or target.shape[0] != input.shape[0]):
        raise ValueError(
            f"Expected input batch_size ({input.shape[0]}) to match target batch_size "
            f"({target.shape[0] if target.dim() else 1})."
        )
    check_label_dtype(target)
    rows = (*input.shape[:dim], *input.shape[dim + 1 :])
    if tuple(target.shape) != rows:
        if input.dim() <= 2:
            raise RuntimeError(
                "0D or 1D target tensor expected, multi-target not supported: target should have "
                f"the shape {rows}, got {tuple(target.shape)}"
            )
        raise RuntimeError(f"Expected target size {list(rows)}, got {list(target.shape)}")
    return target


def check_form(function: str, name: str, form: str) -> str:
    if form not in FORMS:
        raise ValueError(f"{function}(): {name} should be one of {', '.join(FORMS)}, got {form!r}")
    return form


def any_dimension(function: str, input: Tensor, dim: int | None) -> int:
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


def labels_along(function: str, input: Tensor, target: Tensor, dim: int) -> Tensor:
    rows = (*input.shape[:dim], *input.shape[dim + 1 :])
    if tuple(target.shape) != rows:
        raise ValueError(
            f"{function}(): class indices should have the shape {rows}, got {tuple(target.shape)}"
        )
    check_label_dtype(target)
    return target
