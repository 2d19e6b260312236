"""Speed and memory of the losses over rows, compared with torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.bench.elementwise import _in_process
from benchmarks.bench.softmax_steps import cases
from lossops.specs.softmax import ROW_SPECS, RowSpec
from lossops.verify.machine import devices

Row = dict[str, Any]
PARTS = ("step", "half", "tiny", "memory")
_HALVES = ("cross_entropy", "kl_divergence")


def bench(
    wanted: Iterable[RowSpec] = ROW_SPECS,
    advance: Callable[[str], None] = lambda what: None,
    quick: bool = False,
    parts: Iterable[str] = PARTS,
) -> list[Row]:
    """Measures the losses. All contenders for a loss run in one process. Returns one row per
    result."""
    losses, parts = [spec.name for spec in wanted], set(parts)
    rows = []
    for device in devices():
        task = {part: part in parts for part in PARTS} | {
            "losses": losses,
            "device": device,
            "quick": quick,
            "compile": True,
            "rounds": 3 if quick else 9,
        }
        if losses and parts & set(PARTS):
            for row in _in_process(task, "benchmarks.bench.softmax_worker"):
                rows.append(row)
                advance(f"{row['kind'].removeprefix('rows_')} {row['loss']} {row['case']}")
    return rows


def pieces(wanted: Iterable[RowSpec], parts: Iterable[str] = PARTS) -> int:
    """How many times ``bench`` calls ``advance``."""
    losses = [spec.name for spec in wanted]
    each = {
        "step": len(cases(losses)),
        "half": sum(name in losses for name in _HALVES),
        "tiny": len(losses),
        "memory": len(losses) + ("cross_entropy" in losses),
    }
    return len(devices()) * sum(each.get(part, 0) for part in parts)
