"""Tables of the measurements of the losses over rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.bench.tables import _ratio
from lossops.verify.tables import Table, number

Row = dict[str, Any]


def tables(rows: Iterable[Row]) -> list[Table]:
    """Tables of all measurements."""
    rows = [row for row in rows if row["kind"].startswith("rows_")]
    made = []
    for device in dict.fromkeys(row["device"] for row in rows):
        here = [row for row in rows if row["device"] == device]
        for kind, table in _TABLES.items():
            chosen = [row for row in here if row["kind"] == kind]
            if chosen:
                made.append(table(chosen, device))
    return made


def _steps(rows: list[Row], device: str) -> Table:
    where = "memory kept warm" if device == "cpu" else "L2 cache flushed"
    names = ("floor", "lossops", "triton", "eager", "compile")
    others = [name for name in names if any(name in row["ms"] for row in rows)]
    table = Table(
        f"Training step over rows of class scores on {device}: float32, mean, {where}",
        ("loss", "scores", *(f"{name}, ms" for name in others), "over floor", "eager / lossops",
         "compile / lossops"),
        labels=2,
        note="Forward and backward; medians of interleaved rounds. The floor moves the same bytes: "
        "torch.mul(scores, 2) where the target is labels, torch.add(scores, target) where it is as "
        "large as they are. Eager: torch's function, or what its users write: log_softmax, softmax "
        "and kl_div for kl_divergence, say.",
    )  # fmt: skip
    for row in rows:
        ms = row["ms"]
        table.add(
            row["loss"], row["case"],
            *(number(ms.get(name), 1) for name in others),
            number(_ratio(ms, "lossops", "floor")),
            number(_ratio(ms, "eager", "lossops")),
            number(_ratio(ms, "compile", "lossops")),
        )  # fmt: skip
    return table


def _half(rows: list[Row], device: str) -> Table:
    table = Table(
        f"bfloat16 beside float32 on {device}: a step over rows of class scores",
        ("loss", "scores", "float32, ms", "bfloat16, ms", "bfloat16 / float32"),
        labels=2,
    )
    for row in rows:
        ms = row["ms"]
        share = number(_ratio(ms, "bfloat16", "float32"))
        times = (number(ms[name], 1) for name in ("float32", "bfloat16"))
        table.add(row["loss"], row["case"], *times, share)
    return table


def _tiny(rows: list[Row], device: str) -> Table:
    table = Table(
        f"A step over 16 rows of 10 classes on {device}: what a call costs",
        ("loss", "lossops, µs", "torch eager, µs", "lossops / eager"),
    )
    for row in rows:
        us = row["us"]
        times = (number(us["lossops"], 1), number(us["eager"], 1))
        table.add(row["loss"], *times, number(_ratio(us, "lossops", "eager")))
    return table


def _memory(rows: list[Row], device: str) -> Table:
    table = Table(
        f"Peak memory of a step over rows on {device}, beyond scores and target, in gradients",
        ("loss", "scores", "lossops", "torch eager"),
        labels=2,
        note="With inplace=True the gradient takes the place of the scores.",
    )
    for row in rows:
        case = row["case"] + (", inplace=True" if row["inplace"] else "")
        held = row["gradients"]
        table.add(row["loss"], case, number(held["lossops"]), number(held.get("eager")))
    return table


_TABLES = {"rows_step": _steps, "rows_half": _half, "rows_tiny": _tiny, "rows_memory": _memory}
