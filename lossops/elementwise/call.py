"""Validates the arguments of an elementwise loss; settles shapes and dtypes.

Exceptions have torch's types, and its words where it has some; they name the argument, what it was
and what it should be.
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
from lossops.core.library import accumulator
from lossops.core.transforms import transforms_active
from lossops.elementwise.autograd import Call, elementwise

# As it is when this is imported: lossops.use_in_torch() may put ours in its place.
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
    """Checks a call, settles shapes and dtypes, and runs it. A ``normalizer``, 0-d, is what the sum
    is divided by."""
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
    call = Call(backends.resolve(input, target, weight), loss, params, mode, keep_dims, dtype)
    denominator = normalizer if sum_of_weights is None else sum_of_weights
    moves = sum_of_weights is not None and torch.is_grad_enabled() and weight.requires_grad
    if denominator is not None and (moves or transforms_active()):
        # The loss depends on the weight through the denominator too; and to a transform it may be a
        # tensor like any other. Leave it to autograd.
        total = replace(call, reduction="sum", out_dtype=accumulator(dtype))
        loss = elementwise(input, target, weight, None, total)
        return (loss / denominator).to(dtype)
    return elementwise(input, target, weight, denominator, call)


def broadcast_loss(loss: str, input, target, weight, reduction: str, *params: float) -> Tensor:
    """The same where tensors may broadcast, and a weighted mean is one over the elements."""
    return elementwise_loss(
        loss, input, target, weight, reduction, params,
        divides_by_weight=False, warns_of_broadcast=False,
    )  # fmt: skip


def _warn_of_broadcast(input: Tensor, target: Tensor) -> None:
    if torch.compiler.is_compiling():  # which cannot follow a warning
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
    """What a weighted mean divides by. The mean sums the weights as they are given, as torch does;
    a sample's own mean sums those of its elements, broadcast."""
    double = torch.float64 in (weight.dtype, target.dtype)
    dtype = torch.float64 if double else torch.float32
    if keep_dims == 0:
        return weight.sum(dtype=dtype)
    weight = weight.expand(torch.broadcast_shapes(weight.shape, target.shape))
    if weight.dim() == keep_dims:  # nothing to sum over; an empty list would mean everything
        return weight.to(dtype).contiguous()
    return weight.sum(tuple(range(keep_dims, weight.dim())), dtype=dtype)


def _settle_dtypes(input: Tensor, target: Tensor, weight: Tensor | None, broadcast_first: bool):
    """The tensors in dtypes that the kernels take, and the dtype of the loss. Where torch brings
    them to one shape first, a number counts for as much as the tensor it meets."""
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
        # Kernels compute in the widest dtype they are given: a float64 number does not make the
        # loss float64, so it must not arrive as one.
        fits = tensor.dtype in KERNEL_DTYPES and (
            dtype == torch.float64 or tensor.dtype != torch.float64
        )
        return tensor if fits else tensor.to(dtype)

    return settle(input), settle(target), None if weight is None else settle(weight), dtype


def l1_in_torch(input: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """The L1 loss of integer or complex tensors, for which there are no kernels."""
    if reduction != "sample":
        return _torch_l1_loss(input, target, reduction=reduction, weight=weight)
    rows = _torch_l1_loss(input, target, reduction="none", weight=weight)
    return rows.reshape(rows.shape[0], -1).mean(1)
