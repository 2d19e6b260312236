"""The measurements, the most important first: later ones may run out of time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from benchmarks.bench.softmax_steps import PICTURES, Case, Rows
from benchmarks.bench.steps import Tensors
from lossops.specs.elementwise import SPECS, Spec
from lossops.specs.softmax import Sample

ROWS = "rows time"  # the kind of a measurement over rows of class scores
FORWARD, STEP, SCALED, GRAPH, MEMORY = "forward", "step", "scaled step", "step in a graph", "memory"
DTYPES = (torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Sizes:
    """Numbers of elements and of timings."""

    tiny: int
    small: int
    large: int
    huge: int
    rounds: int  # of single calls
    blocks: int  # of many short calls
    block_ms: float


# Launches dominate for tiny and small, bandwidth for large and huge.
GPU = Sizes(1 << 10, 1 << 16, 1 << 26, 1 << 28, rounds=30, blocks=11, block_ms=2.0)
DRY = Sizes(1 << 5, 1 << 8, 1 << 12, 1 << 13, rounds=3, blocks=3, block_ms=0.2)


@dataclass(frozen=True)
class Visit:
    """Several measurements of one loss with one pair of tensors."""

    spec: Spec
    dtype: torch.dtype
    count: int
    whats: tuple[str, ...]
    compiled: bool = False
    short: bool = False  # calls are timed in blocks, with a warm cache

    kind: ClassVar[str] = "time"  # of the emitted rows
    held: ClassVar[int] = 14  # upper bound on the number of tensors in memory at once

    def __str__(self) -> str:
        return f"{self.spec.name} {words(self.dtype)} {self.count:,}: {', '.join(self.whats)}"

    @property
    def facts(self) -> dict[str, object]:
        """The values that identify its rows."""
        return {"loss": self.spec.name, "dtype": words(self.dtype), "count": self.count}

    def tensors(self, device: str) -> Tensors:
        return Tensors(self.spec, self.count, self.dtype, device)

    def passes(self, what: str) -> int:
        return passes(self.spec, what)


@dataclass(frozen=True)
class RowVisit:
    """Several measurements of one loss over rows of class scores, of one shape."""

    case: Case
    dtype: torch.dtype
    whats: tuple[str, ...] = (STEP, FORWARD)
    compiled: bool = False

    short: ClassVar[bool] = False
    kind: ClassVar[str] = ROWS
    # In units of the dtype's size. The check computes in float32, at twice the size of bfloat16.
    held: ClassVar[int] = 36

    def __str__(self) -> str:
        name = f"{self.case.loss} {words(self.dtype)} {self.case.words()}"
        return f"{name}: {', '.join(self.whats)}"

    @property
    def count(self) -> int:
        return math.prod(self.case.shape)

    @property
    def facts(self) -> dict[str, object]:
        return {
            "loss": self.case.loss,
            "dtype": words(self.dtype),
            "shape": list(self.case.shape),
            "case": self.case.words(),
            "count": self.count,
        }

    def tensors(self, device: str) -> Rows:
        return Rows(self.case, self.dtype, device)

    def passes(self, what: str) -> int:
        spec, sample = self.case.spec, self.case.sample
        return (spec.passes_per_forward if what == FORWARD else spec.passes_per_step)(sample)


def words(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def plan(sizes: Sizes, dry: bool) -> list[Visit | RowVisit]:
    """The visits of both families. Row visits alternate with the first of the others, so that
    neither family is left out if time runs out."""
    elementwise, rows = list(visits(sizes, dry)), list(row_visits(dry))
    turn = max(1, len(SPECS) * len(DTYPES) // len(rows))
    made: list[Visit | RowVisit] = []
    for i, visit in enumerate(elementwise):
        made += rows[i // turn : i // turn + 1] if i % turn == 0 else []
        made.append(visit)
    return made


def visits(sizes: Sizes, dry: bool, specs: Iterable[Spec] = SPECS) -> Iterator[Visit]:
    """All elementwise visits. A dry run compiles only once and measures memory only twice, because
    both are slow."""
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
    # Last, because a failed capture may leave the device unusable.
    for count in (sizes.tiny, sizes.small):
        for spec, dtype in pairs:
            yield Visit(spec, dtype, count, (GRAPH,), short=True)


def row_visits(dry: bool) -> Iterator[RowVisit]:
    """Those with goals come first. A dry run compiles none of them, only an elementwise loss."""
    single, half = torch.float32, torch.bfloat16
    pair = Sample(target="logits")
    for loss, shape, sample, dtype, compiled in (
        ("cross_entropy", (4096, 32_000), Sample(), half, True),
        ("kl_divergence", (4096, 32_000), pair, half, True),
        ("js_divergence", (4096, 32_000), pair, half, True),
        ("cross_entropy", (2048, 128_256), Sample(), half, True),
        # This may be short enough for launches to matter. The next, with four times the rows,
        # tells.
        ("cross_entropy", (4096, 4096), Sample(), half, False),
        ("cross_entropy", (16_384, 4096), Sample(), half, False),
        ("cross_entropy", (1024, 262_144), Sample(), half, False),
        ("cross_entropy", (4096, 32_000), Sample(), single, False),
        ("cross_entropy", PICTURES, Sample(), single, True),
    ):
        case = Case(loss, _tiny(shape) if dry else shape, sample)
        yield RowVisit(case, dtype, compiled=compiled and not dry)


def _tiny(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) > 2:
        return (2, shape[1], 4, 4)
    return (shape[0] // 1024, shape[1] // 512)


def passes(spec: Spec, what: str) -> int:
    """Passes over memory of the input's size that a fused implementation needs."""
    if what == FORWARD:
        return spec.passes_per_forward
    # A gradient written for grad_output = 1 must be read and written again.
    return spec.passes_per_step + (2 if what == SCALED else 0)
