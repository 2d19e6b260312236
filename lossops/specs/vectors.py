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

from lossops import functional
from lossops.specs.spec import declared, reduced
from lossops.vectors import hinges, pairs, regions

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


_WRITTEN = {"dice_loss": _dice, "tversky_loss": _tversky}


def _lists(rows: int, length: int, generator: torch.Generator) -> Tensor:
    """Lists of up to ten labels, which is typical of images or documents."""
    labels = torch.rand(rows, length, generator=generator).argsort(1)
    counts = torch.randint(1 + min(10, length), (rows, 1), generator=generator)
    return torch.where(torch.arange(length) < counts, labels, -1)


@dataclass(frozen=True)
class VectorSpec:
    """The description of a loss over rows of vectors."""

    public: Loss  # the function
    kernels: tuple[str, ...]  # names in the kernels and in lossops.vectors.reference
    formula: str
    vectors: int  # number of vectors per row; the loss is differentiated by these
    samples: tuple[dict[str, Any], ...] = ({},)  # keyword arguments; the plainest first
    given: str = ""  # other tensor of a row: as VectorSignature.label, or a "mask" of its length
    size: str = "value"  # what a value is made of: "value", "value and 1" or the "norms" of vectors
    gradient_is_a_difference: bool = False  # of two vectors, which may cancel
    compiles: bool = True  # whether it fits in memory under torch.compile at benchmark size

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.public.__name__

    @property
    def function(self) -> Loss:
        return getattr(functional, self.name)

    @property
    def module(self) -> type[torch.nn.Module]:
        return self.public.module

    @property
    def torchs_own(self) -> bool:
        """Whether torch has the loss."""
        return hasattr(torch_functional, self.name)

    @property
    def torch_function(self) -> Loss:
        """torch's function, or the loss as torch users write it."""
        return getattr(torch_functional, self.name, None) or _WRITTEN[self.name]

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


VECTOR_SPECS = tuple(
    VectorSpec(function, **row) for function, row in declared(pairs, hinges, regions)
)


def vector_spec(name: str) -> VectorSpec:
    return next(row for row in VECTOR_SPECS if row.name == name)
