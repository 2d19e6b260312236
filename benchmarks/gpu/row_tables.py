"""Tables of the losses over rows of class scores, for :mod:`benchmarks.gpu.tables`."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.gpu.cells import milliseconds, speed
from benchmarks.gpu.contenders import COMPILE, EAGER, LIGER, OURS, QUACK
from benchmarks.gpu.goals import over
from benchmarks.gpu.measure import COPY
from benchmarks.gpu.part import Row
from benchmarks.gpu.visits import FORWARD, STEP
from lossops.verify.tables import Table, number

NAMES = (*OURS, EAGER, COMPILE, LIGER, QUACK)
NOTE = (
    "Medians of GPU time, the L2 cache flushed before each, contenders taking turns. Targets are "
    "labels, or where it says so the logits of a fixed distribution. copy moves as many bytes as "
    "lossops has to, by Tensor.copy_. A contender that overwrites the logits finds them restored "
    "before each call, outside of what is timed. Where another library wants log-probabilities, "
    "they are made of the logits by torch, and that is timed. Its result has been compared with "
    "torch's before."
)


def tables(rows: list[Row]) -> list[Table]:
    """All tables of measurements over rows, except the summary."""
    return [_forwards(rows), _bandwidth(rows), _left_out(rows)]


def summary(rows: list[Row]) -> list[Table]:
    """The most important table."""
    ratios = [(name, "native") for name in (EAGER, COMPILE, LIGER, QUACK)]
    table = Table(
        "Losses over rows of class scores, training step: forward, backward, mean; ms",
        ("loss", "case", "dtype", *NAMES, COPY, *(f"{above} / {below}" for above, below in ratios)),
        labels=3,
        note=NOTE,
    )
    for row in _of(rows, STEP):
        table.add(
            *_labels(row), *(milliseconds(row, name) for name in NAMES), _copy(row),
            *(number(over(row, above, below)) for above, below in ratios),
        )  # fmt: skip
    return [table]


def _of(rows: Iterable[Row], what: str) -> list[Row]:
    return [row for row in rows if row["what"] == what]


def _labels(row: Row) -> tuple[str, str, str]:
    return row["loss"], row["case"], row["dtype"]


def _copy(row: Row) -> str:
    return number(row["yardsticks"].get(COPY, {}).get("ms"), 3)


def _forwards(rows: list[Row]) -> Table:
    names = [name for name in NAMES if name != COMPILE]
    table = Table(
        "Losses over rows of class scores, forward alone, mean; ms",
        ("loss", "case", "dtype", *names, COPY),
        labels=3,
    )
    for row in _of(rows, FORWARD):
        table.add(*_labels(row), *(milliseconds(row, name) for name in names), _copy(row))
    return table


def _bandwidth(rows: list[Row]) -> Table:
    names = (*OURS, LIGER, QUACK)
    table = Table(
        "Losses over rows of class scores, training step: achieved bandwidth in GB/s, and as a "
        "share of the device copy's",
        ("loss", "case", "dtype", *names, COPY),
        labels=3,
        note="Of the bytes that have to be moved, whatever a contender moves: the scores are read "
        "once, so is a target that is no label, and the gradient is written once.",
    )
    for row in _of(rows, STEP):
        found = row["contenders"] | {COPY: row["yardsticks"].get(COPY)}
        table.add(*_labels(row), *(speed(found.get(name)) for name in (*names, COPY)))
    return table


def _left_out(rows: list[Row]) -> Table:
    """Contenders that are installed but were not measured, with the reasons."""
    table = Table(
        "Not measured over rows of class scores",
        ("contender", "loss", "case", "dtype", "why"),
        labels=5,
    )
    said = set()
    for row in rows:
        for name, why in (row["absent"] | row["errors"]).items():
            if name != COMPILE and not why.startswith("ModuleNotFoundError"):
                said.add((name, *_labels(row), why))
    for cells in sorted(said):
        table.add(*cells)
    return table
