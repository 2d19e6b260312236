"""What is launched of the losses over rows of vectors in Triton, to be compiled by
:mod:`kernels_triton`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from lossops.vectors_reference import FORMULAS

LOSSES = tuple(FORMULAS)
OF_LOSSES = {
    "cosine_embedding_loss": ("cosine_embedding",),
    "triplet_margin_loss": ("triplet_margin", "triplet_margin_l1"),
    "multi_margin_loss": ("multi_margin", "multi_margin_squared"),
    "dice_loss": ("tversky_of_logits", "tversky"),
    "tversky_loss": ("tversky_of_logits", "tversky"),
}
KERNELS = ("vectors_kernel",)
VECTORS = {
    "multi_margin": 1,
    "multi_margin_squared": 1,
    "triplet_margin": 3,
    "triplet_margin_l1": 3,
}
ROW, LONG_ROW = (1000, 1024), (1000, 16384)  # one that a program holds at once; one read again


def launches(loss: str, ops) -> Iterator[tuple[str, tuple[torch.dtype, ...], str, Callable]]:
    """The kernel, its dtypes, the pass, and the call."""
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        passes = {"value": (ROW, False), "step": (ROW, True), "long step": (LONG_ROW, True)}
        for pass_, (shape, grad) in passes.items():

            def call(dtype=dtype, shape=shape, grad=grad):
                _call(ops, loss, dtype, shape, grad)

            yield "vectors", (dtype,), pass_, call


def _call(ops, loss, dtype, shape, grad) -> None:
    count = VECTORS.get(loss, 2)
    label = None
    if loss.startswith("multi_margin"):
        label = torch.empty(shape[0], dtype=torch.int64)
    elif loss == "cosine_embedding":
        label = torch.empty(shape[0])
    params = [0.5] * {"cosine_embedding": 1, "multi_margin": 1, "multi_margin_squared": 1}.get(
        loss, 3
    )
    mask = [grad and i < count for i in range(3)]
    vectors = [torch.empty(shape, dtype=dtype) for _ in range(count)]
    ops.vectors_forward(vectors, label, None, loss, params, "mean", dtype, mask)
