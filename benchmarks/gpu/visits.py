"""The measurements, the most important first: later ones may run out of time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.bench.cases import PICTURES, Case, Elements, Rows, name_of
from lossops.specs.elementwise import SPECS
from lossops.specs.softmax import row_spec

TIME, ROWS = "time", "rows_time"  # the kinds of results
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
    """Several measurements of one loss with the same tensors."""

    case: Case
    dtype: torch.dtype
    whats: tuple[str, ...] = (STEP, FORWARD)
    compiled: bool = False
    short: bool = False  # calls are timed in blocks, with a warm cache

    def __str__(self) -> str:
        words = f"{self.case.loss} {name_of(self.dtype)} {self.case.words()}"
        return f"{words}: {', '.join(self.whats)}"

    @property
    def checked(self) -> bool:
        """Whether results are compared with torch's first, as there may be other libraries."""
        return isinstance(self.case, Rows)

    @property
    def need(self) -> int:
        """An upper bound on the memory in use at once. The check computes in float32, at twice the
        size of bfloat16."""
        return (36 if self.checked else 14) * self.case.count * self.dtype.itemsize

    @property
    def facts(self) -> dict[str, object]:
        """The values that identify its results."""
        return {
            "loss": self.case.loss,
            "dtype": name_of(self.dtype),
            "case": self.case.words(),
            "shape": list(self.case.shape),
            "count": self.case.count,
        }

    def passes(self, what: str) -> int:
        """Passes over memory of the input's size that a fused implementation needs."""
        # A gradient written for grad_output = 1 must be read and written again.
        return self.case.passes(what == FORWARD) + (2 if what == SCALED else 0)


def plan(sizes: Sizes, dry: bool) -> list[Visit]:
    """The visits of both families. Visits over rows alternate with the first of the others, so that
    neither family is left out if time runs out."""
    elementwise, rows = list(visits(sizes, dry)), list(row_visits(dry))
    turn = max(1, len(SPECS) * len(DTYPES) // len(rows))
    made: list[Visit] = []
    for i, visit in enumerate(elementwise):
        made += rows[i // turn : i // turn + 1] if i % turn == 0 else []
        made.append(visit)
    return made


def visits(sizes: Sizes, dry: bool) -> Iterator[Visit]:
    """All elementwise visits. A dry run compiles only once and measures memory only twice, because
    both are slow."""
    pairs = [(spec.name, dtype) for spec in SPECS for dtype in DTYPES]
    whats = (STEP, SCALED, FORWARD)

    def visit(count: int, pair: tuple, whats: tuple = whats, **more) -> Visit:
        loss, dtype = pair
        return Visit(Elements(loss, (count,)), dtype, whats, **more)

    for i, pair in enumerate(pairs):
        more = (*whats, *([MEMORY] if not dry or i < 2 else []))
        yield visit(sizes.large, pair, more, compiled=not dry or i == 0)
    yield from (visit(sizes.tiny, pair, short=True) for pair in pairs)
    yield from (visit(sizes.huge, pair) for pair in pairs)
    yield from (visit(sizes.small, pair, compiled=not dry, short=True) for pair in pairs)
    # Last, because a failed capture may leave the device unusable.
    for count in (sizes.tiny, sizes.small):
        yield from (visit(count, pair, (GRAPH,), short=True) for pair in pairs)


def row_visits(dry: bool) -> Iterator[Visit]:
    """Those with goals come first. A dry run compiles none of them, only an elementwise loss."""
    single, half = torch.float32, torch.bfloat16
    for loss, shape, dtype, compiled in (
        ("cross_entropy", (4096, 32_000), half, True),
        ("kl_divergence", (4096, 32_000), half, True),
        ("js_divergence", (4096, 32_000), half, True),
        ("cross_entropy", (2048, 128_256), half, True),
        # This may be short enough for launches to matter. The next, with four times the rows,
        # tells.
        ("cross_entropy", (4096, 4096), half, False),
        ("cross_entropy", (16_384, 4096), half, False),
        ("cross_entropy", (1024, 262_144), half, False),
        ("cross_entropy", (4096, 32_000), single, False),
        ("cross_entropy", PICTURES, single, True),
    ):
        case = Rows(loss, _tiny(shape) if dry else shape, row_spec(loss).samples[0])
        yield Visit(case, dtype, compiled=compiled and not dry)


def _tiny(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) > 2:
        return (2, shape[1], 4, 4)
    return (shape[0] // 1024, shape[1] // 512)
