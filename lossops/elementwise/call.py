"""Validates the arguments of elementwise losses; normalises shapes and dtypes.

Exceptions have the same types as torch's, and the same messages where torch has one. Messages name
the argument, the expected value and the actual value.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from lossops.core import backends
from lossops.core.arguments import (
    HALF_DTYPES,
    KERNEL_DTYPES,
    REDUCTIONS,
    autocasts,
    promoted,
    savable,
)
from lossops.core.fused import one_pass
from lossops.core.library import accumulator
from lossops.core.transforms import transforms_active
from lossops.elementwise.autograd import ElementwiseCall
from lossops.elementwise.ops import ElementwiseArguments

# Captured at import time, because lossops.use_in_torch() may replace this function later.
_torch_l1_loss = torch.nn.functional.l1_loss


def elementwise_loss(
    loss: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    params: tuple[float, ...] = (),
    divides_by_weight: bool = True,
    normalizer: Tensor | None = None,
    warns_of_broadcast: bool = True,
) -> Tensor:
    """Validates a call, normalises shapes and dtypes, and runs the loss. If a 0-d ``normalizer`` is
    given, the sum is divided by it."""
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"{reduction} is not a valid value for reduction")
    _check_tensors(loss, input, target, weight)
    input, target, weight = map(savable, (input, target, weight))
    input, target, weight, dtype = _settle_dtypes(input, target, weight, warns_of_broadcast)
    mode, keep_dims = REDUCTIONS[reduction]
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
        if warns_of_broadcast:
            _warn_of_broadcast(input, target)
        input, target = torch.broadcast_tensors(input, target)
        if weight is not None:
            weight = weight.expand(input.shape)
    if input.dim() < keep_dims:
        raise ValueError(
            f"{loss}: reduction='sample' needs a batch dimension, got an input of shape ()"
        )

    if dtype in HALF_DTYPES and autocasts(input.device.type):
        dtype = torch.float32
    arguments = ElementwiseArguments(loss, params, mode, keep_dims)
    call = ElementwiseCall(backends.resolve(input, target, weight), arguments, dtype)
    denominator = normalizer if sum_of_weights is None else sum_of_weights
    moves = sum_of_weights is not None and torch.is_grad_enabled() and weight.requires_grad
    if denominator is not None and (moves or transforms_active()):
        # The loss depends on the weight through the denominator too, and a transform may act on the
        # denominator as on any other tensor. Leave the division to autograd.
        arguments = arguments._replace(reduction="sum")
        total = replace(call, arguments=arguments, out_dtype=accumulator(dtype))
        (loss,) = one_pass(total, input, target, weight, None)
        return (loss / denominator).to(dtype)
    return one_pass(call, input, target, weight, denominator)[0]


def broadcast_loss(loss: str, input, target, weight, reduction: str, *params: float) -> Tensor:
    """:func:`elementwise_loss`, but tensors broadcast without a warning, and a weighted mean
    divides by the number of elements."""
    return elementwise_loss(
        loss, input, target, weight, reduction, params,
        divides_by_weight=False, warns_of_broadcast=False,
    )  # fmt: skip


def _warn_of_broadcast(input: Tensor, target: Tensor) -> None:
    if torch.compiler.is_compiling():  # torch.compile cannot trace a warning
        return
    warnings.warn(
        f"Using a target size ({target.size()}) that is different to the input size "
        f"({input.size()}). This will likely lead to incorrect results due to broadcasting. "
        "Please ensure they have the same size.",
        stacklevel=4,
    )


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
    """The denominator of a weighted mean. A mean over everything sums the weights without
    broadcasting them, as torch does. The mean of a sample sums the broadcast weights of its
    elements."""
    double = torch.float64 in (weight.dtype, target.dtype)
    dtype = torch.float64 if double else torch.float32
    if keep_dims == 0:
        return weight.sum(dtype=dtype)
    weight = weight.expand(torch.broadcast_shapes(weight.shape, target.shape))
    if weight.dim() == keep_dims:  # no dim left to sum over; an empty list of dims would mean all
        return weight.to(dtype).contiguous()
    return weight.sum(tuple(range(keep_dims, weight.dim())), dtype=dtype)


def _settle_dtypes(input: Tensor, target: Tensor, weight: Tensor | None, broadcast_first: bool):
    """Returns the tensors in dtypes that the kernels support, and the dtype of the loss. For losses
    that torch broadcasts first, a 0-d tensor promotes dtypes like a tensor with dimensions."""
    dtype = input.dtype
    if target.dtype != dtype:
        both = torch.broadcast_tensors(input, target) if broadcast_first else (input, target)
        dtype = promoted(*both)
    if weight is not None and weight.dtype != dtype:
        dtype = torch.promote_types(dtype, weight.dtype)
    if dtype not in KERNEL_DTYPES:
        raise NotImplementedError(
            "input and target should be float64, float32, bfloat16 or float16 tensors, "
            f"got {input.dtype} and {target.dtype}"
        )

    def settle(tensor):
        # Kernels compute in the widest dtype they receive. A 0-d float64 tensor that does not
        # promote the loss to float64 must therefore not be passed to them as float64.
        fits = tensor.dtype in KERNEL_DTYPES and (
            dtype == torch.float64 or tensor.dtype != torch.float64
        )
        return tensor if fits else tensor.to(dtype)

    return settle(input), settle(target), None if weight is None else settle(weight), dtype


def l1_in_torch(input: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """The L1 loss of integer or complex tensors, which the kernels do not support."""
    if reduction != "sample":
        return _torch_l1_loss(input, target, reduction=reduction, weight=weight)
    each = _torch_l1_loss(input, target, reduction="none", weight=weight)
    if each.dim() == 0:
        raise ValueError(
            "l1_loss: reduction='sample' needs a batch dimension, got an input of shape ()"
        )
    return each.unsqueeze(-1).flatten(1).mean(1)
