"""The autograd Function of losses over rows of vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.autograd import Function

from lossops.core.backends import kernel_ops, native_extension, settled
from lossops.core.formulas import formula_gradients
from lossops.core.library import KernelOps
from lossops.core.transforms import is_transformed
from lossops.core.unfused import composed
from lossops.vectors.reference import FORMULAS


@dataclass(eq=False)  # a frozen dataclass takes four times as long to construct
class VectorsCall:
    """The non-tensor arguments of a loss. Not a tuple, which torch.func would flatten."""

    backend: str
    loss: str
    params: tuple[float, ...]
    reduction: str  # "none", "mean" or "sum"
    out_dtype: torch.dtype

    def kernels(self) -> tuple[KernelOps, tuple]:
        """Returns the raw ops that run this call, and their non-tensor arguments."""
        params = settled(self.params)
        return kernel_ops(self.backend, params), (self.loss, params, self.reduction)


class FusedVectors(Function):
    """A loss over rows of vectors, which all have the shape (rows, length) and the same dtype."""

    @staticmethod
    def forward(ctx, label, row_weight, call, *vectors):
        mask = ctx.needs_input_grad[3:]
        ready = call.reduction != "none" and vectors[0].dtype != torch.float16
        wanted = mask if ready else (False,) * len(mask)
        ops, op_args = call.kernels()
        value, *grads = ops.vectors_forward(
            vectors, label, row_weight, *op_args, call.out_dtype, _three(wanted)
        )
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
                kernel_ops(call.backend).elementwise_rescale_(
                    [g for g in grads if g is not None], grad_output
                )
        elif grads:  # without mutation, so that the compiler can fuse the scaling
            grads = [None if g is None else (g * grad_output).to(g.dtype) for g in grads]
        if not grads:
            ops, op_args = call.kernels()
            grads = ops.vectors_backward(
                grad_output, vectors, label, row_weight, *op_args, _three(mask)
            )[: len(mask)]
        return None, None, None, *grads


def _three(mask) -> tuple[bool, ...]:
    return tuple(mask) + (False,) * (3 - len(mask))


def formula_of(loss, params, label, row_weight):
    def formula(*vectors):
        rows = FORMULAS[loss](vectors, label, *params)
        return rows if row_weight is None else rows * row_weight

    return formula


def _differentiable_gradients(grad_output, vectors, mask, label, row_weight, call) -> list:
    """Computes the gradients from the formulas, so that torch can differentiate them again."""

    def loss(*moving):
        remaining = iter(moving)
        merged = [next(remaining) if yes else v for v, yes in zip(vectors, mask, strict=True)]
        formula = formula_of(call.loss, call.params, label, row_weight)
        value = composed(call.loss, formula, tuple(merged), call.reduction)
        return (value.to(call.out_dtype),)

    moving = tuple(v for v, yes in zip(vectors, mask, strict=True) if yes)
    found = iter(formula_gradients(loss, moving, (grad_output,)))
    return [next(found) if yes else None for yes in mask]


def _differentiable_backward(grad_output, vectors, mask, label, row_weight, *args):
    """Called by csrc/ops/vectors/fused.cpp. Returns the gradients, None where not requested."""
    call, mask = VectorsCall("native", *args), mask[: len(vectors)]
    found = _differentiable_gradients(grad_output, vectors, mask, label, row_weight, call)
    return tuple(found + [None] * (3 - len(found)))


if native_extension is not None:
    native_extension.set_differentiable_vectors_backward(_differentiable_backward)
