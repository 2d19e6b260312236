"""Between a public function and autograd: refuses what is wrong with a call, settles the rest.

Exceptions have torch's types, and its words where it has some; they name the argument, what it was
and what it should be.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import _reduction as _torch_reduction

from lossops import backends
from lossops.autograd import Call, elementwise, transforms_active

_HALF_DTYPES = frozenset({torch.bfloat16, torch.float16})
_KERNEL_DTYPES = _HALF_DTYPES | {torch.float64, torch.float32}
# What a reduction is to the kernels: how they reduce, and the leading dimensions they keep.
_REDUCTIONS = {"none": ("none", 0), "mean": ("mean", 0), "sum": ("sum", 0), "sample": ("mean", 1)}


def legacy_reduction(size_average, reduce, reduction: str) -> str:
    if size_average is None and reduce is None:
        return reduction
    return _torch_reduction.legacy_get_string(size_average, reduce)


def number(function: str, name: str, value) -> float:
    """A hyperparameter as a float. A loss is not differentiated by it, so tensors that want a
    gradient are refused."""
    if type(value) is float:
        return value
    if isinstance(value, Tensor) and (value.requires_grad or value.numel() != 1):
        raise TypeError(
            f"{function}(): {name} should be a number; a loss is not differentiable by it. "
            f"Got a Tensor of shape {tuple(value.shape)}, requires_grad={value.requires_grad}"
        )
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"{function}(): {name} should be a number, got {type(value).__name__}"
        ) from None


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


def elementwise_loss(
    loss: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    params: tuple[float, ...] = (),
    divides_by_weight: bool = True,
) -> Tensor:
    """Checks a call, settles shapes and dtypes, and runs it."""
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{reduction} is not a valid value for reduction")
    _check_tensors(loss, input, target, weight)
    input, target, weight, dtype = _settle_dtypes(input, target, weight)
    mode, keep_dims = _REDUCTIONS[reduction]
    sum_of_weights = None
    if weight is not None:
        if weight.shape != input.shape:
            raise ValueError(
                "Weights and input must have the same size. "
                f"Got weight of shape {tuple(weight.shape)}, input of shape {tuple(input.shape)}"
            )
        if divides_by_weight and mode == "mean":
            sum_of_weights = _sum_of_weights(weight, target, keep_dims)
    if target.shape != input.shape:
        warnings.warn(
            f"Using a target size ({target.size()}) that is different to the input size "
            f"({input.size()}). This will likely lead to incorrect results due to broadcasting. "
            "Please ensure they have the same size.",
            stacklevel=3,
        )
        input, target = torch.broadcast_tensors(input, target)
        if weight is not None:
            weight = weight.expand(input.shape)
    if input.dim() < keep_dims:
        raise ValueError(
            f"{loss}: reduction='sample' needs a batch dimension, got an input of shape ()"
        )

    if dtype in _HALF_DTYPES and _autocasts(input.device.type):
        dtype = torch.float32
    call = Call(backends.resolve(input), loss, params, mode, keep_dims, dtype)
    if sum_of_weights is None:
        return elementwise(input, target, weight, None, call)
    if transforms_active() or (torch.is_grad_enabled() and weight.requires_grad):
        # The loss depends on the weight through the denominator too: leave that to autograd.
        total = replace(call, reduction="sum", out_dtype=sum_of_weights.dtype)
        return (elementwise(input, target, weight, None, total) / sum_of_weights).to(dtype)
    return elementwise(input, target, weight, sum_of_weights, call)


def _autocasts(device: str) -> bool:
    # Asking about a device that autocast does not know, as the meta device, is an error.
    return device != "meta" and torch.is_autocast_enabled(device)


def _check_tensors(loss: str, input, target, weight) -> None:
    for name, tensor in (("input", input), ("target", target), ("weight", weight)):
        if isinstance(tensor, Tensor):
            if tensor.layout is not torch.strided:
                raise NotImplementedError(
                    f"{loss}: {name} should be a dense tensor, got layout {tensor.layout}"
                )
            if tensor.device != input.device:
                raise RuntimeError(
                    f"{loss}: expected all tensors to be on the same device, but found {name} on "
                    f"{tensor.device} and input on {input.device}"
                )
        elif tensor is not None or name != "weight":
            raise TypeError(f"{loss}: {name} should be a Tensor, got {type(tensor).__name__}")


def _sum_of_weights(weight: Tensor, target: Tensor, keep_dims: int) -> Tensor:
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    if keep_dims == 0:
        return weight.sum(dtype=dtype)
    shape = torch.broadcast_shapes(weight.shape, target.shape)
    return weight.expand(shape).sum(tuple(range(keep_dims, len(shape))), dtype=dtype)


def _settle_dtypes(input: Tensor, target: Tensor, weight: Tensor | None):
    """The tensors in dtypes that the kernels take, and the dtype of the loss."""
    dtype = input.dtype
    if target.dtype != dtype:
        dtype = torch.result_type(input, target)
    if weight is not None and weight.dtype != dtype:
        dtype = torch.promote_types(dtype, weight.dtype)
    if dtype not in _KERNEL_DTYPES:
        raise NotImplementedError(
            "input and target should be float64, float32, bfloat16 or float16 tensors, "
            f"got {input.dtype} and {target.dtype}"
        )

    def settle(tensor):
        # Kernels compute in the widest dtype they are given: a float64 number does not make the
        # loss float64, so it must not arrive as one.
        fits = tensor.dtype in _KERNEL_DTYPES and (
            dtype == torch.float64 or tensor.dtype != torch.float64
        )
        return tensor if fits else tensor.to(dtype)

    return settle(input), settle(target), None if weight is None else settle(weight), dtype
