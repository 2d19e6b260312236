"""Runs the kernels over rows of vectors, for benchmarks.gpu.kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from lossops.core.library import KernelOps
from lossops.vectors.reference import VECTOR_SIGNATURES

__all__ = ["LOSSES", "run"]

LOSSES = tuple(VECTOR_SIGNATURES)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# For a few lanes, a warp, and a block that reads twice; also rows that are not aligned.
LENGTHS = (5, 37, 700, 4101)
PARAMS = (0.5, 1.0, 0.25)


def run(ops: KernelOps, loss: str, tensors) -> int:
    """Calls both ops for every dtype. Returns the number of calls."""
    calls = 0
    for dtype in DTYPES:
        for length in LENGTHS:
            calls += _step(ops, loss, tensors, 9 if length < 100 else 3, length, dtype)
    return calls


def _step(ops: KernelOps, loss: str, tensors, rows: int, length: int, dtype) -> int:
    count = VECTOR_SIGNATURES[loss].vectors
    vectors = [tensors.random((rows, length), dtype) for _ in range(count)]
    vectors[-1] = tensors.random((rows, length + 1), dtype)[:, 1:]
    weight = tensors.random((rows,), torch.float32)
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
    numbers = tensors.random(shape, torch.float32)
    if takes == "number":
        return numbers.sign()
    labels = (numbers.abs() * 1e3).long() % length
    if takes == "list":
        labels[1:, 3:] = -1  # all classes in the first row, few in the others
    return labels
