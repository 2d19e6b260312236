"""The cross entropy of a linear layer, in chunks of its rows.

A walk processes the rows in chunks. It computes the logits of a chunk, the row kernel overwrites
them with their gradient, and two more products propagate it to the layer's input and weight. Only
tensors of the size of these are kept. In half precision, logits and their gradient are in float32,
except that products on CUDA round the gradient. ``torch.compile`` sees a walk as one op.
Higher-order derivatives use the formulas in :mod:`lossops.softmax.reference`, over all logits.
"""

from __future__ import annotations

import contextlib
import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lossops.core import backends, contract, library
from lossops.core.backends import settled
from lossops.core.fused import Mask, OnePass
from lossops.core.library import accumulator
from lossops.softmax import reference
from lossops.softmax.ops import SoftmaxArguments, check_softmax

# A chunk is an eighth of the rows, or a sixteenth if logits have a wider dtype than the layer. It
# has at least _FEWEST_ROWS, because products of fewer rows are slow and each chunk reads and writes
# the gradient of the weight once. Its logits have at most _MOST_BYTES in the layer's dtype, because
# larger logits are what chunking should avoid. _FEWEST_ROWS takes precedence.
_CHUNKS, _FEWEST_ROWS, _MOST_BYTES = 8, 128, 1 << 28

# Half precision is multiplied in pieces of at least _FEWEST_CLASSES classes, so that no tensor as
# large as the weight or the logits of a chunk is copied to another dtype.
_PIECES, _FEWEST_CLASSES = 16, 128

_WALK = (
    "Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, "
    "Tensor? class_weight, str backend, str target_form, float[] params, int ignore_index, "
    "ScalarType dtype, ScalarType out_dtype, int rows"
)


def _rows_at_once(chosen: int, rows: int, classes: int, dtype: torch.dtype) -> int:
    most = _MOST_BYTES // max(1, classes * dtype.itemsize)
    chunks = _CHUNKS * accumulator(dtype).itemsize // dtype.itemsize
    return chosen or max(_FEWEST_ROWS, min(most, math.ceil(rows / chunks)))


class _Chunks:
    """The layer's tensors, which are or will be cast to ``dtype``, and their gradients, which are
    accumulated over the chunks."""

    def __init__(self, input, linear_weight, linear_bias, dtype, rows, mask):
        self.input, self.wide = input, accumulator(dtype)
        # CUDA multiplies half precision to unrounded products. Elsewhere the factors are widened.
        self.unrounded = dtype != self.wide and input.is_cuda and torch.version.hip is None
        self.dtype = dtype if self.unrounded else self.wide  # of the factors of a product
        self.matrix = linear_weight.to(dtype) if self.unrounded else linear_weight
        self.bias = None if linear_bias is None else linear_bias.to(self.wide)
        classes = linear_weight.shape[0]
        self.rows = _rows_at_once(rows, input.shape[0], classes, dtype)
        whole = self.matrix.dtype == self.wide
        self.step = max(_FEWEST_CLASSES, classes if whole else math.ceil(classes / _PIECES))
        self.by_input = torch.empty_like(input, dtype=self.wide) if mask[0] else None
        self.by_weight = torch.zeros_like(linear_weight, dtype=self.wide) if mask[1] else None
        self.by_bias = torch.zeros_like(linear_bias, dtype=self.wide) if mask[2] else None

    def __iter__(self):
        for begin in range(0, self.input.shape[0], self.rows):
            yield slice(begin, begin + self.rows)

    def pieces(self):
        for begin in range(0, max(1, self.matrix.shape[0]), self.step):
            yield slice(begin, begin + self.step)

    def logits(self, chunk: slice) -> Tensor:
        x = self.input[chunk].to(self.dtype)
        if self.matrix.dtype == self.wide:
            return torch.nn.functional.linear(x, self.matrix, self.bias)
        if self.unrounded:
            logits = torch.mm(x, self.matrix.t(), out_dtype=self.wide)
        else:
            logits = x.new_empty(x.shape[0], self.matrix.shape[0])
            for piece in self.pieces():
                torch.mm(x, self.matrix[piece].to(self.wide).t(), out=logits[:, piece])
        return logits if self.bias is None else logits.add_(self.bias)

    def add(self, by_logits: Tensor, chunk: slice) -> None:
        x, by_x = self.input[chunk].to(self.dtype), None
        for piece in self.pieces():
            factor = by_logits[:, piece].to(self.dtype)
            if self.by_input is not None:
                by_x = self._added(by_x, factor, self.matrix[piece].to(self.dtype))
            if self.by_weight is not None:
                self._added(self.by_weight[piece], factor.t(), x)
        if self.by_input is not None:
            self.by_input[chunk] = by_x
        if self.by_bias is not None:
            self.by_bias += by_logits.sum(0, dtype=self.wide)

    def _added(self, sums: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
        """Adds a product to the sums, in place, and returns them."""
        if self.unrounded:
            product = torch.mm(a, b, out_dtype=self.wide)
            return product if sums is None else sums.add_(product)
        return a @ b if sums is None else torch.addmm(sums, a, b, out=sums)

    @property
    def gradients(self) -> tuple[Tensor | None, ...]:
        return self.by_input, self.by_weight, self.by_bias


def _of_rows(target_form, params, ignore_index, reduction) -> SoftmaxArguments:
    return SoftmaxArguments(
        "cross_entropy", 1, "logits", target_form, params, ignore_index, False, reduction, 0
    )


def _autocast_off(device: str):
    """A context without autocast: products keep their factors' dtype."""
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def without_autocast(function):
    """Disables autocast in a function, and in its backward."""

    @functools.wraps(function)
    def as_given(*arguments):
        with _autocast_off(arguments[0].device.type):
            return function(*arguments)

    return as_given


@without_autocast
def _sum(
    input, linear_weight, linear_bias, target, class_weight, backend, target_form, params,
    ignore_index, dtype, out_dtype, rows, output_mask,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Returns the unrounded sum of the losses and its requested gradients. Those by weight and bias
    are unrounded as well."""
    ops, wide = backends.kernel_ops(backend), accumulator(dtype)
    call = (*_of_rows(target_form, params, ignore_index, "sum"), wide)
    chunks = _Chunks(input, linear_weight, linear_bias, dtype, rows, output_mask)
    value = torch.zeros((), dtype=wide, device=input.device)
    for chunk in chunks:
        logits, read = chunks.logits(chunk), (target[chunk], class_weight, None)
        if any(output_mask):
            value += ops.softmax_forward_(logits, *read, *call, (False,) * 3)[0]
            chunks.add(logits, chunk)  # logits now holds their gradient
        else:
            value += ops.softmax_forward(logits, *read, *call, (False,) * 5)[0]
        del logits  # free them before the next ones are allocated
    return value, *chunks.gradients


@without_autocast
def _losses(
    input, linear_weight, linear_bias, target, class_weight, backend, target_form, params,
    ignore_index, dtype, out_dtype, rows,
) -> Tensor:  # fmt: skip
    """Returns the loss of every row."""
    ops = backends.kernel_ops(backend)
    call = (*_of_rows(target_form, params, ignore_index, "none"), out_dtype, (False,) * 5)
    chunks = _Chunks(input, linear_weight, linear_bias, dtype, rows, (False,) * 3)
    values = input.new_empty(input.shape[0], dtype=out_dtype)
    for chunk in chunks:
        read = (target[chunk], class_weight, None)
        values[chunk] = ops.softmax_forward(chunks.logits(chunk), *read, *call)[0]
    return values


@without_autocast
def _losses_backward(
    grad_output, input, linear_weight, linear_bias, target, class_weight, backend, target_form,
    params, ignore_index, dtype, out_dtype, rows, output_mask,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Returns the gradients of the row losses. Those by weight and bias are unrounded."""
    ops = backends.kernel_ops(backend)
    call = (*_of_rows(target_form, params, ignore_index, "none"), (True, False))
    chunks = _Chunks(input, linear_weight, linear_bias, dtype, rows, output_mask)
    chunks.rows = math.ceil(chunks.rows / 2)  # logits and their gradient coexist
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
        torch.empty_like(input, dtype=wide) if mask[0] else None,
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


def _rounded(grads, layer) -> list[Tensor | None]:
    """Casts the gradients to the dtypes of the layer's tensors."""
    pairs = zip(grads, layer, strict=True)
    return [None if grad is None else grad.to(tensor.dtype) for grad, tensor in pairs]


# Autograd formulas of the ops, for graphs that contain them directly, such as exported programs.


def _keep_sum(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:5], *output[1:])
    ctx.op_args = inputs[5:-1]


def _sum_backward(ctx, grad_output, *_):
    read, grads, mask = ctx.saved_tensors[:5], ctx.saved_tensors[5:], ctx.needs_input_grad[:3]
    if any(wanted and grad is None for wanted, grad in zip(mask, grads, strict=True)):
        _, *grads = torch.ops.lossops.linear_cross_entropy_sum(*read, *ctx.op_args, mask)
    pairs = zip(mask, grads, strict=True)
    grads = [grad * grad_output if wanted else None for wanted, grad in pairs]
    return *_rounded(grads, read[:3]), *[None] * 10


def _keep_losses(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:5])
    ctx.op_args = inputs[5:]


def _differentiate_losses(ctx, grad_output):
    read, mask = ctx.saved_tensors, ctx.needs_input_grad[:3]
    grads = torch.ops.lossops.linear_cross_entropy_losses_backward(
        grad_output.contiguous(), *read, *ctx.op_args, mask
    )
    return *_rounded(grads, read[:3]), *[None] * 9


def _check_walk(
    input, linear_weight, linear_bias, target, class_weight, backend, target_form, params,
    ignore_index, dtype, out_dtype, rows, output_mask=(False,) * 3,
) -> None:  # fmt: skip
    """Makes the checks of the raw row ops, which are not called without rows, and further ones."""
    contract.check_tensors(
        input.device, input=input, linear_weight=linear_weight, linear_bias=linear_bias
    )
    contract.require(
        input.dim() == linear_weight.dim() == 2, lambda: "input and weight should be matrices"
    )
    contract.check_shape(
        "input", input, (input.shape[0], linear_weight.shape[1]), "rows of the weight"
    )
    if linear_bias is not None:
        contract.check_shape("linear_bias", linear_bias, linear_weight.shape[:1], "the classes")
    contract.check_dtype("dtype", dtype)
    contract.check_dtype("out_dtype", out_dtype)
    rows_and_classes = input.shape[0], linear_weight.shape[0]
    logits = input.new_empty((), dtype=accumulator(dtype)).expand(rows_and_classes)
    rows_call = _of_rows(target_form, params, ignore_index, "sum")
    check_softmax(logits, target, class_weight, None, rows_call)
    contract.check_mask(output_mask, (input, linear_weight, linear_bias))
    contract.require(rows >= 0, lambda: f"rows should not be negative, got {rows}")
    contract.require(
        backend in ("native", "triton"), lambda: f"there are no kernels of {backend!r}"
    )


def _checked(kernel, *first: str, has_memory: bool = True):
    """Adds the checks to a kernel. ``first`` names the arguments that precede those of the walk."""

    @functools.wraps(kernel)
    def checked(*arguments):
        upstream, walk = arguments[: len(first)], arguments[len(first) :]
        _check_walk(*walk)
        for name, tensor in zip(first, upstream, strict=True):
            contract.check_tensors(walk[0].device, **{name: tensor})
            contract.check_shape(name, tensor, walk[0].shape[:1], "the rows")
        if has_memory:
            contract.check_memory([("a tensor", tensor, False) for tensor in arguments])
        return kernel(*arguments)

    return checked


_without_data = functools.partial(_checked, has_memory=False)

library.compose(
    "linear_cross_entropy_sum",
    f"({_WALK}, bool[3] output_mask) -> (Tensor, Tensor?, Tensor?, Tensor?)",
    _checked(_sum), _without_data(_fake_sum), _sum_backward, _keep_sum,
)  # fmt: skip
library.compose(
    "linear_cross_entropy_losses", f"({_WALK}) -> Tensor", _checked(_losses),
    _without_data(_fake_losses), _differentiate_losses, _keep_losses,
)  # fmt: skip
library.compose(
    "linear_cross_entropy_losses_backward",
    f"(Tensor grad_output, {_WALK}, bool[3] output_mask) -> (Tensor, Tensor, Tensor)",
    _checked(_losses_backward, "grad_output"), _without_data(_fake_losses_backward, "grad_output"),
)  # fmt: skip


@dataclass(eq=False)
class Walk(OnePass):
    """A walk over the chunks, of these tensors: input [rows, features], linear_weight
    [classes, features], linear_bias [classes]; class indices [rows] or probabilities
    [rows, classes], class weights [classes], a normalizer, 0-d, and the denominator of a mean
    without one, 0-d."""

    dtype: torch.dtype  # of the layer in products; in half precision, logits are float32
    rows: int  # per chunk; 0: chosen automatically

    Arguments = SoftmaxArguments
    family = "linear"
    moving = 3

    def walks(self) -> tuple[_Eagerly | _AsOps, tuple]:
        """Returns the walks, as ops under torch.compile, and their non-tensor arguments."""
        call, params = self.arguments, settled(self.arguments.params)
        if not torch.compiler.is_compiling():
            walks = _Eagerly
        else:
            walks = _WITH_TENSOR if isinstance(params, Tensor) else _WITH_NUMBERS
        return walks, (
            self.backend, call.target_form, params, call.ignore_index, self.dtype, self.out_dtype,
            self.rows,
        )  # fmt: skip

    def divisor(self, tensors: tuple) -> Tensor | None:
        """The divisor of a mean that is a number: the normalizer if given, else the denominator."""
        *_, normalizer, denominator = tensors
        if self.arguments.reduction == "mean" and self.gives_a_number:
            return denominator if normalizer is None else normalizer
        return None

    def has_gradients_ready(self, tensors: tuple, mask: Mask) -> bool:
        return self.gives_a_number  # those of the sum, which are never in half precision

    def forward(self, tensors: tuple, mask: Mask):
        walks, op_args = self.walks()
        if not self.gives_a_number:
            return (walks.losses(*tensors[:5], *op_args),), tensors, ()
        value, *grads = walks.sum(*tensors[:5], *op_args, mask)
        if (divisor := self.divisor(tensors)) is not None:
            value = value / divisor
        return (value.to(self.out_dtype),), tensors, grads

    def backward(self, cotangents: tuple, tensors: tuple, mask: Mask):
        walks, op_args = self.walks()
        (grad_output,), read = cotangents, tensors[:5]
        if self.gives_a_number:
            _, *grads = walks.sum(*read, *op_args, mask)
            return self.scale(grads, grad_output, tensors, mask)
        grads = walks.losses_backward(grad_output.contiguous(), *read, *op_args, mask)
        return _rounded(grads, read[:3])

    def scale(self, grads, grad_output: Tensor, tensors: tuple, mask: Mask):
        """Multiplies the gradients of the sum by grad_output / divisor as a single factor, so that
        float16 gradients are not rounded to 0 in between."""
        factor = grad_output.to(accumulator(self.dtype))
        if (divisor := self.divisor(tensors)) is not None:
            factor = torch.where(divisor == 0, 0.0, factor / divisor)  # 0 if nothing counts
        grads = [None if grad is None else _scaled(grad, factor) for grad in grads]
        return _rounded(grads, tensors[:3])

    def formula(self, input, linear_weight, linear_bias, target, weight, normalizer, _):
        layer, wide = (input, linear_weight, linear_bias), accumulator(self.dtype)
        logits = torch.nn.functional.linear(*(t if t is None else t.to(wide) for t in layer))
        call = (*self.arguments, self.out_dtype)
        return reference.softmax(logits, target, weight, normalizer, *call)[:1]

    def differentiable_gradients(self, cotangents: tuple, tensors: tuple, mask: Mask):
        with _autocast_off(tensors[0].device.type):
            return super().differentiable_gradients(cotangents, tensors, mask)


class _Eagerly:
    sum, losses, losses_backward = map(staticmethod, (_sum, _losses, _losses_backward))


class _AsOps:
    def __init__(self, form: str):
        for walk in ("sum", "losses", "losses_backward"):
            op = getattr(torch.ops.lossops, f"linear_cross_entropy_{walk}{form}")
            setattr(self, walk, op.default)


_WITH_NUMBERS, _WITH_TENSOR = _AsOps(""), _AsOps("_tensor_params")


def _scaled(grad: Tensor, scale: Tensor) -> Tensor:
    return grad * scale if torch.compiler.is_compiling() else grad.mul_(scale)
