"""The performance goals on a GPU, compared with the measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.contenders import COMPILE, LIGER, OURS, QUACK
from benchmarks.gpu.visits import ROWS, STEP

Row = dict[str, Any]
LARGE = 1 << 26  # elements above which bandwidth alone should matter
MANY = 4096  # classes per row, from which the goals for rows apply


def _large(row: Row) -> bool:
    return row["kind"] == "time" and row["count"] >= LARGE


def _rows_of(*losses: str) -> Callable[[Row], bool]:
    """Selects rows of many classes, in bfloat16."""

    def concerned(row: Row) -> bool:
        if row["kind"] != ROWS or row["loss"] not in losses or row["dtype"] != "bfloat16":
            return False
        return len(row["shape"]) == 2 and row["shape"][1] >= MANY

    return concerned


@dataclass(frozen=True)
class Goal:
    """A bound for the training steps of a backend. Applies to large tensors by default."""

    text: str
    at_least: float
    number: Callable[[Row, str], float | None]  # of a row, for a backend
    concerns: Callable[[Row], bool] = _large


def _of_copy(row: Row, backend: str) -> float | None:
    return row["contenders"].get(backend, {}).get("of_copy")


def over(row: Row, other: str, backend: str) -> float | None:
    """The time of another contender divided by the backend's."""
    contenders = row["contenders"]
    if other not in contenders or backend not in contenders:
        return None
    return contenders[other]["ms"] / contenders[backend]["ms"]


GOALS = (
    Goal("training step: share of the device copy's bandwidth", 0.92, _of_copy),
    Goal(
        "training step: times faster than torch.compile's",
        1.6,
        lambda row, backend: over(row, COMPILE, backend),
    ),
    Goal(
        "cross entropy's step: share of the device copy's bandwidth",
        0.85,
        _of_copy,
        _rows_of("cross_entropy"),
    ),
    Goal(
        "cross entropy's step: times as fast as quack's",
        1.0,
        lambda row, backend: over(row, QUACK, backend),
        _rows_of("cross_entropy"),
    ),
    Goal(
        "cross entropy's step: times faster than Liger's",
        1.5,
        lambda row, backend: over(row, LIGER, backend),
        _rows_of("cross_entropy"),
    ),
    Goal(
        "divergences' step: share of the device copy's bandwidth",
        0.85,
        _of_copy,
        _rows_of("kl_divergence", "js_divergence"),
    ),
    Goal(
        "divergences' step: times faster than Liger's",
        3.0,
        lambda row, backend: over(row, LIGER, backend),
        _rows_of("kl_divergence", "js_divergence"),
    ),
)


def outcomes(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The outcome of each goal for each backend: the worst case, and the cases that missed it."""
    steps = [row for row in rows if row.get("kind") in ("time", ROWS) and row["what"] == STEP]
    return [
        _outcome(goal, backend, [row for row in steps if goal.concerns(row)])
        for goal in GOALS
        for backend in OURS
    ]


def _outcome(goal: Goal, backend: str, steps: list[Row]) -> dict[str, Any]:
    found = [(goal.number(row, backend), row) for row in steps]
    found = [(number, row) for number, row in found if number is not None]
    missed = [(number, row) for number, row in found if number < goal.at_least]
    worst = min(found, key=lambda pair: pair[0], default=None)
    return {
        "goal": goal.text,
        "at_least": goal.at_least,
        "backend": backend,
        "worst": worst and worst[0],
        "where": worst and label(worst[1]),
        "measured": len(found),
        "missed": [f"{label(row)}: {number:.3g}" for number, row in missed],
        "met": not missed if found else None,
    }


def label(row: Row) -> str:
    return f"{row['loss']} {row['dtype']} {row.get('case') or elements(row['count'])}"


def elements(count: int) -> str:
    """Formats a power of two as one."""
    exponent = count.bit_length() - 1
    return f"2^{exponent}" if count == 1 << exponent else f"{count:,}"
