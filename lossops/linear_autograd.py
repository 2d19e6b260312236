"""How gradients flow: the autograd Function of a linear layer and its cross entropy.

The rows are walked in chunks: a chunk's logits are multiplied out, the row kernel puts their
gradient in their place, and two more products carry it to the layer's input and weight. What stays
is of the size of those. ``torch.compile`` sees a walk as one op. Derivatives of gradients come from
the formulas in :mod:`lossops.softmax_reference`, over all logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function

from lossops import backends, library
from lossops import softmax_reference as reference
from lossops.autograd import is_transformed, merge
from lossops.library import accumulator
from lossops.softmax_autograd import SoftmaxCall

# A chunk is an eighth of the rows, at least so many, and its logits no more bytes than these: a
# product of fewer rows is slow, and each chunk reads and writes the weight's gradient once; larger
# logits would be what is to be avoided.
_CHUNKS, _FEWEST_ROWS, _MOST_BYTES = 8, 128, 1 << 28

_WALK = (
    "Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, "
    "Tensor? class_weight, str backend, str target_form, float[] params, int ignore_index, "
    "ScalarType logits_dtype, ScalarType out_dtype, int rows"
)


def _rows_at_once(chosen: int, rows: int, classes: int, dtype: torch.dtype) -> int:
    most = _MOST_BYTES // max(1, classes * dtype.itemsize)
    return chosen or max(_FEWEST_ROWS, min(most, math.ceil(rows / _CHUNKS)))


class _Chunks:
    """The layer's tensors, and the gradients as they are added up, chunk by chunk."""

    def __init__(self, input, linear_weight, linear_bias, dtype, rows, mask):
        self.input, self.dtype, wide = input, dtype, accumulator(dtype)
        self.matrix = linear_weight.to(dtype)
        self.bias = None if linear_bias is None else linear_bias.to(dtype)
        self.rows = _rows_at_once(rows, input.shape[0], linear_weight.shape[0], dtype)
        self.by_input = torch.empty_like(input) if mask[0] else None
        self.by_weight = torch.zeros_like(linear_weight, dtype=wide) if mask[1] else None
        self.by_bias = torch.zeros_like(linear_bias, dtype=wide) if mask[2] else None

    def __iter__(self):
        for begin in range(0, self.input.shape[0], self.rows):
            yield slice(begin, begin + self.rows)

    def logits(self, chunk: slice) -> Tensor:
        x = self.input[chunk].to(self.dtype)
        return torch.nn.functional.linear(x, self.matrix, self.bias)

    def add(self, by_logits: Tensor, chunk: slice) -> None:
        if self.by_input is not None:
            self.by_input[chunk] = by_logits @ self.matrix
        if self.by_weight is not None:
            x, wide = self.input[chunk].to(self.dtype), self.by_weight.dtype
            self.by_weight.addmm_(by_logits.t().to(wide), x.to(wide))
        if self.by_bias is not None:
            self.by_bias += by_logits.sum(0, dtype=self.by_bias.dtype)

    @property
    def gradients(self) -> tuple[Tensor | None, ...]:
        return self.by_input, self.by_weight, self.by_bias


def _sum(
    input, linear_weight, linear_bias, target, class_weight, backend, target_form, params,
    ignore_index, logits_dtype, out_dtype, rows, output_mask,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The sum of the losses, unrounded, and its gradients that are wanted, by weight and bias
    unrounded too."""
    ops, wide = backends.kernel_ops(backend), accumulator(logits_dtype)
    call = (
        "cross_entropy", 1, "logits", target_form, params, ignore_index, False, "sum", 0, wide,
    )  # fmt: skip
    chunks = _Chunks(input, linear_weight, linear_bias, logits_dtype, rows, output_mask)
    value = torch.zeros((), dtype=wide, device=input.device)
    for chunk in chunks:
        logits, read = chunks.logits(chunk), (target[chunk], class_weight, None)
        if any(output_mask):
            value += ops.softmax_forward_(logits, *read, *call, (False,) * 3)[0]
            chunks.add(logits, chunk)  # by now their gradient
        else:
            value += ops.softmax_forward(logits, *read, *call, (False,) * 5)[0]
        del logits  # before the next ones are made
    return value, *chunks.gradients


def _losses(
    input, linear_weight, linear_bias, target, class_weight, backend, target_form, params,
    ignore_index, logits_dtype, out_dtype, rows,
) -> Tensor:  # fmt: skip
    """The loss of every row."""
    ops = backends.kernel_ops(backend)
    call = (
        "cross_entropy", 1, "logits", target_form, params, ignore_index, False, "none", 0,
        out_dtype, (False,) * 5,
    )  # fmt: skip
    chunks = _Chunks(input, linear_weight, linear_bias, logits_dtype, rows, (False,) * 3)
    values = input.new_empty(input.shape[0], dtype=out_dtype)
    for chunk in chunks:
        read = (target[chunk], class_weight, None)
        values[chunk] = ops.softmax_forward(chunks.logits(chunk), *read, *call)[0]
    return values


def _losses_backward(
    grad_output, input, linear_weight, linear_bias, target, class_weight, backend, target_form,
    params, ignore_index, logits_dtype, out_dtype, rows, output_mask,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients of the losses of the rows, by weight and bias unrounded."""
    ops = backends.kernel_ops(backend)
    call = (
        "cross_entropy", 1, "logits", target_form, params, ignore_index, False, "none", 0,
        (True, False),
    )  # fmt: skip
    chunks = _Chunks(input, linear_weight, linear_bias, logits_dtype, rows, output_mask)
    for chunk in chunks:
        logits, read = chunks.logits(chunk), (target[chunk], class_weight, None)
        cotangents = (grad_output[chunk], None, None)
        by_logits = ops.softmax_backward(*cotangents, logits, *read, *call)[0]
        del logits
        chunks.add(by_logits, chunk)
        del by_logits
    return chunks.gradients


def _fake_gradients(input, linear_weight, linear_bias, dtype, mask):
    wide = accumulator(dtype)
    return (
        torch.empty_like(input) if mask[0] else None,
        torch.empty_like(linear_weight, dtype=wide) if mask[1] else None,
        torch.empty_like(linear_bias, dtype=wide) if mask[2] else None,
    )


def _fake_sum(*call):
    value = call[0].new_empty((), dtype=accumulator(call[9]))
    return value, *_fake_gradients(*call[:3], call[9], call[-1])


def _fake_losses(*call):
    return call[0].new_empty(call[0].shape[0], dtype=call[10])


def _fake_losses_backward(grad_output, *call):
    return _fake_gradients(*call[:3], call[9], call[-1])


for _name, _schema, _kernel, _fake in (
    ("sum", f"({_WALK}, bool[3] output_mask) -> (Tensor, Tensor, Tensor, Tensor)", _sum, _fake_sum),
    ("losses", f"({_WALK}) -> Tensor", _losses, _fake_losses),
    (
        "losses_backward",
        f"(Tensor grad_output, {_WALK}, bool[3] output_mask) -> (Tensor, Tensor, Tensor)",
        _losses_backward,
        _fake_losses_backward,
    ),
):
    library.compose(f"linear_cross_entropy_{_name}", _schema, _kernel, _fake)


@dataclass(eq=False)
class Walk:
    """What the chunks are walked with, besides tensors."""

    call: SoftmaxCall
    dtype: torch.dtype  # of the logits
    rows: int  # at once; 0: as many as are good

    @property
    def op_args(self) -> tuple:
        call = self.call
        return (
            call.backend, call.target_form, call.params, call.ignore_index, self.dtype,
            call.out_dtype, self.rows,
        )  # fmt: skip


class ChunkedCrossEntropy(Function):
    """The loss of all chunks. What its gradients are multiplied by at last comes in one number, so
    that those in float16 are not rounded to 0 first."""

    @staticmethod
    def forward(
        ctx, input, linear_weight, linear_bias, target, weight, normalizer, denominator, walk
    ):
        read, mask = (input, linear_weight, linear_bias, target, weight), ctx.needs_input_grad[:3]
        grads = ()
        if walk.call.gives_a_number:
            value, *grads = _ops().sum(*read, *walk.op_args, mask)
            if denominator is not None:
                value = value / denominator
            value = value.to(walk.call.out_dtype)
        else:
            value = _ops().losses(*read, *walk.op_args)
        ctx.walk = walk
        if torch.compiler.is_compiling():
            ctx.save_for_backward(*read, normalizer, denominator, *grads)
        else:
            ctx.grads = grads
            ctx.save_for_backward(*read, normalizer, denominator)
        return value

    @staticmethod
    def backward(ctx, grad_output):
        walk, mask = ctx.walk, ctx.needs_input_grad[:3]
        *read, normalizer, denominator = ctx.saved_tensors[:7]
        if torch.compiler.is_compiling():  # compiled autograd over an eager graph finds none
            grads = ctx.saved_tensors[7:]
        else:
            grads, ctx.grads = ctx.grads, ()
            if torch.is_grad_enabled() or is_transformed(grad_output):
                found = _differentiable_gradients(grad_output, *read, normalizer, walk, mask)
                return *found, *[None] * 5
        if not walk.call.gives_a_number:
            grads = _ops().losses_backward(grad_output.contiguous(), *read, *walk.op_args, mask)
            scale = None
        else:
            if not grads:
                _, *grads = _ops().sum(*read, *walk.op_args, mask)
            scale = grad_output.to(accumulator(walk.dtype))
            if denominator is not None:  # of nothing, the gradient is 0
                scale = torch.where(denominator == 0, 0.0, scale / denominator)
        found = [
            None if grad is None else _scaled(grad, scale).to(tensor.dtype)
            for grad, tensor in zip(grads, read[:3], strict=True)
        ]
        return *found, *[None] * 5


class _Eagerly:
    sum, losses, losses_backward = map(staticmethod, (_sum, _losses, _losses_backward))


class _AsOps:
    sum = torch.ops.lossops.linear_cross_entropy_sum.default
    losses = torch.ops.lossops.linear_cross_entropy_losses.default
    losses_backward = torch.ops.lossops.linear_cross_entropy_losses_backward.default


def _ops():
    """The walks, as what can be traced where they are."""
    return _AsOps if torch.compiler.is_compiling() else _Eagerly


def _scaled(grad: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return grad
    return grad * scale if torch.compiler.is_compiling() else grad.mul_(scale)


def _differentiable_gradients(
    grad_output, input, linear_weight, linear_bias, target, weight, normalizer, walk, mask
) -> list:
    """The gradients by the formulas in plain torch, as what torch can differentiate further."""
    tensors = (input, linear_weight, linear_bias)

    def loss(*moving):
        merged = merge(tensors, mask, moving)  # under autocast, wider than the logits
        logits = torch.nn.functional.linear(*(t if t is None else t.to(walk.dtype) for t in merged))
        call = walk.call
        rows = reference.softmax(logits, target, weight, normalizer, *call.op_args, call.out_dtype)
        return rows[0]

    moving = [tensor for tensor, moves in zip(tensors, mask, strict=True) if moves]
    found = iter(torch.func.vjp(loss, *moving)[1](grad_output))
    return [next(found) if moves else None for moves in mask]
