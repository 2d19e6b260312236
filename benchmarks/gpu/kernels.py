"""Runs every kernel of a backend once on small tensors of odd sizes, for the sanitizers.

``python -m benchmarks.gpu.kernels native cuda``
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from lossops.core.backends import kernel_ops
from lossops.core.library import KernelOps, accumulator
from lossops.softmax.reference import DIVERGENCES, LABEL_LOSSES
from lossops.specs.elementwise import SPECS
from lossops.vectors.reference import VECTOR_SIGNATURES

DONE = "all kernels ran, calls:"
NOTHING, ONLY_INPUT, EVERYTHING = (False,) * 3, (True, False, False), (True,) * 3  # gradients
# Three blocks and a remainder that vectors do not cover; groups of several blocks; small groups.
DENSE, GROUPS, SMALL_GROUPS = (4099,), (3, 4099), (5, 37)
SINGLE, DOUBLE, BFLOAT16, HALF = torch.float32, torch.float64, torch.bfloat16, torch.float16
DTYPES = (SINGLE, DOUBLE, BFLOAT16, HALF)
# The dtypes of input and target.
TYPES = [(dtype, dtype) for dtype in DTYPES]
MAIN = (SINGLE, SINGLE)
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

    def wait(self) -> None:
        """Synchronises, so that an error appears near its cause."""
        if self.device == "cuda":
            torch.cuda.synchronize()

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
    triton = backend == "triton"
    ops, tensors, calls = kernel_ops(backend), Tensors(device), 0
    for spec in SPECS:
        loss = spec.kernel, spec.params(spec.defaults)
        calls += (_triton if triton else _native)(ops, loss, tensors, spec is SPECS[0])
        tensors.wait()
    for name in (*LABEL_LOSSES, *DIVERGENCES):
        calls += _rows(ops, name, tensors, few=triton)
        tensors.wait()
    for name in VECTOR_SIGNATURES:
        calls += _vectors(ops, name, tensors)
        tensors.wait()
    return calls


# Elementwise losses


def _native(ops: KernelOps, loss, tensors: Tensors, first: bool) -> int:
    """Runs the first loss with all dtypes and layouts. The strided kernel of a loss exists only for
    the two compute dtypes, its dense kernels for all dtypes."""
    calls = 0
    for x, y in TYPES + MIXED:
        layouts = [tensors.dense(x, y), *(tensors.strided(x, y) if first else ())]
        if not first and x == y and x in (SINGLE, DOUBLE):
            layouts.append(tensors.unaligned(x, y))
        calls += sum(_elementwise(ops, loss, pair, tensors) for pair in layouts)
        calls += _grouped(ops, loss, tensors, x, y)
    return calls


def _triton(ops: KernelOps, loss, tensors: Tensors, first: bool) -> int:
    """Runs all calls with the first loss only, because each call is compiled for its dtypes."""
    calls = 0
    for dtype in (SINGLE, BFLOAT16, DOUBLE) if first else (SINGLE,):
        pair = tensors.dense(dtype, dtype)
        if first and dtype == SINGLE:
            calls += _elementwise(ops, loss, pair, tensors) + _grouped(ops, loss, tensors, *MAIN)
            continue
        mean, half = (*loss, "mean", 0), tensors.number(0.5, dtype)
        _, gradient, *_ = ops.elementwise_forward(*pair, None, None, *mean, dtype, ONLY_INPUT)
        ops.elementwise_rescale_([gradient], half)
        ops.elementwise_backward_([gradient], half, *pair, None, None, *mean, ONLY_INPUT)
        weight = torch.ones_like(gradient)
        given = (*pair, weight, None, *pair, weight)
        ops.elementwise_double_backward(half, *given, *mean, dtype, (True,) * 4)
        calls += 4
    return calls


def _grouped(ops: KernelOps, loss, tensors: Tensors, x: torch.dtype, y: torch.dtype) -> int:
    """Reductions to one value per sample."""
    pairs = [
        (tensors.random(shape, x), tensors.random(shape, y)) for shape in (GROUPS, SMALL_GROUPS)
    ]
    return sum(_elementwise(ops, loss, pair, tensors, (("mean", 1),)) for pair in pairs)


def _elementwise(
    ops: KernelOps, loss, pair, tensors: Tensors, reductions=(("mean", 0), ("none", 0))
) -> int:
    """Every op, without a weight and with one."""
    calls, shape, dtype = 0, pair[0].shape, pair[0].dtype
    out = torch.promote_types(dtype, pair[1].dtype)
    for (how, kept), weighted in itertools.product(reductions, (False, True)):
        of_value = shape if how == "none" else shape[:kept]
        weight = tensors.random(shape, dtype).abs() if weighted else None
        normalizer = tensors.random(of_value, SINGLE).abs() + 1 if weighted else None
        given = (*pair, weight, None if how == "none" else normalizer)
        call, mask = (*loss, how, kept), EVERYTHING if weighted else ONLY_INPUT
        grad_output = tensors.random(of_value, out)
        ops.elementwise_forward(*given, *call, out, NOTHING)
        ops.elementwise_backward(grad_output, *given, *call, mask)
        calls += 2
        if weighted:
            tangents = (*pair, weight)
            ops.elementwise_double_backward(grad_output, *given, *tangents, *call, out, (True,) * 4)
            calls += 1
        if (how, kept) == ("mean", 0):
            _, *gradients = ops.elementwise_forward(*given, *call, out, mask)
            for value in (tensors.number(1.0, out), tensors.number(0.7, out)):
                ops.elementwise_rescale_(gradients[:1], value)
                ops.elementwise_backward_(gradients[: sum(mask)], value, *given, *call, mask)
            calls += 5
    return calls


# Losses over rows of class scores

# Numbers of classes for rows that fit into a warp, into a block, and into a cluster or nowhere. Two
# of them leave a remainder that vectors do not cover, one does not.
CLASSES = (37, 1024, 9001)
LONG = 130_001


def _rows(ops: KernelOps, loss: str, tensors: Tensors, few: bool) -> int:
    """Calls every op with a loss. Returns the number of calls. ``few`` reduces dtypes and sizes,
    for a backend that compiles each of them separately."""
    form = "logits" if loss in DIVERGENCES else "labels"
    if few:
        return _row_step(ops, loss, tensors, (5, 37), 1, SINGLE, form)
    calls = 0
    for dtype in DTYPES:
        for classes in CLASSES:
            calls += _row_step(ops, loss, tensors, (5, classes), 1, dtype, form)
        calls += _row_step(ops, loss, tensors, (2, 19, 33), 1, dtype, form)  # classes in the middle
    others = ("labels", "probs", "log_probs") if loss in DIVERGENCES else ()
    for other in ("probs",) if loss == "cross_entropy" else others:
        calls += _row_step(ops, loss, tensors, (5, 300), 1, SINGLE, other)
    if loss in ("cross_entropy", "kl"):
        calls += _row_step(ops, loss, tensors, (2, LONG), 1, BFLOAT16, form)
        calls += _row_step(
            ops, loss, tensors, (3000, 7), 1, SINGLE, form
        )  # blocks share a reduction
    return calls


def _row_step(ops: KernelOps, loss: str, tensors, shape, dim: int, dtype: torch.dtype, form) -> int:
    input = tensors.random(shape, dtype)
    rows = (*shape[:dim], *shape[dim + 1 :])
    soft = form != "labels"
    target = _target(tensors, shape, dim, dtype, form)
    extras = loss in LABEL_LOSSES  # rows have a log-sum-exp and an entropy
    calls = 0
    smoothing = 0.1 if loss == "cross_entropy" else 0.0
    full = (1.5, 20.0, smoothing, 1e-3) if extras else (1.5, 0.0, 0.0, 0.0)
    for params, weighted in (((1.0, 0.0, 0.0, 0.0), False), (full, extras)):
        weight = tensors.random((shape[dim],), dtype).abs() if weighted else None
        call = (loss, dim, "logits", form, [*params, 1.5, 0.0], -100, False)
        mean, none = (*call, "mean", 0), (*call, "none", 0)
        values = [extras, extras, extras and not soft]
        ops.softmax_forward(input, target, weight, None, *mean, dtype, [False] * 5)
        _, *_, denominator, gradient, by_target = ops.softmax_forward(
            input, target, weight, None, *mean, dtype, [*values, True, soft]
        )
        gradients = [gradient, by_target] if soft else [gradient]
        for value in (1.0, 0.7):
            ops.softmax_backward_(
                gradients, tensors.number(value, dtype), input, target, weight, denominator,
                *mean, [True, soft],
            )  # fmt: skip
        each = tensors.random(rows, dtype)
        per_row = [tensors.random(rows, accumulator(dtype)) if extras else None for _ in range(2)]
        ops.softmax_backward(each, *per_row, input, target, weight, None, *none, [True, soft])
        ops.softmax_forward(
            input, target, weight, tensors.number(3.0), *call, "sum", 1, dtype, [False] * 5
        )
        ops.softmax_forward_(input.clone(), target, weight, None, *mean, dtype, [False] * 3)
        calls += 7
    return calls


def _target(tensors, shape, dim: int, dtype: torch.dtype, form: str) -> Tensor:
    if form == "labels":
        rows = (*shape[:dim], *shape[dim + 1 :])
        numbers = tensors.random(rows, DOUBLE).abs() * 1e6
        labels = (numbers % shape[dim]).long()
        labels.view(-1)[::3] = -100
        return labels
    scores = tensors.random(shape, dtype)
    if form == "logits":
        return scores
    return (scores.softmax if form == "probs" else scores.log_softmax)(dim)


# Losses over rows of vectors

# For a few lanes, a warp, and a block that reads twice; also rows that are not aligned.
LENGTHS = (5, 37, 700, 4101)
PARAMS = (0.5, 1.0, 0.25)


def _vectors(ops: KernelOps, loss: str, tensors: Tensors) -> int:
    """Calls both ops for every dtype. Returns the number of calls."""
    calls = 0
    for dtype in DTYPES:
        for length in LENGTHS:
            calls += _vector_step(ops, loss, tensors, 9 if length < 100 else 3, length, dtype)
    return calls


def _vector_step(ops: KernelOps, loss: str, tensors, rows: int, length: int, dtype) -> int:
    count = VECTOR_SIGNATURES[loss].vectors
    vectors = [tensors.random((rows, length), dtype) for _ in range(count)]
    vectors[-1] = tensors.random((rows, length + 1), dtype)[:, 1:]
    weight = tensors.random((rows,), SINGLE)
    params = PARAMS[: VECTOR_SIGNATURES[loss].params]
    mask = [i < count for i in range(3)]
    call = (vectors, _label(loss, tensors, rows, length), weight, loss, params)
    ops.vectors_forward(*call, "mean", dtype, mask)
    ops.vectors_forward(*call, "none", dtype, [False] * 3)
    ops.vectors_backward(tensors.random((rows,), dtype), *call, "none", mask)
    return 3


def _label(loss: str, tensors, rows: int, length: int) -> Tensor | None:
    takes = VECTOR_SIGNATURES[loss].label
    if not takes:
        return None
    shape = (rows, length) if takes == "list" else (rows,)
    numbers = tensors.random(shape, SINGLE)
    if takes == "number":
        return numbers.sign()
    labels = (numbers.abs() * 1e3).long() % length
    if takes == "list":
        labels[1:, 3:] = -1  # all classes in the first row, few in the others
    return labels


if __name__ == "__main__":
    print(DONE, run(*sys.argv[1:]), flush=True)
