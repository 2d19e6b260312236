"""Shared argument validation: rejects invalid arguments and normalises the others.

Exceptions have the same types as torch's, and the same messages where torch has one. Messages name
the argument, the expected value and the actual value.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import _reduction as _torch_reduction

HALF_DTYPES = frozenset({torch.bfloat16, torch.float16})
KERNEL_DTYPES = HALF_DTYPES | {torch.float64, torch.float32}
# Public reduction -> (reduction of the kernels, number of leading dimensions that they keep).
REDUCTIONS = {"none": ("none", 0), "mean": ("mean", 0), "sum": ("sum", 0), "sample": ("mean", 1)}


def legacy_reduction(size_average, reduce, reduction: str) -> str:
    if size_average is None and reduce is None:
        return reduction
    return _torch_reduction.legacy_get_string(size_average, reduce)


def number(function: str, name: str, value) -> float:
    """Converts a hyperparameter to a float. Losses are not differentiable with respect to
    hyperparameters, so a tensor that requires grad is rejected."""
    if type(value) is float:
        return value
    if isinstance(value, Tensor):
        if value.requires_grad or value.dim() > 0:
            raise TypeError(
                f"{function}(): {name} should be a number; a loss is not differentiable by it. "
                f"Got a Tensor of shape {tuple(value.shape)}, requires_grad={value.requires_grad}"
            )
        return float(value)
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{function}(): {name} should be a number, got {type(value).__name__}")
    return float(value)


def number_on(device: torch.device, value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Converts a number to a 0-d tensor."""
    if torch.compiler.is_compiling():  # torch.full would specialise the graph on a symbolic value
        return torch.ones((), dtype=dtype, device=device) * value
    return torch.full((), value, dtype=dtype, device=device)


def savable(tensor: Tensor | None) -> Tensor | None:
    """Returns a tensor that autograd can save. An inference tensor, such as the output of a teacher
    model, is replaced by a normal tensor that shares its memory, or holds what a lazy negation or
    conjugation makes of it."""
    if type(tensor) is not Tensor or torch.compiler.is_compiling():
        return tensor
    if not tensor.is_inference() or torch.is_inference_mode_enabled():
        return tensor
    if tensor.is_neg() or tensor.is_conj():
        return tensor.resolve_neg().resolve_conj()
    fresh = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    place = tensor.storage_offset(), tensor.shape, tensor.stride()
    return fresh.set_(tensor.untyped_storage(), *place)


def require_tensors(function: str, **arguments) -> None:
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{function}(): {name} should be a Tensor, got {type(value).__name__}")


def integer_or_complex(input, target) -> bool:
    return (
        isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and (
            input.is_complex()
            or target.is_complex()
            or not (input.is_floating_point() or target.is_floating_point())
        )
    )


def autocasts(device: str) -> bool:
    # torch.is_autocast_enabled raises for device types without autocast, such as meta.
    return device != "meta" and torch.is_autocast_enabled(device)


def promoted(input: Tensor, target: Tensor) -> torch.dtype:
    """``torch.result_type`` of two tensors, in a form that torch.compile can trace."""
    if input.is_floating_point() and target.is_floating_point():
        if (input.dim() == 0) == (target.dim() == 0):
            return torch.promote_types(input.dtype, target.dtype)
        return target.dtype if input.dim() == 0 else input.dtype
    if input.is_floating_point() and not target.is_complex():
        return input.dtype
    if target.is_floating_point() and not input.is_complex():
        return target.dtype
    return torch.promote_types(input.dtype, target.dtype)


def check_reduction(reduction: str) -> None:
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"{reduction} is not a valid value for reduction")


@dataclass(frozen=True)
class Range:
    """The values that a hyperparameter may have. A call validates one, and returns it as a
    float."""

    wanted: str  # completes "should be"
    contains: Callable[[float], bool]
    outside: tuple[float, ...]  # values that are rejected, for the tests; NaN always is
    error: type[Exception] = ValueError
    message: str = "{function}(): {name} should be {wanted}, got {value}"
    optional: bool = False  # None is a value, too

    def __call__(self, function: str, name: str, value) -> float | None:
        if value is None and self.optional:
            return None
        value = number(function, name, value)
        if not self.contains(value):
            raise self.error(
                self.message.format(function=function, name=name, wanted=self.wanted, value=value)
            )
        return value


defined = Range("a number", lambda value: value == value, ())
finite = Range("finite", lambda value: -math.inf < value < math.inf, (-math.inf, math.inf))
positive = Range("positive and finite", lambda value: 0 < value < math.inf, (-1.0, 0.0, math.inf))
not_negative = Range("at least 0 and finite", lambda value: 0 <= value < math.inf, (-0.1, math.inf))
