"""One row per loss over rows of vectors; like :mod:`lossops.specs.elementwise`.

Tests, benchmarks and documentation read these rows, the library itself never does.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from lossops import functional, nn
from lossops.specs.spec import reduced

# Takes the vectors and the other tensors of a row.
Loss = Callable[..., Tensor]


def _tversky(input: Tensor, target: Tensor, alpha=0.5, beta=0.5, **options) -> Tensor:
    """The loss as a torch user would write it."""
    p = input if options.get("input_form") == "probs" else torch.sigmoid(input)
    smooth = options.get("smooth", 1.0)
    found, wrong = (p * target).sum(1), (p * (1 - target)).sum(1)
    missed = ((1 - p) * target).sum(1)
    loss = 1 - (found + smooth) / (found + alpha * wrong + beta * missed + smooth)
    return reduced(loss, options.get("reduction", "mean"))


def _dice(input: Tensor, target: Tensor, smooth=1.0, **options) -> Tensor:
    return _tversky(input, target, smooth=0.5 * smooth, **options)


def _lists(rows: int, length: int, generator: torch.Generator) -> Tensor:
    """Lists of up to ten labels, which is typical of images or documents."""
    labels = torch.rand(rows, length, generator=generator).argsort(1)
    counts = torch.randint(1 + min(10, length), (rows, 1), generator=generator)
    return torch.where(torch.arange(length) < counts, labels, -1)


@dataclass(frozen=True)
class VectorSpec:
    """The description of a loss over rows of vectors."""

    name: str  # in lossops.functional
    formula: str
    module: type[torch.nn.Module]
    vectors: int  # number of vectors per row; the loss is differentiated by these
    samples: tuple[dict[str, Any], ...]  # keyword arguments; the plainest first
    given: str = ""  # other tensor of a row: as VectorSignature.label, or a "mask" of its length
    in_torch: Loss | None = None  # as torch users write it, if torch does not have it
    compiles: bool = True  # whether it fits in memory under torch.compile at benchmark size

    @property
    def function(self) -> Loss:
        return getattr(functional, self.name)

    @property
    def torchs_own(self) -> bool:
        return self.in_torch is None

    @property
    def torch_function(self) -> Loss:
        return self.in_torch or getattr(torch_functional, self.name)

    def tensors(
        self, shape: tuple[int, int], dtype: torch.dtype, seed: int = 0, device: str = "cpu",
        probs: bool = False,
    ) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
        """Returns the vectors and the further arguments. Later vectors are near the first."""
        generator = torch.Generator().manual_seed(seed + zlib.crc32(f"{self.name}{shape}".encode()))
        first = torch.randn(shape, dtype=torch.float64, generator=generator)
        vectors = [first]
        for _ in range(self.vectors - 1):
            vectors.append(first + torch.randn(shape, dtype=torch.float64, generator=generator))
        if probs:
            vectors = [torch.sigmoid(v) for v in vectors]
        rows, length = shape
        given = {
            "": list,
            "number": lambda: [torch.randint(2, (rows,), generator=generator) * 2 - 1],
            "index": lambda: [torch.randint(length, (rows,), generator=generator)],
            "list": lambda: [_lists(rows, length, generator)],
            "mask": lambda: [torch.randint(2, shape, generator=generator).to(dtype)],
        }[self.given]()
        return [v.to(device, dtype) for v in vectors], [t.to(device) for t in given]


VECTOR_SPECS = (
    VectorSpec(
        "cosine_embedding_loss",
        "1 - cos(x₁, x₂) where y is 1, max(0, cos(x₁, x₂) - m) where it is -1",
        nn.CosineEmbeddingLoss, 2, ({}, {"margin": 0.3}), "number",
    ),
    VectorSpec(
        "triplet_margin_loss", "max(0, ‖a - p‖ - ‖a - n‖ + m)",
        nn.TripletMarginLoss, 3, ({}, {"swap": True, "margin": 2.0}, {"p": 1.0}),
    ),
    VectorSpec(
        "multi_margin_loss", "w_y Σ_(c ≠ y) max(0, m - x_y + x_c)^p / C",
        nn.MultiMarginLoss, 1, ({}, {"p": 2, "margin": 0.5}), "index",
    ),
    VectorSpec(
        "multilabel_margin_loss", "Σ_(y in labels) Σ_(c in others) max(0, 1 - x_y + x_c) / C",
        # When compiled, torch's loss allocates all pairs: 64 GiB for 16384 rows of 1024.
        nn.MultiLabelMarginLoss, 1, ({},), "list", compiles=False,
    ),
    VectorSpec(
        "dice_loss", "1 - (2 Σ p y + s) / (Σ p + Σ y + s)",
        nn.DiceLoss, 1, ({},), "mask", _dice,
    ),
    VectorSpec(
        "tversky_loss", "1 - (TP + s) / (TP + α FP + β FN + s)",
        nn.TverskyLoss, 1,
        ({"alpha": 0.3, "beta": 0.7}, {"alpha": 1.0, "beta": 0.5, "input_form": "probs"}),
        "mask", _tversky,
    ),
)  # fmt: skip


def vector_spec(name: str) -> VectorSpec:
    return next(row for row in VECTOR_SPECS if row.name == name)
