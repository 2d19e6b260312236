"""The Triton launches of the losses over rows of vectors, to be compiled by
:mod:`kernels_triton`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from lossops.vectors.ops import VECTOR_SIGNATURES, VectorsArguments

LOSSES = tuple(VECTOR_SIGNATURES)
WITH_LISTS = {loss for loss, takes in VECTOR_SIGNATURES.items() if takes.label == "list"}
OF_LOSSES = {
    "cosine_embedding_loss": ("cosine_embedding",),
    "triplet_margin_loss": ("triplet_margin", "triplet_margin_l1"),
    "multi_margin_loss": ("multi_margin", "multi_margin_squared"),
    "multilabel_margin_loss": ("multilabel_margin",),
    "dice_loss": ("tversky_of_logits", "tversky"),
    "tversky_loss": ("tversky_of_logits", "tversky"),
}
KERNELS = ("vectors_kernel",)
LIST_KERNELS = ("list_kernel", "pairs_kernel")
ROW, LONG_ROW = (1000, 1024), (1000, 16384)  # one that a program holds at once; one read again


def launches(loss: str, ops) -> Iterator[tuple[str, tuple[torch.dtype, ...], str, Callable]]:
    """The kernels that each call launches, its dtypes, the pass, and the call."""
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        passes = {"value": (ROW, False), "step": (ROW, True)}
        if loss not in WITH_LISTS:  # rows of the others are always read in tiles
            passes["long step"] = (LONG_ROW, True)
        for pass_, (shape, grad) in passes.items():

            def call(dtype=dtype, shape=shape, grad=grad):
                _call(ops, loss, dtype, shape, grad)

            yield "list pairs" if loss in WITH_LISTS else "vectors", (dtype,), pass_, call


def _call(ops, loss, dtype, shape, grad) -> None:
    takes = VECTOR_SIGNATURES[loss]
    label = {
        "": None,
        "number": torch.empty(shape[0]),
        "index": torch.empty(shape[0], dtype=torch.int64),
        "list": torch.empty(shape, dtype=torch.int64),
    }[takes.label]
    mask = [grad and i < takes.vectors for i in range(3)]
    vectors = [torch.empty(shape, dtype=dtype) for _ in range(takes.vectors)]
    call = VectorsArguments(loss, [0.5] * takes.params, "mean")
    ops.vectors_forward(vectors, label, None, call, dtype, mask)
