"""Cross entropy of logits that a linear layer makes, without ever holding all of them; public as
part of :mod:`lossops.functional`.

The rows are walked in chunks: a chunk's logits are multiplied out, the row kernel puts their
gradient in their place, and two more products carry it to the layer's input and weight. What stays
is of the size of those. Where a gradient is differentiated itself, and under ``torch.func`` and
``torch.compile``, the loss is what it says: ``cross_entropy(linear(x, weight), target)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import handle_torch_function, has_torch_function_variadic

from lossops import backends
from lossops import softmax_reference as reference
from lossops.autograd import is_transformed, merge, transforms_active
from lossops.checks import autocasts, require_tensors
from lossops.classification import cross_entropy
from lossops.library import accumulator
from lossops.softmax_autograd import SoftmaxCall
from lossops.softmax_checks import (
    check_class_weight,
    check_labels,
    check_smoothing,
    check_target,
    softmax_call,
)

__all__ = ["linear_cross_entropy"]

# A chunk is a sixteenth of the rows, at least so many, and its logits no more bytes than these: a
# product of fewer rows is slow, larger logits would be what is to be avoided.
_CHUNKS, _FEWEST_ROWS, _MOST_BYTES = 16, 128, 1 << 28


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

    The logits of a few rows exist at a time, never all of them: with a vocabulary of 128000 they
    would be the largest tensor of a language model by far. The weight's gradient is accumulated in
    float32. Derivatives of any order and ``torch.func``'s transforms are right; those, and
    ``torch.compile``, do make all logits.

    Args:
        input: x, of shape (H) or (N, H).
        linear_weight: A, of shape (C, H); or (C, d1, …, dK, H), whose logits of shape
            (N, C, d1, …, dK) are made at once.
        target: class indices (int64, int32 or uint8) of shape () or (N) (or (N, d1, …, dK)); or
            class probabilities, of the shape of the logits.
        linear_bias: b, of the shape of A without H.
        weight: a number per class, of shape (C).
        reduction: "none", "mean", "sum" or "sample", as in :func:`cross_entropy`.
        ignore_index: a label whose rows have loss and gradient 0 and do not count; -100 unless
            given. Not with probabilities.
        label_smoothing, z_loss, softcap, temperature, normalizer: as in :func:`cross_entropy`.
        options: torch's ``LinearCrossEntropyOptions``, or None. Its ``batch_chunk_size``, where
            given, is the number of rows at a time; the rest of it is not needed here.

    Returns:
        The loss, of input's dtype (float32 under autocast): a scalar, or a number per row.

    Raises:
        RuntimeError: for shapes that do not match, or ``ignore_index`` with probabilities.
        ValueError, IndexError: as :func:`cross_entropy`.

    Follows :func:`torch.nn.functional.linear_cross_entropy`. Wijmans et al., Cut Your Losses in
    Large-Vocabulary Language Models, 2024.

    Example:
        >>> import torch, lossops.functional as F
        >>> x, a = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> F.linear_cross_entropy(x, a, torch.tensor([1]))
        tensor(0.3133)
    """
    if has_torch_function_variadic(input, linear_weight, target, linear_bias, weight):
        return handle_torch_function(
            linear_cross_entropy, (input, linear_weight, target, linear_bias, weight), input,
            linear_weight, target, linear_bias=linear_bias, weight=weight, reduction=reduction,
            ignore_index=ignore_index, label_smoothing=label_smoothing, options=options,
            z_loss=z_loss, softcap=softcap, temperature=temperature, normalizer=normalizer,
        )  # fmt: skip
    require_tensors("linear_cross_entropy", input=input, linear_weight=linear_weight, target=target)
    shape = _logits_shape(input, linear_weight, linear_bias)
    if target.shape == shape and ignore_index is not None:
        raise RuntimeError("ignore_index cannot be specified when target contains probabilities")
    extras = {
        "ignore_index": -100 if ignore_index is None else ignore_index,
        "label_smoothing": check_smoothing(label_smoothing),
        "z_loss": z_loss, "softcap": softcap, "temperature": temperature, "normalizer": normalizer,
    }  # fmt: skip
    moving = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (target, weight)
    )
    whole = moving or transforms_active() or torch.compiler.is_compiling()
    whole = whole or backends.resolve(input) == "reference"
    if whole or linear_weight.dim() > 2 or not input.is_floating_point():
        logits = _all_logits(input, linear_weight, linear_bias, shape)
        return cross_entropy(logits, target, weight, reduction=reduction, **extras)
    rows = input if input.dim() == 2 else input.unsqueeze(0)
    if input.dim() == 1:
        if target.shape != (1,) or target.is_floating_point():
            target = target.unsqueeze(0)
        shape = (1, *shape)
    dtype = _dtype_of_logits(input, linear_weight, linear_bias)
    stand_in = torch.empty((), dtype=dtype, device=input.device).expand(shape)  # for the logits
    check_target("linear_cross_entropy", stand_in, target)
    soft = target.shape == shape
    if not soft:
        target = check_labels(stand_in, target, 1)
    check_class_weight("linear_cross_entropy", stand_in, 1, weight)
    normalizer, call = softmax_call(
        "linear_cross_entropy", "cross_entropy", stand_in, target, 1, reduction,
        target_form="probs" if soft else "labels", **extras,
    )  # fmt: skip
    denominator = _denominator(target, weight, normalizer, call)
    loss = _Chunked.apply(
        rows, linear_weight, linear_bias, target, weight, normalizer, denominator,
        _Walk(call, dtype, _rows_at_once(shape, dtype, options)),
    )  # fmt: skip
    return loss.squeeze(0) if input.dim() == 1 and reduction == "none" else loss


def _dtype_of_logits(*tensors: Tensor | None) -> torch.dtype:
    """What torch's linear gives; it refuses tensors of several dtypes, but for those that autocast
    makes one."""
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
    if autocasts(tensors[0].device.type):  # which leaves float64 alone
        narrow = torch.get_autocast_dtype(tensors[0].device.type)
        dtypes = {dtype if dtype == torch.float64 else narrow for dtype in dtypes}
    if len(dtypes) > 1:
        raise RuntimeError(
            "expected input, linear_weight and linear_bias to have the same dtype, got "
            + ", ".join(str(tensor.dtype) for tensor in tensors if tensor is not None)
        )
    return dtypes.pop()


def _rows_at_once(shape: tuple, dtype: torch.dtype, options: object | None) -> int:
    if chosen := getattr(options, "batch_chunk_size", None):
        return chosen
    rows, classes = shape
    most = _MOST_BYTES // max(1, classes * dtype.itemsize)
    return max(_FEWEST_ROWS, min(most, math.ceil(rows / _CHUNKS)))


def _denominator(target, weight, normalizer, call: SoftmaxCall) -> Tensor | None:
    """What a mean divides by, where it is a number."""
    if call.reduction != "mean" or not call.gives_a_number:
        return None
    if normalizer is not None:
        return normalizer
    wide = accumulator(call.out_dtype)
    if call.target_form != "labels":
        return torch.full((), target.shape[0], dtype=wide, device=target.device)
    target = target.long()  # in uint8, an ignore_index of -100 would be 156
    counts = (target != call.ignore_index) & (target >= 0)
    if weight is None:
        return counts.sum(dtype=wide)
    counts = counts & (target < weight.shape[0])
    return torch.where(counts, weight[torch.where(counts, target, 0)], 0.0).sum(dtype=wide)


@dataclass(frozen=True)
class _Walk:
    """How the rows are walked, and what is computed of each chunk."""

    call: SoftmaxCall
    dtype: torch.dtype  # of the logits
    rows: int  # at once

    def __call__(self, tensors, target, weight, mask=(False,) * 3, grad_output=None):
        """The sum of the losses, or those of the rows; and the gradients that are wanted, of that
        sum or, with ``grad_output``, of the rows."""
        input, linear_weight, linear_bias = tensors
        number, wide = self.call.gives_a_number, accumulator(self.dtype)
        ops = backends.kernel_ops(self.call.backend)
        call = replace(self.call, reduction="sum" if number else "none", keep_dims=0)
        matrix = linear_weight.to(self.dtype)
        bias = None if linear_bias is None else linear_bias.to(self.dtype)
        grads = [
            torch.empty_like(input) if mask[0] else None,
            torch.zeros_like(linear_weight, dtype=wide) if mask[1] else None,
            torch.zeros_like(linear_bias, dtype=wide) if mask[2] else None,
        ]
        values = []
        for begin in range(0, input.shape[0], self.rows):
            chunk = slice(begin, begin + self.rows)
            x, labels = input[chunk].to(self.dtype), target[chunk]
            logits = torch.nn.functional.linear(x, matrix, bias)
            arguments = (labels, weight, None, *call.op_args)
            if grad_output is not None:
                by_logits = ops.softmax_backward(
                    grad_output[chunk], None, None, logits, *arguments, (True, False)
                )[0]
            elif number and any(mask):
                by_logits = logits  # in their place
                found = ops.softmax_forward_(logits, *arguments, wide, (False,) * 3)
                values.append(found[0])
            else:
                found = ops.softmax_forward(logits, *arguments, self.out_dtype, (False,) * 5)
                values.append(found[0])
                continue
            self._add(grads, by_logits, x, matrix, chunk)
            del logits, by_logits  # before the next ones are made
        if grad_output is not None:
            return None, grads
        if number:
            return torch.stack(
                [torch.zeros((), dtype=wide, device=input.device), *values]
            ).sum(), grads
        return torch.cat(values or [input.new_empty(0, dtype=self.out_dtype)]), grads

    @property
    def out_dtype(self) -> torch.dtype:
        """Of a chunk: sums are rounded when all are added up."""
        wide = accumulator(self.dtype)
        return wide if self.call.gives_a_number else self.call.out_dtype

    @staticmethod
    def _add(grads, by_logits, x, matrix, chunk) -> None:
        by_input, by_matrix, by_bias = grads
        if by_input is not None:
            by_input[chunk] = by_logits @ matrix
        if by_matrix is not None:
            if by_logits.dtype == by_matrix.dtype:
                by_matrix.addmm_(by_logits.t(), x)
            else:
                by_matrix.addmm_(by_logits.t().to(by_matrix.dtype), x.to(by_matrix.dtype))
        if by_bias is not None:
            by_bias += by_logits.sum(0, dtype=by_bias.dtype)


class _Chunked(Function):
    """The loss of all chunks. What its gradients are multiplied by at last comes in one number, so
    that those in float16 are not rounded to 0 first."""

    @staticmethod
    def forward(
        ctx, input, linear_weight, linear_bias, target, weight, normalizer, denominator, walk
    ):
        mask = ctx.needs_input_grad[:3]
        value, grads = walk((input, linear_weight, linear_bias), target, weight, mask)
        ctx.walk = walk
        ctx.grads = grads if walk.call.gives_a_number else None
        ctx.save_for_backward(
            input, linear_weight, linear_bias, target, weight, normalizer, denominator
        )
        if denominator is not None:
            value = value / denominator
        return value.to(walk.call.out_dtype)

    @staticmethod
    def backward(ctx, grad_output):
        *tensors, target, weight, normalizer, denominator = ctx.saved_tensors
        walk, mask = ctx.walk, ctx.needs_input_grad[:3]
        grads, ctx.grads = ctx.grads, None
        if torch.is_grad_enabled() or is_transformed(grad_output):
            found = _differentiable_gradients(
                grad_output, tensors, target, weight, normalizer, walk, mask
            )
            return *found, *[None] * 5
        if not walk.call.gives_a_number:
            _, grads = walk(tensors, target, weight, mask, grad_output.contiguous())
        elif grads is None:
            _, grads = walk(tensors, target, weight, mask)
        scale = grad_output.to(accumulator(walk.dtype))
        if denominator is not None:  # of nothing, the gradient is 0
            scale = torch.where(denominator == 0, 0.0, scale / denominator)
        found = [None] * 3
        for i, (grad, tensor) in enumerate(zip(grads, tensors, strict=True)):
            if grad is not None:
                found[i] = (grad.mul_(scale) if walk.call.gives_a_number else grad).to(tensor.dtype)
        return *found, *[None] * 5


def _differentiable_gradients(grad_output, tensors, target, weight, normalizer, walk, mask) -> list:
    """The gradients by the formulas in plain torch, as what torch can differentiate further."""

    def loss(*moving):
        merged = merge(tensors, mask, moving)  # under autocast, wider than the logits
        logits = torch.nn.functional.linear(*(t if t is None else t.to(walk.dtype) for t in merged))
        call = walk.call
        rows = reference.softmax(logits, target, weight, normalizer, *call.op_args, call.out_dtype)
        return rows[0]

    moving = [tensor for tensor, moves in zip(tensors, mask, strict=True) if moves]
    found = iter(torch.func.vjp(loss, *moving)[1](grad_output))
    return [next(found) if moves else None for moves in mask]


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


def _all_logits(input, linear_weight, linear_bias, shape) -> Tensor:
    weight = linear_weight.reshape(math.prod(linear_weight.shape[:-1]), input.shape[-1])
    bias = None if linear_bias is None else linear_bias.reshape(-1)
    return torch.nn.functional.linear(input, weight, bias).reshape(shape)
