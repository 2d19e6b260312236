"""The Triton launches of the softmax family, to be compiled by :mod:`kernels_triton`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from lossops.softmax.ops import SoftmaxArguments
from lossops.softmax.reference import DIVERGENCES, LABEL_LOSSES

FLOAT64, FLOAT32, BFLOAT16 = torch.float64, torch.float32, torch.bfloat16
LOSSES = (*LABEL_LOSSES, *DIVERGENCES)
KERNELS = ("label_loss_kernel", "divergence_kernel", "count_kernel", "reduce_kernel")
# To save time, these two represent all losses where the kernels differ little.
TYPICAL = ("cross_entropy", "kl")
ROW, LONG_ROW = (1000, 16384), (1000, 128256)  # the longest kept in registers; one read again
PAIR_OF_ROWS = (1000, 4096)  # a divergence keeps two rows
IMAGES = (8, 19, 128, 128)


def launches(loss: str, ops) -> Iterator[tuple[str, tuple[torch.dtype, ...], str, Callable]]:
    """The kernels that each call launches, its dtypes, the pass, and the call."""
    template = "divergence" if loss in DIVERGENCES else "label_loss"
    row = PAIR_OF_ROWS if loss in DIVERGENCES else ROW
    for dtype in (BFLOAT16, FLOAT32, FLOAT64):
        pair = (dtype,) * (1 + (loss in DIVERGENCES))

        def call(op="forward", shape=row, dtype=dtype, grad=True, **options):
            return lambda: _call(ops, op, loss, shape, dtype, grad, **options)

        passes: dict[str, Any] = {"step": call()}
        if dtype != FLOAT64:
            passes["long step"] = call(shape=LONG_ROW)
        if loss in TYPICAL and dtype != FLOAT64:
            passes |= {
                "value": call(grad=False),
                "backward": call("backward", reduction="none"),
                "step of images": call(shape=IMAGES),
            }
        if loss == "cross_entropy" and dtype != FLOAT64:
            passes["full step"] = call(
                params=[2.0, 30.0, 0.1, 1e-4, 0.0, 0.0], rows_mask=[True] * 3
            )
            passes["step of soft targets"] = call(target_form="probs")
        for pass_, launch in passes.items():
            yield template, pair, pass_, launch
    if loss == "cross_entropy":
        groups = call(grad=False, dtype=BFLOAT16, keep_dims=1)
        yield f"{template} reduce", (BFLOAT16,), "groups", groups
        yield "count", (torch.int64,), "", lambda: _count(ops)


def _call(
    ops, op, loss, shape, dtype, grad, reduction="mean", keep_dims=0, params=None,
    target_form="labels", rows_mask=(False,) * 3,
):  # fmt: skip
    x = torch.empty(shape, dtype=dtype)
    rows = (shape[0], *shape[2:])
    form = "logits" if loss in DIVERGENCES else target_form
    y = torch.empty(rows, dtype=torch.int64) if form == "labels" else torch.empty_like(x)
    normalizer = torch.ones((), dtype=FLOAT32) if reduction == "mean" else None
    params = params or [1.0, 0.0, 0.0, 0.0, 1.5, 0.0]
    call = SoftmaxArguments(loss, 1, "logits", form, params, -100, False, reduction, keep_dims)
    if op == "backward":
        grad_output = torch.ones(rows, dtype=dtype)
        ops.softmax_backward(grad_output, None, None, x, y, None, normalizer, call, [True, False])
    else:
        ops.softmax_forward(x, y, None, normalizer, call, dtype, [*rows_mask, grad, False])


def _count(ops) -> None:
    """Reading only labels launches the kernel that counts them."""
    x, y = torch.empty(100_000, 2), torch.empty(100_000, dtype=torch.int64)
    params = [1.0, 0.0, 0.0, 0.0]
    call = SoftmaxArguments("cross_entropy", 1, "logits", "labels", params, -100, False, "mean", 0)
    ops._Problem((x, y, None, None), call)
