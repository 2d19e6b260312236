"""Runs every kernel over rows of a backend once, for :mod:`benchmarks.gpu.kernels`."""

from __future__ import annotations

import torch
from torch import Tensor

from lossops.core.library import KernelOps, accumulator
from lossops.softmax.reference import DIVERGENCES, LABEL_LOSSES

LOSSES = (*LABEL_LOSSES, *DIVERGENCES)
SINGLE, DOUBLE, BFLOAT16, HALF = torch.float32, torch.float64, torch.bfloat16, torch.float16
# Numbers of classes for rows that fit into a warp, into a block, and into a cluster or nowhere. Two
# of them leave a remainder that vectors do not cover, one does not.
CLASSES = (37, 1024, 9001)
LONG = 130_001


def run(ops: KernelOps, loss: str, tensors, few: bool) -> int:
    """Calls every op with a loss. Returns the number of calls. ``few`` reduces dtypes and sizes,
    for a backend that compiles each of them separately."""
    form = "logits" if loss in DIVERGENCES else "labels"
    if few:
        return _step(ops, loss, tensors, (5, 37), 1, SINGLE, form)
    calls = 0
    for dtype in (SINGLE, DOUBLE, BFLOAT16, HALF):
        for classes in CLASSES:
            calls += _step(ops, loss, tensors, (5, classes), 1, dtype, form)
        calls += _step(ops, loss, tensors, (2, 19, 33), 1, dtype, form)  # classes in the middle
    others = ("labels", "probs", "log_probs") if loss in DIVERGENCES else ()
    for other in ("probs",) if loss == "cross_entropy" else others:
        calls += _step(ops, loss, tensors, (5, 300), 1, SINGLE, other)
    if loss in ("cross_entropy", "kl"):
        calls += _step(ops, loss, tensors, (2, LONG), 1, BFLOAT16, form)
        calls += _step(ops, loss, tensors, (3000, 7), 1, SINGLE, form)  # blocks share a reduction
    return calls


def _step(ops: KernelOps, loss: str, tensors, shape, dim: int, dtype: torch.dtype, form) -> int:
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
