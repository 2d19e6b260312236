"""The performance goals on a GPU, for each backend; see benchmarks.bench.targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.bench import targets
from benchmarks.bench.cases import COMPILE
from benchmarks.bench.targets import Target
from benchmarks.gpu.contenders import LIGER, OURS, QUACK
from benchmarks.gpu.visits import ROWS, STEP, TIME

Row = dict[str, Any]
LARGE = 1 << 26  # elements above which bandwidth alone should matter
MANY = 4096  # classes per row, from which the goals for rows apply


def over(row: Row, other: str, backend: str) -> float | None:
    """The time of another contender divided by the backend's."""
    found = row["contenders"]
    return found[other]["ms"] / found[backend]["ms"] if {other, backend} <= found.keys() else None


def _of_copy(row: Row, backend: str) -> float | None:
    return row["contenders"].get(backend, {}).get("of_copy")


def _times(other: str) -> Callable[[Row, str], float | None]:
    return lambda row, backend: over(row, other, backend)


def _concerned(row: Row) -> bool:
    """Whether the goals speak of a row: steps over large tensors, and over many classes in
    bfloat16."""
    if row["what"] != STEP or row["kind"] == TIME:
        return row["what"] == STEP and row["count"] >= LARGE
    shape = row["shape"]
    return row["dtype"] == "bfloat16" and len(shape) == 2 and shape[1] >= MANY


_CROSS_ENTROPY, _DIVERGENCES = ("cross_entropy",), ("kl_divergence", "js_divergence")
_SHARE = "share of the device copy's bandwidth"


def _goals(backend: str) -> list[Target]:
    return [
        Target(
            f"{text}, {backend}",
            ROWS if losses else TIME,
            lambda row, number=number: number(row, backend) if _concerned(row) else None,
            at_least=at_least,
            losses=losses,
            devices=("cuda",),
        )
        for text, at_least, number, losses in (
            (f"training step: {_SHARE}", 0.92, _of_copy, ()),
            ("training step: times faster than torch.compile's", 1.6, _times(COMPILE), ()),
            (f"cross entropy's step: {_SHARE}", 0.85, _of_copy, _CROSS_ENTROPY),
            ("cross entropy's step: times as fast as quack's", 1.0, _times(QUACK), _CROSS_ENTROPY),
            ("cross entropy's step: times faster than Liger's", 1.5, _times(LIGER), _CROSS_ENTROPY),
            (f"divergences' step: {_SHARE}", 0.85, _of_copy, _DIVERGENCES),
            ("divergences' step: times faster than Liger's", 3.0, _times(LIGER), _DIVERGENCES),
        )
    ]


GOALS = [goal for backend in OURS for goal in _goals(backend)]


def outcomes(rows: Iterable[Row]) -> list[Row]:
    """The outcome of each goal, also of those that nothing was measured for."""
    found = {o["target"]: o for o in targets.outcomes(rows, among=GOALS)}
    nothing = {"device": "cuda", "worst": None, "missed": [], "reason": "", "met": None}
    return [
        found.get(goal.text, {"target": goal.text, "goal": goal.goal} | nothing) for goal in GOALS
    ]
