"""The raw ops of the elementwise losses, implemented by the Triton kernels.

The contract is in ``lossops/elementwise/ops.py``. Tensors that share one dense layout (contiguous,
transposed, channels-last, …) are processed in memory order. Others (broadcast, sliced, or with
different layouts) are first copied into the input's layout. If the input is not dense, or if the
dimensions that a reduction keeps are not outermost in memory, all are copied into a contiguous
layout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lossops.core.triton.launch import NUM_WARPS, OPTIONS, on, programs, sizes_and_strides
from lossops.elementwise.ops import ElementwiseArguments, loss_shape
from lossops.elementwise.triton.kernels import LOSSES, Loss, elementwise_kernel, rescale_kernel

OPS = (
    "elementwise_forward",
    "elementwise_backward",
    "elementwise_backward_",
    "elementwise_rescale_",
    "elementwise_double_backward",
)

# One 16-byte access per thread for the narrowest tensor. With sixteen programs per multiprocessor
# this keeps enough accesses in flight to saturate memory, and leaves enough registers for that many
# programs.
TILE_BYTES = NUM_WARPS * 32 * 16


def elementwise_forward(input, target, weight, normalizer, call, out_dtype, output_mask):
    problem = _Problem((input, target, weight), call)
    value = problem.empty_loss(out_dtype)
    grads = problem.empty_gradients(output_mask)
    problem.launch(1, normalizer=normalizer, value=value, grads=grads)
    return value, *grads


def elementwise_backward(grad_output, input, target, weight, normalizer, call, output_mask):
    problem = _Problem((input, target, weight), call)
    grads = problem.empty_gradients(output_mask)
    problem.launch(1, grad_output=grad_output, normalizer=normalizer, grads=grads)
    return grads


def elementwise_backward_(grads, grad_output, input, target, weight, normalizer, call, output_mask):
    problem = _Problem((input, target, weight), call)
    given = iter(grads)
    grads = tuple(next(given) if wanted else None for wanted in output_mask)
    problem.launch(1, grad_output=grad_output, normalizer=normalizer, grads=grads, skip_one=True)


def elementwise_rescale_(grads, grad_output):
    for grad in grads:
        if not grad.numel():
            continue
        scaled = grad if _is_dense(grad) else grad.contiguous()
        block = TILE_BYTES // grad.element_size()
        splits = min(triton.cdiv(grad.numel(), block), programs(grad.device))
        compute = tl.float64 if grad.dtype == torch.float64 else tl.float32
        with on(grad.device):
            rescale_kernel[(splits,)](
                scaled, grad_output, grad.numel(), COMPUTE=compute, BLOCK=block, **OPTIONS
            )
        if scaled is not grad:
            grad.copy_(scaled)


def elementwise_double_backward(
    grad_output, input, target, weight, normalizer, tangent_input, tangent_target, tangent_weight,
    call, out_dtype, output_mask,
):  # fmt: skip
    problem = _Problem((input, target, weight), call)
    derivative = problem.empty_loss(out_dtype) if output_mask[0] else None
    grads = problem.empty_gradients(output_mask[1:])
    problem.launch(
        2,
        tangents=(tangent_input, tangent_target, tangent_weight),
        grad_output=grad_output,
        normalizer=normalizer,
        value=derivative,
        grads=grads,
    )
    return derivative, *grads


class _Problem:
    """A loss over tensors of one shape, as the kernel sees it: groups of consecutive elements."""

    def __init__(
        self,
        operands: Sequence[Tensor | None],  # input, target, weight
        call: ElementwiseArguments,
    ):
        input, (loss, params, reduction, keep_dims) = operands[0], call
        self.operands = operands
        self.loss = LOSSES[loss]
        self.params = (*params, 0.0, 0.0)[:2]
        self.reduction = reduction
        self.kept = loss_shape(input, reduction, keep_dims) if reduction != "none" else ()
        self.groups = math.prod(self.kept)
        self.group_size = math.prod(input.shape[len(self.kept) :])
        as_it_lies = _is_dense(input) and _keeps_outermost(input, len(self.kept))
        self.layout = input if as_it_lies else input.contiguous()

    def empty_loss(self, dtype: torch.dtype) -> Tensor:
        input = self.operands[0]
        if self.reduction == "none":
            return torch.empty_like(input, dtype=dtype)
        return input.new_empty(self.kept, dtype=dtype)

    def empty_gradients(self, mask: Sequence[bool]) -> tuple[Tensor | None, ...]:
        wanted = zip(self.operands, mask, strict=True)
        return tuple(torch.empty_like(operand) if yes else None for operand, yes in wanted)

    def launch(
        self,
        order: int,
        *,
        tangents: Sequence[Tensor | None] = (None, None, None),
        grad_output: Tensor | None = None,  # the loss's shape, or 0-d
        normalizer: Tensor | None = None,  # the kept dimensions' shape, or 0-d
        value: Tensor | None = None,  # output, of the loss's shape
        grads: Sequence[Tensor | None],  # outputs, of the operands' shapes
        skip_one: bool = False,
    ) -> None:
        """Evaluates the problem into ``value`` and ``grads``.

        The outputs may have any layout. An output whose layout differs from the problem's is
        written through a copy. ``skip_one`` leaves ``grads`` unchanged if the scalar
        ``grad_output`` is 1.
        """
        if self.groups * self.group_size == 0:
            self._reduce_nothing(value, normalizer)
            return

        reduced = value if self.reduction != "none" else None
        wanted = (value if reduced is None else None, *grads)
        written = [self._output(output, keep=skip_one) for output in wanted]
        grad_output, how = self._grad_output(grad_output)
        self._run(
            [self._arranged(operand) for operand in self.operands],
            [self._arranged(tangent) for tangent in tangents],
            grad_output,
            normalizer if normalizer is None else normalizer.contiguous(),
            reduced,
            written,
            ORDER=order,
            GRAD_OUTPUT=how,
            SKIP_ONE=skip_one,
        )
        for output, target in zip(written, wanted, strict=True):
            if output is not target:
                target.copy_(output)

    def _run(self, operands, tangents, grad_output, normalizer, reduced, written, **flags) -> None:
        tensors = [t for t in (*operands, *tangents, *written) if t is not None]
        block = TILE_BYTES // min(t.element_size() for t in tensors)
        double = any(t is not None and t.dtype == torch.float64 for t in operands)
        device = operands[0].device
        splits = min(
            triton.cdiv(self.group_size, block), triton.cdiv(programs(device), self.groups)
        )
        workspace = None
        if reduced is not None and splits > 1:
            workspace = torch.zeros(self.groups * (splits + 1), dtype=torch.float64, device=device)
        mean = self.reduction == "mean" and normalizer is None
        value, *grads = written
        with on(device):
            elementwise_kernel[(self.groups, splits)](
                *operands, *tangents, grad_output, normalizer, value, reduced, workspace, *grads,
                self.group_size,
                1 / self.group_size if mean else 1.0,
                *self.params,
                LOSS=self.loss.function,
                OF_DIFFERENCE=self.loss.of_difference,
                COMPUTE=tl.float64 if double else tl.float32,
                GROUPED=self.groups > 1,
                NORMALIZER="group" if normalizer is not None and normalizer.numel() > 1 else "one",
                BLOCK=block,
                **flags,
                **_options(self.loss),
            )  # fmt: skip

    def _arranged(self, tensor: Tensor | None) -> Tensor | None:
        """The tensor, copied into the problem's layout if necessary."""
        if tensor is None or _same_layout(tensor, self.layout):
            return tensor
        return torch.empty_like(self.layout, dtype=tensor.dtype).copy_(tensor)

    def _output(self, tensor: Tensor | None, keep: bool) -> Tensor | None:
        """The tensor that the kernel writes: ``tensor``, or a buffer in the problem's layout."""
        if tensor is None or _same_layout(tensor, self.layout):
            return tensor
        output = torch.empty_like(self.layout, dtype=tensor.dtype)
        return output.copy_(tensor) if keep else output

    def _grad_output(self, grad_output: Tensor | None) -> tuple[Tensor | None, str]:
        """grad_output as the kernel reads it, and how it varies: "one", "group" or "element"."""
        if grad_output is None:
            return None, "one"
        if all(stride == 0 or size == 1 for size, stride in sizes_and_strides(grad_output)):
            return grad_output, "one"  # `loss.sum().backward()` expands a single number
        if self.reduction == "none":
            return self._arranged(grad_output), "element"
        return grad_output.contiguous(), "group"

    def _reduce_nothing(self, value: Tensor | None, normalizer: Tensor | None) -> None:
        if value is None or not value.numel():
            return
        if normalizer is not None:
            value.copy_(torch.zeros_like(normalizer) / normalizer)
        else:
            value.fill_(math.nan if self.reduction == "mean" else 0)


def _options(loss: Loss) -> dict[str, object]:
    if loss.max_registers is None or torch.version.hip:
        return OPTIONS
    return OPTIONS | {"maxnreg": loss.max_registers}


def _same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether tensors of one shape have equal strides in every dimension larger than 1."""
    if a.stride() == b.stride():
        return True
    return all(
        m == n or size == 1 for (size, m), n in zip(sizes_and_strides(a), b.stride(), strict=True)
    )


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a block of memory without gaps or overlaps."""
    return tensor.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(tensor)


def _keeps_outermost(tensor: Tensor, kept: int) -> bool:
    """Whether the first `kept` dimensions have the strides of a contiguous tensor."""
    step = tensor.numel()
    for size, stride in list(sizes_and_strides(tensor))[:kept]:
        step //= max(size, 1)
        if size > 1 and stride != step:
            return False
    return True
