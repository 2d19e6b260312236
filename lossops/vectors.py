"""Losses over rows of one to three vectors: from a public function to the kernels.

A row's vectors become one number. The forward kernel gives the loss and, where that is a single
number, its gradients in the same pass; the first ``backward()`` hands those out, scaled in place by
``grad_output``. A loss with a number per row, and one of float16, whose small gradients would lose
digits by scaling, have theirs computed by the backward kernel. Whatever differentiates gradients,
and ``torch.func``, gets the formulas in :mod:`lossops.vectors_reference`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function

from lossops import backends
from lossops.autograd import attached, distinct, is_transformed, transforms_active
from lossops.backends import kernel_ops, native_extension
from lossops.checking import can_look
from lossops.checks import HALF_DTYPES, KERNEL_DTYPES, autocasts
from lossops.composed import check_reduction, composed, mean_of_samples
from lossops.library import VECTOR_SIGNATURES, accumulator
from lossops.spread import gathered
from lossops.vectors_reference import FORMULAS


@dataclass(eq=False)  # frozen ones take four times as long to make
class VectorsCall:
    """What a loss is called with, besides tensors. Not a tuple, as in :mod:`lossops.autograd`."""

    backend: str
    loss: str
    params: tuple[float, ...]
    reduction: str  # "none", "mean" or "sum"
    out_dtype: torch.dtype


class FusedVectors(Function):
    """A loss over rows of vectors, all of the shape (rows, length) and of one dtype."""

    @staticmethod
    def forward(ctx, label, row_weight, call, *vectors):
        mask = ctx.needs_input_grad[3:]
        ready = call.reduction != "none" and vectors[0].dtype != torch.float16
        wanted = mask if ready else (False,) * len(mask)
        value, *grads = kernel_ops(call.backend).vectors_forward(
            vectors, label, row_weight, call.loss, call.params, call.reduction, call.out_dtype,
            _three(wanted),
        )  # fmt: skip
        ctx.call = call
        grads = grads[: len(vectors)] if ready else []
        if torch.compiler.is_compiling():
            ctx.save_for_backward(label, row_weight, *vectors, *grads)
        else:
            ctx.grads = grads
            ctx.save_for_backward(label, row_weight, *vectors)
        return value

    @staticmethod
    def backward(ctx, grad_output):
        call, mask = ctx.call, ctx.needs_input_grad[3:]
        label, row_weight, *saved = ctx.saved_tensors
        vectors, grads = saved[: len(mask)], saved[len(mask) :]
        if not torch.compiler.is_compiling():
            grads, ctx.grads = ctx.grads, []
            if torch.is_grad_enabled() or is_transformed(grad_output):
                found = _differentiable_gradients(
                    grad_output, vectors, mask, label, row_weight, call
                )
                return None, None, None, *found
            if grads:
                kernel_ops(call.backend).rescale_([g for g in grads if g is not None], grad_output)
        elif grads:  # without mutation, so that the compiler may fuse the scaling
            grads = [None if g is None else (g * grad_output).to(g.dtype) for g in grads]
        if not grads:
            grads = kernel_ops(call.backend).vectors_backward(
                grad_output, vectors, label, row_weight, call.loss, call.params, call.reduction,
                _three(mask),
            )[: len(mask)]  # fmt: skip
        return None, None, None, *grads


def _three(mask) -> tuple[bool, ...]:
    return tuple(mask) + (False,) * (3 - len(mask))


def _differentiable_gradients(grad_output, vectors, mask, label, row_weight, call) -> list:
    """The gradients by the formulas, as what torch can differentiate further."""

    def loss(*moving):
        remaining = iter(moving)
        merged = [next(remaining) if yes else v for v, yes in zip(vectors, mask, strict=True)]
        formula = _formula(call.loss, call.params, label, row_weight)
        return composed(call.loss, formula, tuple(merged), call.reduction).to(call.out_dtype)

    _, pullback = torch.func.vjp(loss, *(v for v, yes in zip(vectors, mask, strict=True) if yes))
    found = iter(pullback(grad_output))
    return [attached(next(found), v) if yes else None for v, yes in zip(vectors, mask, strict=True)]


def _differentiable_backward(grad_output, vectors, mask, label, row_weight, *args):
    """What csrc/ops/vectors_fused.cpp calls: the gradients, None where not wanted."""
    call, mask = VectorsCall("native", *args), mask[: len(vectors)]
    found = _differentiable_gradients(grad_output, vectors, mask, label, row_weight, call)
    return tuple(found + [None] * (3 - len(found)))


if native_extension is not None:
    native_extension.set_differentiable_vectors_backward(_differentiable_backward)


def _formula(loss, params, label, row_weight):
    def formula(*vectors):
        rows = FORMULAS[loss](vectors, label, *params)
        return rows if row_weight is None else rows * row_weight

    return formula


def _common_dtype(function: str, vectors, label: Tensor | None, row_weight: Tensor | None):
    """The dtype of vectors together. Refuses tensors that are elsewhere, or not dense."""
    first = vectors[0]
    dtype, device = first.dtype, first.device
    for tensor in (*vectors, label, row_weight):
        if tensor is None:
            continue
        if tensor.layout is not torch.strided:
            raise NotImplementedError(
                f"{function}(): tensors should be dense, got layout {tensor.layout}"
            )
        if tensor.device != device:
            raise RuntimeError(
                f"{function}(): expected all tensors to be on the same device, but found "
                f"{device} and {tensor.device}"
            )
    for tensor in vectors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _as_rows(loss: str, vectors, label, row_weight, dtype: torch.dtype) -> tuple:
    """The shape of the rows, and all as the raw ops take it."""
    first, lists = vectors[0], VECTOR_SIGNATURES[loss].label == "list"
    shape = first.shape
    if len(shape) == 2 and all(t.shape == shape and t.dtype == dtype for t in vectors):
        kept = shape[:1]
        if label is None or label.shape == (shape if lists else kept):
            return kept, vectors, label, row_weight
    of_rows = [tensor.shape[:-1] for tensor in vectors]
    if label is not None:
        of_rows.append(label.shape[:-1] if lists else label.shape)
    kept = torch.broadcast_shapes(*of_rows)
    length, count = first.shape[-1], math.prod(kept)
    rows = tuple(t.to(dtype).expand(*kept, length).reshape(count, length) for t in vectors)
    row_weight = row_weight if row_weight is None else row_weight.expand(kept).reshape(count)
    if lists:
        label = label.reshape(count, length)
    elif label is not None:
        label = label.expand(kept).reshape(count)
    return kept, rows, label, row_weight


def _check_labels(function: str, loss: str, label: Tensor | None, classes: int) -> None:
    """On the CPU: elsewhere to look would mean to wait."""
    takes = VECTOR_SIGNATURES[loss].label
    if takes not in ("index", "list") or not can_look(label):
        return
    if gathered(((label < (-1 if takes == "list" else 0)) | (label >= classes)).any()):
        raise RuntimeError(f"{function}(): target out of range, of {classes} classes")


def vectors_loss(
    function: str,
    loss: str,
    vectors: tuple[Tensor, ...],  # broadcast together; the last dimension is the row's
    reduction: str,
    params: tuple[float, ...] = (),
    label: Tensor | None = None,  # of the shape of the rows; or, lists, of that of the vectors
    row_weight: Tensor | None = None,  # the same; multiplies a row's loss
    widens: bool = True,  # under autocast, half precision to float32
) -> Tensor:
    """Settles shapes and dtypes and runs a call, by kernels where there are some for it."""
    check_reduction(reduction)
    dtype = _common_dtype(function, vectors, label, row_weight)
    backend = backends.resolve(vectors[0])
    # A norm is over the length of its own vectors, before these are broadcast.
    one_length = all(tensor.shape[-1] == vectors[0].shape[-1] for tensor in vectors[1:])
    graph = torch.is_grad_enabled()
    moves = row_weight is not None and row_weight.requires_grad and graph
    plain = not one_length or dtype not in KERNEL_DTYPES or moves or transforms_active()
    plain = plain or backend == "reference"
    if plain or backend == "triton":  # the native kernels look themselves
        _check_labels(function, loss, label, vectors[0].shape[-1])
    if plain:
        return composed(function, _formula(loss, params, label, row_weight), vectors, reduction)
    kept, rows, label, row_weight = _as_rows(loss, vectors, label, row_weight, dtype)
    if dtype in HALF_DTYPES and widens and autocasts(rows[0].device.type):
        dtype = torch.float32
    single = reduction in ("mean", "sum")
    mode = reduction if single else "none"
    out_dtype = accumulator(dtype) if reduction == "sample" else dtype
    moving = graph and any(tensor.requires_grad for tensor in rows)
    if moving and backend == "native" and not torch.compiler.is_compiling():
        value = native_extension.fused_vectors(
            rows, label, row_weight, loss, params, mode, out_dtype
        )
    elif moving:
        call = VectorsCall(backend, loss, params, mode, out_dtype)
        value = FusedVectors.apply(label, row_weight, call, *distinct(*rows))
    else:
        value = kernel_ops(backend).vectors_forward(
            rows, label, row_weight, loss, params, mode, out_dtype, (False,) * 3
        )[0]
    if single:
        return value
    if len(kept) != 1:  # no view, which would forbid to change it in place
        value = torch.ops.aten._unsafe_view(value, kept)
    return value if reduction == "none" else mean_of_samples(function, value).to(dtype)
