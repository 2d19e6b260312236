"""The kernels over rows of vectors, as benchmarks.gpu.kernels calls them."""

from __future__ import annotations

import torch
from torch import Tensor

from lossops.backends import KernelOps
from lossops.report.kernels_vectors import LOSSES, VECTORS

__all__ = ["LOSSES", "run"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Lanes, a warp, a block that reads once more; a row that begins at no boundary.
LENGTHS = (5, 37, 700, 4101)
PARAMS = {"cosine_embedding": (0.1,), "multi_margin": (1.0,), "multi_margin_squared": (1.0,)}


def run(ops: KernelOps, loss: str, tensors) -> int:
    """Calls both ops for every dtype; returns how many calls that were."""
    calls = 0
    for dtype in DTYPES:
        for length in LENGTHS:
            calls += _step(ops, loss, tensors, 9 if length < 100 else 3, length, dtype)
    return calls


def _step(ops: KernelOps, loss: str, tensors, rows: int, length: int, dtype) -> int:
    count = VECTORS.get(loss, 2)
    vectors = [tensors.random((rows, length), dtype) for _ in range(count)]
    vectors[-1] = tensors.random((rows, length + 1), dtype)[:, 1:]
    weight = tensors.random((rows,), torch.float32)
    params = PARAMS.get(loss, (0.5, 1.0, 0.25))
    mask = [i < count for i in range(3)]
    call = (vectors, _label(loss, tensors, rows, length), weight, loss, params)
    ops.vectors_forward(*call, "mean", dtype, mask)
    ops.vectors_forward(*call, "none", dtype, [False] * 3)
    ops.vectors_backward(tensors.random((rows,), dtype), *call, "none", mask)
    return 3


def _label(loss: str, tensors, rows: int, length: int) -> Tensor | None:
    numbers = tensors.random((rows,), torch.float32)
    if loss.startswith("multi_margin"):
        return (numbers.abs() * 1e3).long() % length
    return numbers.sign() if loss == "cosine_embedding" else None
