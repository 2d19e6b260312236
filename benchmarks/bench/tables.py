"""Tables of the measurements."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lossops.verify.tables import NOTHING, Table, number, verdict

Row = dict[str, Any]
_ALLOCATORS = {
    "default": "the allocator as it comes",
    "warm": "memory kept warm",
}
_ALLOCATOR_NOTES = {
    "default": "Every large tensor is fresh from the system, whose page faults cost all contenders "
    "alike.",
    "warm": "The C library is told to keep freed memory (the effect of MALLOC_MMAP_THRESHOLD_ and "
    "MALLOC_TRIM_THRESHOLD_, through mallopt, with a pool touched beforehand), as in a training "
    "process under jemalloc. A step that still took fresh pages is timed again.",
}


def tables(rows: Iterable[Row], outcomes: Iterable[dict[str, Any]]) -> list[Table]:
    """Tables of all measurements."""
    rows = list(rows)
    made = [_targets(outcomes)]
    for device in dict.fromkeys(row["device"] for row in rows if "device" in row):
        here = [row for row in rows if row.get("device") == device]
        for memory in _ALLOCATORS:
            made.append(_steps([r for r in here if r["memory"] == memory], device, memory))
        made += [_half(here, device), _tiny(here, device), _memory(here, device)]
        made.append(_accuracy(here, device))
    return [table for table in made if table.rows]


def _targets(outcomes: Iterable[dict[str, Any]]) -> Table:
    table = Table(
        "Targets", ("target", "device", "goal", "worst", "outcome", "missed by"), labels=2
    )
    for outcome in outcomes:
        table.add(
            outcome["target"],
            outcome["device"],
            outcome["goal"],
            number(outcome["worst"]),
            verdict(outcome["met"], "met", "missed"),
            "; ".join(outcome["missed"]) or NOTHING,
        )
    return table


def _of(rows: Iterable[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["kind"] == kind]


def _elements(rows: list[Row]) -> str:
    count = rows[0]["count"] if rows else 0
    return f"2^{count.bit_length() - 1}" if count and count & (count - 1) == 0 else f"{count:,}"


def _steps(rows: list[Row], device: str, memory: str) -> Table:
    rows = _of(rows, "step")
    where = _ALLOCATORS[memory] if device == "cpu" else "L2 cache flushed"
    others = [n for n in ("floor", "lossops", "triton", "eager", "compile") if _any(rows, n)]
    columns = [f"{name}, ms" for name in others]
    table = Table(
        f"Training step on {device}: float32, {_elements(rows)} elements, mean, {where}",
        ("loss", *columns, "over floor", "eager / lossops", "compile / lossops"),
        note="Forward and backward; medians of interleaved rounds. The floor is torch.add(input, "
        "target) into fresh memory, which moves the same bytes. "
        + (_ALLOCATOR_NOTES[memory] if device == "cpu" else ""),
    )
    for row in rows:
        ms = row["ms"]
        table.add(
            row["loss"],
            *(number(ms.get(name), 1) for name in others),
            number(_ratio(ms, "lossops", "floor")),
            number(_ratio(ms, "eager", "lossops")),
            number(_ratio(ms, "compile", "lossops")),
        )
    return table


def _any(rows: list[Row], name: str) -> bool:
    return any(name in row["ms"] for row in rows)


def calls(title: str, rows: list[Row]) -> Table:
    """The cost of calls with tiny tensors."""
    table = Table(title, ("loss", "lossops, µs", "torch eager, µs", "lossops / eager"))
    for row in rows:
        us = row["us"]
        times = (number(us["lossops"], 1), number(us.get("eager"), 1))
        table.add(row["loss"], *times, number(_ratio(us, "lossops", "eager")))
    return table


def _ratio(numbers: dict[str, float], above: str, below: str) -> float | None:
    return numbers[above] / numbers[below] if above in numbers and below in numbers else None


def _half(rows: list[Row], device: str) -> Table:
    rows = _of(rows, "half")
    table = Table(
        f"bfloat16 beside float32 on {device}: a step over {_elements(rows)} elements",
        ("loss", "memory", "float32, ms", "bfloat16, ms", "bfloat16 / float32"),
        labels=2,
    )
    for row in rows:
        ms = row["ms"]
        numbers = (number(ms["float32"], 1), number(ms["bfloat16"], 1))
        share = number(_ratio(ms, "bfloat16", "float32"))
        table.add(row["loss"], row["memory"], *numbers, share)
    return table


def _tiny(rows: list[Row], device: str) -> Table:
    table = Table(
        f"A step over 16 elements on {device}: what a call costs",
        ("loss", "lossops, µs", "torch eager, µs", "lossops / eager"),
    )
    for row in _of(rows, "tiny"):
        us = row["us"]
        numbers = (number(us["lossops"], 1), number(us["eager"], 1))
        table.add(row["loss"], *numbers, number(_ratio(us, "lossops", "eager")))
    return table


def _memory(rows: list[Row], device: str) -> Table:
    table = Table(
        f"Peak memory of a step on {device}, beyond its inputs, in gradients",
        ("loss", "reduction", "lossops", "torch eager"),
        labels=2,
        note="From the profiler's record of every allocation and release by torch's allocator.",
    )
    for row in _of(rows, "memory"):
        peaks = row["gradients"]
        table.add(row["loss"], row["reduction"], number(peaks["lossops"]), number(peaks["eager"]))
    return table


def _accuracy(rows: list[Row], device: str) -> Table:
    table = Table(
        f"Largest errors on {device}, in units in the last place of the exact result",
        (
            "loss", "dtype", "values", "value", "in torch", "at x - y =", "gradient", "in torch",
            "wrong kind", "in torch",
        ),
        labels=2,
        note="Random and adversarial values: every exponent, thresholds ± 3 units, denormal, "
        "infinite, NaN. 0.5 is perfect rounding. Truth: the formula in float64, and in numpy's "
        "longdouble for float64, on fewer values. In torch: torch's own function; for log-cosh and "
        "quantile, which it lacks, the formula as users write it. Wrong kind: NaN or infinite "
        "where the truth is not, or reversed.",
    )  # fmt: skip
    for row in _of(rows, "accuracy"):
        ours, theirs = row["lossops"], row["torch"] or {}
        table.add(
            row["loss"], row["dtype"], f"{row['count']:,}",
            number(ours["value"]), number(theirs.get("value")), number(ours["value_at"], 3),
            number(ours["gradient"]), number(theirs.get("gradient")),
            str(ours["wrong_kind"]), str(theirs.get("wrong_kind", NOTHING)),
        )  # fmt: skip
    return table
