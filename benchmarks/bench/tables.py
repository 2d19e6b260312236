"""Tables of the measurements."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.bench.cases import COMPILE, EAGER, FLOOR, LOSSOPS, PRODUCTS, TRITON, elements
from lossops.verify.tables import NOTHING, Table, number, verdict

Row = dict[str, Any]
_MEMORY = {"default": "the allocator as it comes", "warm": "memory kept warm"}
_UNITS = {"ms": (", ms", 1), "us": (", µs", 1), "gradients": ("", 2)}  # in words; digits
_PAIR = (LOSSOPS, EAGER)
_WARM = (
    "Warm memory: the C library is told to keep freed memory (the effect of MALLOC_MMAP_THRESHOLD_ "
    "and MALLOC_TRIM_THRESHOLD_, through mallopt, with a pool touched beforehand), as in a "
    "training process under jemalloc. A step that still took fresh pages is timed again. With the "
    "allocator as it comes, every large tensor is fresh from the system, whose page faults cost "
    "all contenders alike."
)


@dataclass(frozen=True)
class Words:
    """What the tables of a family say."""

    prefix: str  # of the kinds of its rows
    over: str  # what a step is over
    tiny: str  # the same where there is almost nothing to compute
    case: str = ""  # the heading of what distinguishes the rows of a loss, if anything does
    floor: str = ""

    def labels(self, row: Row, other: str) -> list[str]:
        """What tells a row from the others: the loss, and ``case`` or else ``other``."""
        case = row["case"] if self.case else row[other] if other else ""
        inplace = ", inplace=True" if row.get("inplace") else ""
        return [row["loss"], case + inplace] if case else [row["loss"]]

    def table(
        self,
        title: str,
        rows: list[Row],
        unit: str,
        names: Iterable[str],
        ratios: Sequence[tuple[str, str]] = (),
        other: str = "",
        note: str = "",
    ) -> Table:
        """A row for each result: some of its numbers, and ratios of them."""
        labels = [name for name in ("loss", self.case or other) if name]
        names = [name for name in names if any(name in row[unit] for row in rows)]
        words, digits = _UNITS[unit]
        heads = (*(f"{name}{words}" for name in names), *(" / ".join(pair) for pair in ratios))
        table = Table(title, (*labels, *heads), labels=len(labels), note=note)
        for row in rows:
            found = row[unit]
            numbers = (number(found.get(name), digits) for name in names)
            shares = (number(ratio(found, *pair)) for pair in ratios)
            table.add(*self.labels(row, other), *numbers, *shares)
        return table


FAMILIES = (
    Words(
        "", "{count} elements", "16 elements",
        floor="The floor is torch.add(input, target) into fresh memory, which moves the same "
        f"bytes. {_WARM}",
    ),
    Words(
        "rows_", "rows of class scores", "16 rows of 10 classes", "scores",
        floor="The floor moves the same bytes: torch.mul(scores, 2) where the target is labels, "
        "torch.add(scores, target) where it is as large as they are. Eager: torch's function, or "
        "what its users write: log_softmax, softmax and kl_div for kl_divergence, say.",
    ),
    Words(
        "vectors_", "rows of vectors", "16 rows of vectors of 10", "rows",
        floor="The floor: torch.mul(x, 2) of each vector that wants a gradient. Eager: torch's "
        "function, or what its users write.",
    ),
    Words("others_", "", "16 × 10 of losses without kernels"),
)  # fmt: skip


def tables(rows: Iterable[Row]) -> list[Table]:
    """Tables of all measurements."""
    rows, made = list(rows), []
    for words in FAMILIES:
        for device in dict.fromkeys(row["device"] for row in rows):
            for part, table in _PARTS.items():
                kind = f"{words.prefix}{part}"
                here = [row for row in rows if (row["kind"], row["device"]) == (kind, device)]
                made += table(words, here, device) if here else []
    return [*made, *_linear(rows)]


def goals(outcomes: Iterable[Row]) -> Table:
    table = Table("Goals", ("goal", "device", "bound", "worst", "outcome", "missed by"), labels=2)
    for outcome in outcomes:
        met = outcome["met"]
        table.add(
            outcome["target"],
            outcome["device"],
            outcome["goal"],
            number(outcome["worst"]),
            "not measured" if met is None else verdict(met, "met", "missed"),
            "; ".join(outcome["missed"]) or NOTHING,
        )
    return table


def ratio(numbers: dict[str, float], above: str, below: str) -> float | None:
    return numbers[above] / numbers[below] if above in numbers and below in numbers else None


def _over(words: Words, rows: list[Row]) -> str:
    return words.over.format(count=elements(rows[0].get("count", 0) or 1))


def _steps(words: Words, rows: list[Row], device: str) -> Iterator[Table]:
    for memory in dict.fromkeys(row["memory"] for row in rows):
        here = [row for row in rows if row["memory"] == memory]
        where = _MEMORY[memory] if device == "cpu" else "L2 cache flushed"
        yield words.table(
            f"Training step over {_over(words, here)} on {device}: float32, mean, {where}",
            here, "ms", (FLOOR, LOSSOPS, TRITON, EAGER, COMPILE),
            ((LOSSOPS, FLOOR), (EAGER, LOSSOPS), (COMPILE, LOSSOPS)),
            note=f"Forward and backward; medians of interleaved rounds. {words.floor}",
        )  # fmt: skip


def _half(words: Words, rows: list[Row], device: str) -> Iterator[Table]:
    title = f"bfloat16 beside float32 on {device}: a step over {_over(words, rows)}"
    names = ("float32", "bfloat16")
    yield words.table(title, rows, "ms", names, [names[::-1]], "memory")


def _tiny(words: Words, rows: list[Row], device: str) -> Iterator[Table]:
    title = f"A step over {words.tiny} on {device}: what a call costs"
    yield replace(words, case="").table(title, rows, "us", _PAIR, [_PAIR])


def _memory(words: Words, rows: list[Row], device: str) -> Iterator[Table]:
    where = f"over {_over(words, rows)} on {device}"
    title = f"Peak memory of a step {where}, beyond its inputs, in gradients"
    inplace = any(row.get("inplace") for row in rows)
    note = "With inplace=True the gradient takes the place of the scores." if inplace else ""
    yield words.table(title, rows, "gradients", _PAIR, other="reduction", note=note)


def _accuracy(words: Words, rows: list[Row], device: str) -> Iterator[Table]:
    table = Table(
        f"Largest errors on {device}, in units in the last place of the exact result",
        (
            "loss", "dtype", "values", "value", "in torch", "at x - y =", "gradient", "in torch",
            "wrong kind", "in torch",
        ),
        labels=2,
        note="Random and adversarial values: every exponent, thresholds ± 3 units, denormal, "
        "infinite, NaN. 0.5 is perfect rounding. Truth: the formula in float64, and in numpy's "
        "longdouble for float64, on fewer values. In torch: torch's own function, or, where "
        "it lacks the loss, the formula as users write it. Wrong kind: NaN or infinite "
        "where the truth is not, or reversed.",
    )  # fmt: skip
    for row in rows:
        ours, theirs = row["lossops"], row["torch"] or {}
        table.add(
            row["loss"], row["dtype"], f"{row['count']:,}",
            number(ours["value"]), number(theirs.get("value")), number(ours["value_at"], 3),
            number(ours["gradient"]), number(theirs.get("gradient")),
            str(ours["wrong_kind"]), str(theirs.get("wrong_kind", NOTHING)),
        )  # fmt: skip
    yield table


_PARTS = {
    "step": _steps,
    "half": _half,
    "tiny": _tiny,
    "memory": _memory,
    "accuracy": _accuracy,
}


def _linear(rows: list[Row]) -> Iterator[Table]:
    held = {(r["device"], r["case"]): r["logits"] for r in rows if r["kind"] == "linear_memory"}
    for row in (row for row in rows if row["kind"] == "linear_step"):
        table = Table(
            f"linear_cross_entropy on {row['device']}: {row['case']}, float32",
            ("", "a step, ms", "over its products", "memory beyond inputs and gradients, logits"),
            note="products: the three matrix products alone. eager: cross_entropy of linear; "
            "compile: the same compiled. chunked: torch's linear_cross_entropy with its default "
            "options.",
        )
        here = held.get((row["device"], row["case"]), {})
        for name, ms in row["ms"].items():
            relative = number(ratio(row["ms"], name, PRODUCTS))
            table.add(name, number(ms, 0), relative, number(here.get(name), 3))
        yield table
