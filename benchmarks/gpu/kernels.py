"""Runs every kernel of a backend once on small tensors of odd sizes, for the sanitizers.

``python -m benchmarks.gpu.kernels native cuda``
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.gpu import row_kernels, vector_kernels
from lossops.core.backends import kernel_ops
from lossops.core.library import KernelOps
from lossops.specs.elementwise import SPECS

DONE = "all kernels ran, calls:"
# Three blocks and a remainder that vectors do not cover; groups of several blocks; small groups.
DENSE, GROUPS, SMALL_GROUPS = (4099,), (3, 4099), (5, 37)
SINGLE, DOUBLE, BFLOAT16, HALF = torch.float32, torch.float64, torch.bfloat16, torch.float16
# The dtypes of input and target.
TYPES = [(t, t) for t in (SINGLE, DOUBLE, BFLOAT16, HALF)]
MIXED = [(half, SINGLE) for half in (BFLOAT16, HALF)]


class Tensors:
    """Operands on a device. They are generated on the CPU, because a random number generator on the
    device takes longer than the losses under a sanitizer."""

    def __init__(self, device: str):
        self.device = device
        self.generator = torch.Generator().manual_seed(0)

    def random(self, shape, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(dtype).to(self.device)

    def number(self, value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(value, dtype=dtype).to(self.device)

    def dense(self, x, y) -> tuple[Tensor, Tensor]:
        return self.random(DENSE, x), self.random(DENSE, y)

    def unaligned(self, x, y) -> tuple[Tensor, Tensor]:
        """Not aligned to 16 bytes."""
        return self.random(4100, x)[1:], self.random(4100, y)[1:]

    def strided(self, x, y) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.unaligned(x, y)
        yield self.random((61, 67), x).t(), self.random((67, 61), y)
        yield self.random((67, 1), x).expand(67, 61), self.random((67, 61), y)
        yield self.random((67, 122), x)[:, ::2], self.random((67, 61), y)
        yield self.random((1,), x), self.random((1,), y)


def run(backend: str, device: str) -> int:
    """Calls every op with every loss. Returns the number of calls."""
    run_loss = _triton if backend == "triton" else _native
    ops, tensors, calls = kernel_ops(backend), Tensors(device), 0
    for spec in SPECS:
        loss = spec.kernel, spec.params(spec.defaults)
        calls += run_loss(ops, loss, tensors, spec is SPECS[0])
        _wait(device)
    for name in row_kernels.LOSSES:
        calls += row_kernels.run(ops, name, tensors, few=backend == "triton")
        _wait(device)
    for name in vector_kernels.LOSSES:
        calls += vector_kernels.run(ops, name, tensors)
        _wait(device)
    return calls


def _wait(device: str) -> None:
    """Synchronises, so that an error appears near its cause."""
    if device == "cuda":
        torch.cuda.synchronize()


def _native(ops: KernelOps, loss, tensors: Tensors, first: bool) -> int:
    """Runs the first loss with all dtypes and layouts. The strided kernel of a loss exists only for
    the two compute dtypes, its dense kernels for all dtypes."""
    calls = 0
    for x, y in TYPES + MIXED:
        calls += _ungrouped(ops, loss, *tensors.dense(x, y), tensors)
        layouts = tensors.strided(x, y) if first else []
        if not first and x == y and x in (SINGLE, DOUBLE):
            layouts = [tensors.unaligned(x, y)]
        calls += sum(_ungrouped(ops, loss, *pair, tensors) for pair in layouts)
        for shape in (GROUPS, SMALL_GROUPS):
            pair = tensors.random(shape, x), tensors.random(shape, y)
            calls += _grouped(ops, loss, *pair, tensors)
    return calls


def _triton(ops: KernelOps, loss, tensors: Tensors, first: bool) -> int:
    """Runs all calls with the first loss only, because each call is compiled for its dtypes."""
    calls = 0
    for dtype in (SINGLE, BFLOAT16, DOUBLE) if first else (SINGLE,):
        input, target = tensors.dense(dtype, dtype)
        if first and dtype == SINGLE:
            calls += _ungrouped(ops, loss, input, target, tensors)
            for shape in (GROUPS, SMALL_GROUPS):
                pair = tensors.random(shape, dtype), tensors.random(shape, dtype)
                calls += _grouped(ops, loss, *pair, tensors)
            continue
        mean, only_input = (*loss, "mean", 0), (True, False, False)
        half = tensors.number(0.5, dtype)
        _, gradient, *_ = ops.elementwise_forward(
            input, target, None, None, *mean, dtype, only_input
        )
        ops.elementwise_rescale_([gradient], half)
        ops.elementwise_backward_([gradient], half, input, target, None, None, *mean, only_input)
        _double_backward(ops, (half, mean, None), input, target, torch.ones_like(input), dtype)
        calls += 4
    return calls


def _ungrouped(ops: KernelOps, loss, input, target, tensors: Tensors) -> int:
    """Reductions to a scalar, and no reduction."""
    out = torch.promote_types(input.dtype, target.dtype)
    weight = tensors.random(input.shape, input.dtype).abs()
    normalizer, shape = tensors.number(3.0), tuple(input.shape)
    one, other = tensors.number(1.0, out), tensors.number(0.7, out)
    each = tensors.random(shape, out)
    only_input, everything = (True, False, False), (True, True, True)
    mean, none = (*loss, "mean", 0), (*loss, "none", 0)
    ops.elementwise_forward(input, target, None, None, *mean, out, (False, False, False))
    ops.elementwise_forward(input, target, None, None, *none, out, (False, False, False))
    _, gradient, *_ = ops.elementwise_forward(input, target, None, None, *mean, out, only_input)
    _, *gradients = ops.elementwise_forward(
        input, target, weight, normalizer, *mean, out, everything
    )
    for grad_output in (one, other):
        ops.elementwise_rescale_([gradient], grad_output)
        ops.elementwise_backward_(
            [gradient], grad_output, input, target, None, None, *mean, only_input
        )
        ops.elementwise_backward_(
            gradients, grad_output, input, target, weight, normalizer, *mean, everything
        )
    ops.elementwise_backward(other, input, target, None, None, *mean, only_input)
    ops.elementwise_backward(each, input, target, None, None, *none, only_input)
    ops.elementwise_backward(each, input, target, weight, None, *none, everything)
    _double_backward(ops, (other, mean, normalizer), input, target, weight, out)
    _double_backward(ops, (each, none, None), input, target, weight, out)
    return 15


def _grouped(ops: KernelOps, loss, input, target, tensors: Tensors) -> int:
    """Reductions to one value per sample."""
    out = torch.promote_types(input.dtype, target.dtype)
    sample, groups = (*loss, "mean", 1), input.shape[:1]
    weight = tensors.random(input.shape, input.dtype).abs()
    normalizer = tensors.random(groups, torch.float32).abs() + 1
    each = tensors.random(groups, out)
    everything = (True, True, True)
    ops.elementwise_forward(input, target, None, None, *sample, out, (False, False, False))
    ops.elementwise_forward(input, target, weight, normalizer, *sample, out, (False, False, False))
    ops.elementwise_backward(each, input, target, None, None, *sample, (True, False, False))
    ops.elementwise_backward(each, input, target, weight, normalizer, *sample, everything)
    _double_backward(ops, (each, sample, normalizer), input, target, weight, out)
    return 5


def _double_backward(ops: KernelOps, call, input, target, weight, out) -> None:
    grad_output, arguments, normalizer = call
    tangents = (input, target, weight)
    ops.elementwise_double_backward(
        grad_output, input, target, weight, normalizer, *tangents, *arguments, out, (True,) * 4
    )


if __name__ == "__main__":
    print(DONE, run(*sys.argv[1:]), flush=True)
