"""Formats measurements as table cells."""

from __future__ import annotations

from benchmarks.gpu.part import Row
from lossops.verify.tables import NOTHING, number


def milliseconds(row: Row, name: str, unit: float = 1.0, digits: int = 3) -> str:
    """A contender's time, multiplied by ``unit``."""
    numbers = row["contenders"].get(name)
    if numbers is None and name in row["errors"]:
        return "error"
    return number(numbers and unit * numbers["ms"], digits)


def speed(numbers: Row | None) -> str:
    """The bandwidth, and in brackets its ratio to the copy's."""
    if numbers is None:
        return NOTHING
    share = f" ({number(numbers['of_copy'])})" if "of_copy" in numbers else ""
    return number(numbers["gb_per_s"], 0) + share
