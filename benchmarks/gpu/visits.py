"""What is measured, the most telling first: what comes late may find no time left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from lossops.specs import SPECS, Spec

FORWARD, STEP, SCALED, GRAPH, MEMORY = "forward", "step", "scaled step", "step in a graph", "memory"
DTYPES = (torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Sizes:
    """Numbers of elements, and of timings."""

    tiny: int
    small: int
    large: int
    huge: int
    rounds: int  # of single calls
    blocks: int  # of many short calls
    block_ms: float


# At tiny and small the launches count, at large and huge the bytes.
GPU = Sizes(1 << 10, 1 << 16, 1 << 26, 1 << 28, rounds=30, blocks=11, block_ms=2.0)
DRY = Sizes(1 << 5, 1 << 8, 1 << 12, 1 << 13, rounds=3, blocks=3, block_ms=0.2)


@dataclass(frozen=True)
class Visit:
    """Several measurements of one loss over one pair of tensors."""

    spec: Spec
    dtype: torch.dtype
    count: int
    whats: tuple[str, ...]
    compiled: bool = False
    short: bool = False  # calls are timed in blocks, from a warm cache

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{self.spec.name} {name} {self.count:,}: {', '.join(self.whats)}"


def visits(sizes: Sizes, dry: bool, specs: Iterable[Spec] = SPECS) -> Iterator[Visit]:
    """All of them. A dry run compiles once, and looks at memory twice: both take long."""
    pairs = [(spec, dtype) for spec in specs for dtype in DTYPES]
    for i, (spec, dtype) in enumerate(pairs):
        whats = (STEP, SCALED, FORWARD, *([MEMORY] if not dry or i < 2 else []))
        yield Visit(spec, dtype, sizes.large, whats, compiled=not dry or i == 0)
    for spec, dtype in pairs:
        yield Visit(spec, dtype, sizes.tiny, (STEP, SCALED, FORWARD), short=True)
    for spec, dtype in pairs:
        yield Visit(spec, dtype, sizes.huge, (STEP, SCALED, FORWARD))
    for spec, dtype in pairs:
        whats = (STEP, SCALED, FORWARD)
        yield Visit(spec, dtype, sizes.small, whats, compiled=not dry, short=True)
    # Last, because a capture that fails may leave the device unusable.
    for count in (sizes.tiny, sizes.small):
        for spec, dtype in pairs:
            yield Visit(spec, dtype, count, (GRAPH,), short=True)


def passes(spec: Spec, what: str) -> int:
    """Passes over memory of the input's size that a fused implementation needs."""
    if what == FORWARD:
        return spec.passes_per_forward
    # A gradient that was written for grad_output = 1 is read and written again.
    return spec.passes_per_step + (2 if what == SCALED else 0)
