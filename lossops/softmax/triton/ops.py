"""The raw ops of the softmax losses, implemented by the Triton kernels.

The contract is in ``lossops/softmax/ops.py``. A tensor is processed in place if the dimensions
before the class dimension collapse into one, and those after it, too. Other tensors are first
copied.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lossops.core.library import accumulator
from lossops.core.triton.launch import OPTIONS, on, sizes_and_strides
from lossops.softmax.ops import SoftmaxArguments, rows_shape
from lossops.softmax.triton.divergences import divergence_kernel
from lossops.softmax.triton.labels import label_loss_kernel
from lossops.softmax.triton.losses import DIVERGENCES, LABEL_LOSSES
from lossops.softmax.triton.sums import count_kernel, reduce_kernel

OPS = ("softmax_forward", "softmax_forward_", "softmax_backward", "softmax_backward_")

# Maximum number of elements of a resident tile, for one float32 tensor: they stay in registers.
RESIDENT = 16384
# Rows shorter than this share a program.
SHORT = 2048
# If classes are not contiguous, neighbouring rows are adjacent in memory. A tile takes this many
# rows (minimum, maximum), which are at least part of a 32-byte sector for each class.
LANES = 16, 128
PER_THREAD = 16  # tile elements; fewer if the dtype or the formula needs more registers
WARPS = 16, 8  # maximum, for label losses and divergences
REGISTERS = 1 << 16  # per multiprocessor
# The last program adds up the partial sums of all programs, SPAN[0] at once, or SPAN[1] if there
# are many.
SPAN = 1024, 4096
MANY = 1 << 16
COUNT_BLOCK, COUNT_SPLITS = 1024, 256


def softmax_forward(input, target, class_weight, normalizer, call, out_dtype, output_mask):
    problem = _Problem((input, target, class_weight, normalizer), call)
    value, extras = problem.empty_loss(out_dtype), problem.empty_extras(output_mask[:3])
    grads = problem.empty_gradients(output_mask[3:])
    problem.launch(value=value, extras=extras, grads=grads)
    return value, *extras, problem.counted, *grads


def softmax_forward_(input, target, class_weight, normalizer, call, out_dtype, output_mask):
    problem = _Problem((input, target, class_weight, normalizer), call)
    value, extras = problem.empty_loss(out_dtype), problem.empty_extras(output_mask)
    problem.launch(value=value, extras=extras, grads=(input, None))
    return value, *extras, problem.counted


def softmax_backward(
    grad_output, grad_lse, grad_entropy, input, target, class_weight, normalizer, call, output_mask
):
    problem = _Problem((input, target, class_weight, normalizer), call)
    grads = problem.empty_gradients(output_mask)
    if grad_output is None:
        grad_output = torch.zeros((), device=input.device)
    problem.launch(
        grad_output=grad_output, grad_lse=grad_lse, grad_entropy=grad_entropy, grads=grads
    )
    return grads


def softmax_backward_(
    grads, grad_output, input, target, class_weight, normalizer, call, output_mask
):
    problem = _Problem((input, target, class_weight, normalizer), call)
    given = iter(grads)
    grads = tuple(next(given) if wanted else None for wanted in output_mask)
    problem.launch(grad_output=grad_output, grads=grads, skip_one=True)


class _Rows(NamedTuple):
    """A tensor of rows, in the form that a kernel takes."""

    tensor: Tensor
    strides: tuple[int, int, int]  # outer, class, inner


class _Problem:
    """A loss over rows of class scores, as the kernels see it."""

    def __init__(self, operands: Sequence[Tensor | None], call: SoftmaxArguments):
        self.input, self.target, class_weight, normalizer = operands
        self.loss, dim, self.form, self.target_form, self.params, *_ = call
        self.dim, self.reduction = dim, call.reduction
        self.ignore_index, self.one_if_none = call.ignore_index, call.one_if_none
        self.rows_shape = rows_shape(self.input, dim)
        self.kept = self.rows_shape[: None if call.reduction == "none" else call.keep_dims]
        self.outer, self.inner = (
            math.prod(self.input.shape[:dim]),
            math.prod(self.input.shape[dim + 1 :]),
        )
        self.classes = self.input.shape[dim]
        self.rows, self.groups = self.outer * self.inner, math.prod(self.kept)
        self.group_size = math.prod(self.rows_shape[len(self.kept) :])
        self.class_weight = None if class_weight is None else class_weight.contiguous()
        self.labels = self.target.contiguous() if call.target_form == "labels" else None
        self.counted = None
        self.normalizer = None
        if call.reduction != "none" and normalizer is not None:
            self.normalizer = normalizer.contiguous()
        elif call.reduction == "mean" and self.labels is not None:
            self.normalizer = self.counted = self._count()

    def empty_loss(self, dtype: torch.dtype) -> Tensor:
        return self.input.new_empty(self.kept, dtype=dtype)

    def empty_extras(self, mask: Sequence[bool]) -> tuple[Tensor | None, ...]:
        dtype = accumulator(self.input.dtype)
        return tuple(
            self.input.new_empty(self.rows_shape, dtype=dtype) if wanted else None
            for wanted in mask
        )

    def empty_gradients(self, mask: Sequence[bool]) -> tuple[Tensor | None, ...]:
        wanted = zip((self.input, self.target), mask, strict=True)
        return tuple(torch.empty_like(tensor) if yes else None for tensor, yes in wanted)

    def launch(
        self,
        *,
        grad_output: Tensor | None = None,  # the loss's shape, or 0-d
        grad_lse: Tensor | None = None,  # the rows' shape
        grad_entropy: Tensor | None = None,
        value: Tensor | None = None,  # output, contiguous
        extras: Sequence[Tensor | None] = (None, None, None),  # lse, entropy, accuracy
        grads: Sequence[Tensor | None],  # outputs, of any layout
        skip_one: bool = False,
    ) -> None:
        """Evaluates the problem. ``skip_one`` leaves ``grads`` unchanged if the scalar
        ``grad_output`` is 1."""
        lse, entropy, accuracy = extras
        if not (self.rows and self.classes):
            for result, nothing in ((lse, -math.inf), (entropy, 0.0), (accuracy, 0.0)):
                if result is not None:
                    result.fill_(nothing)
            if value is not None:
                value.copy_(self._losses_of_nothing())
            return
        in_place = grads[0] is self.input
        input = self._arranged(self.input)
        written = [self._arranged(grad, copy=skip_one) for grad in grads]
        if in_place:
            written[0] = input
        grad_output, how = self._grad_output(grad_output)

        grouped = self.reduction != "none" and self.groups > 1
        losses = value if self.reduction == "none" else None
        if grouped and value is not None:
            losses = value.new_empty(self.rows, dtype=torch.float64)
        self._run(
            input,
            None if self.labels is not None else self._arranged(self.target),
            written,
            (grad_output, *(self._per_row(t) for t in (grad_lse, grad_entropy))),
            (losses, lse, entropy, accuracy),
            None if grouped or self.reduction == "none" else value,
            how,
            skip_one,
        )
        if grouped and value is not None:
            with on(value.device):
                reduce_kernel[(self.groups,)](
                    losses, self.normalizer, value, self.group_size, self._scale,
                    NORMALIZER=self._how(self.normalizer), BLOCK=1024, **OPTIONS,
                )  # fmt: skip
        for grad, output in zip(grads, written, strict=True):
            if output is not None and output.tensor is not grad:
                grad.copy_(output.tensor)

    def _run(self, input, target, grads, upstream, per_row, reduced, how, skip_one) -> None:
        outer, inner = self.outer, self.inner
        operands = [input, target, *grads]
        contiguous = input.strides[1] == 1
        if inner == 1 or all(
            rows is None or rows.strides[0] == inner * rows.strides[2] for rows in operands
        ):
            # The rows form a single dimension, which can be cut into tiles.
            position = 0 if inner == 1 else 2
            outer, inner = 1, outer * inner
            operands = [
                rows and _Rows(rows.tensor, (0, rows.strides[1], rows.strides[position]))
                for rows in operands
            ]
        operands = [rows and tuple(rows) for rows in operands]  # plain tuples, as Triton requires
        double = any(
            tensor is not None and tensor.dtype == torch.float64
            for tensor in (self.input, None if target is None else self.target, reduced)
        )
        divergence = self.loss in DIVERGENCES
        temperature, softcap, smoothing, z_loss, p0, _ = self.params
        long = DIVERGENCES[self.loss].long if divergence else softcap != 0
        two = divergence or target is not None  # both input and target rows are kept
        limit = RESIDENT >> (double + two + long)
        block, lanes, resident = _tiling(self.classes, inner, contiguous, limit)
        per_outer = triton.cdiv(inner, lanes)
        programs = outer * per_outer
        device = self.input.device
        workspace = None
        if reduced is not None and programs > 1:
            workspace = torch.zeros(programs + 1, dtype=torch.float64, device=device)
        num_warps = min(
            max(lanes * block // (32 * (PER_THREAD >> (double + long))), 1), WARPS[divergence]
        )
        common = {
            "FORM": self.form,
            "COOLED": temperature != 1,
            "COMPUTE": tl.float64 if double else tl.float32,
            "NORMALIZER": self._how(self.normalizer),
            "GRAD_OUTPUT": how,
            "SKIP_ONE": skip_one,
            "RESIDENT": resident,
            "ROWS": lanes,
            "BLOCK": block,
            "SPAN": SPAN[programs > MANY],
            **OPTIONS,
            "num_warps": num_warps,
        }
        if not torch.version.hip:
            # All available registers: by default ptxas would spill in order to fit one more
            # program.
            common["maxnreg"] = min(REGISTERS // (32 * num_warps), 255)
        sizes = (per_outer, inner, self.classes, self.group_size, self.ignore_index)
        with on(device):
            if divergence:
                divergence_kernel[(programs,)](
                    *operands, self.labels, self.normalizer, *upstream, *per_row, reduced,
                    workspace, *sizes, self._scale, temperature,
                    LOSS=DIVERGENCES[self.loss].function, TARGET_FORM=self.target_form, **common,
                )  # fmt: skip
            else:
                label_loss_kernel[(programs,)](
                    *operands, self.labels, self.class_weight, self.normalizer, *upstream,
                    *per_row, reduced, workspace, *sizes, self._scale, softcap, temperature,
                    smoothing, z_loss, p0,
                    LOSS=LABEL_LOSSES[self.loss].function, CAPPED=softcap != 0,
                    SMOOTHED=smoothing != 0, **common,
                )  # fmt: skip

    @property
    def _scale(self) -> float:
        return 1 / self.group_size if self.reduction == "mean" and self.normalizer is None else 1.0

    @staticmethod
    def _how(normalizer: Tensor | None) -> str:
        return "group" if normalizer is not None and normalizer.numel() > 1 else "one"

    def _per_row(self, tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None else tensor.expand(self.rows_shape).contiguous()

    def _count(self) -> Tensor:
        """The denominators of means over labels."""
        input = self.input
        normalizer = input.new_empty(self.kept, dtype=accumulator(input.dtype))
        if not (self.rows and self.classes):
            return normalizer.fill_(float(self.one_if_none))
        weighted = self.loss in LABEL_LOSSES and LABEL_LOSSES[self.loss].divides_by_weight
        splits = min(triton.cdiv(self.group_size, COUNT_BLOCK), COUNT_SPLITS)
        workspace = None
        if splits > 1:
            workspace = torch.zeros(
                self.groups * (splits + 1), dtype=torch.float64, device=input.device
            )
        with on(input.device):
            count_kernel[(self.groups, splits)](
                self.labels, self.class_weight if weighted else None, normalizer, workspace,
                self.group_size, self.classes, self.ignore_index,
                ONE_IF_NONE=self.one_if_none, BLOCK=COUNT_BLOCK, **OPTIONS,
            )  # fmt: skip
        return normalizer

    def _arranged(self, tensor: Tensor | None, copy: bool = True) -> _Rows | None:
        """The tensor, or a replacement that a kernel can index. ``copy`` also copies its values."""
        if tensor is None:
            return None
        strides = _collapsed(tensor, self.dim)
        if strides is None:
            tensor = (
                torch.empty_like(tensor, memory_format=torch.contiguous_format).copy_(tensor)
                if copy
                else torch.empty_like(tensor, memory_format=torch.contiguous_format)
            )
            strides = _collapsed(tensor, self.dim)
        return _Rows(tensor, strides)

    def _grad_output(self, grad_output: Tensor | None) -> tuple[Tensor | None, str]:
        """grad_output as the kernels read it, and how it varies: "one", "group" or "row"."""
        if grad_output is None:
            return None, "one"
        if all(stride == 0 or size == 1 for size, stride in sizes_and_strides(grad_output)):
            return grad_output, "one"  # `loss.sum().backward()` expands a single number
        return grad_output.contiguous(), "row" if self.reduction == "none" else "group"

    def _losses_of_nothing(self) -> Tensor:
        """The losses of an input without rows or classes: 0 divided by the usual denominator.
        Without classes, every label that is not ignored is out of range. The mean cross entropy of
        distributions is a mean over the classes, too, so it divides by 0."""
        rows = self.input.new_zeros(self.rows_shape, dtype=torch.float64)
        of_labels, z_loss = self.loss in LABEL_LOSSES, self.params[3]
        if z_loss and of_labels:
            rows += z_loss * math.inf
        if self.labels is not None:
            ignored = self.labels.long() == self.ignore_index
            rows = rows.masked_fill(ignored, 0.0).masked_fill(~ignored, math.nan)
        if self.reduction == "none":
            return rows
        sums = rows.reshape(self.groups, self.group_size).sum(1).reshape(self.kept)
        if self.normalizer is not None:
            return sums / self.normalizer
        if self.reduction == "sum":
            return sums
        count = 0 if of_labels else self.group_size
        return sums / (1 if count == 0 and self.one_if_none else count)


def _collapsed(tensor: Tensor, dim: int) -> tuple[int, int, int] | None:
    """The (outer, class, inner) strides, or None if the row dimensions do not collapse into two."""
    dims = list(sizes_and_strides(tensor))
    outer, inner = _collapse(dims[:dim]), _collapse(dims[dim + 1 :])
    return None if outer is None or inner is None else (outer, dims[dim][1], inner)


def _collapse(dims: Sequence[tuple[int, int]]) -> int | None:
    """The common stride of dimensions that collapse into one, or None."""
    dims = [(size, stride) for size, stride in dims if size != 1]
    for (_, wide), (size, narrow) in itertools.pairwise(dims):
        if wide != size * narrow:
            return None
    return dims[-1][1] if dims else 0


def _tiling(classes: int, inner: int, contiguous: bool, limit: int) -> tuple[int, int, bool]:
    """The number of classes and rows per tile, and whether a tile holds whole rows."""
    block, neighbours = triton.next_power_of_2(max(classes, 1)), triton.next_power_of_2(inner)
    if contiguous:
        lanes = max(min(SHORT // block, neighbours), 1)
    else:
        lanes = min(neighbours, max(min(limit // block, LANES[1]), LANES[0]))
    if lanes * block <= limit:
        return block, lanes, True
    return limit // 2 // lanes, lanes, False
