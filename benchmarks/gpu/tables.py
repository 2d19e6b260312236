"""Tables of a GPU result, for a terminal and for benchmarks/README.md."""

from __future__ import annotations

import re
from collections.abc import Iterable

from benchmarks.bench.cases import COMPILE, EAGER
from benchmarks.bench.tables import goals
from benchmarks.gpu.contenders import LIGER, OURS, QUACK
from benchmarks.gpu.goals import outcomes, over
from benchmarks.gpu.measure import ADD, COPY
from benchmarks.gpu.part import Row, rows_of
from benchmarks.gpu.visits import FORWARD, GRAPH, ROWS, SCALED, STEP, TIME
from lossops.verify.tables import NOTHING, Cell, Table, number, verdict

NAMES = (*OURS, EAGER, COMPILE, LIGER, QUACK)
_LABELS = ("loss", "case", "dtype")
_NUMBER = re.compile(rf"[-\d≤≥(]|{NOTHING}$")  # how cells of a numeric column start
_NOTES = {
    TIME: "Medians of GPU time, the L2 cache flushed before each, contenders taking turns. native "
    "is CUDA C++. copy moves as many bytes as a fused implementation by Tensor.copy_; add is "
    "torch.add(input, target) into memory that is there, which reads and writes what a step does.",
    ROWS: "Targets are labels, or where it says so the logits of a fixed distribution. A contender "
    "that overwrites the logits finds them restored before each call, outside of what is timed. "
    "Where another library wants log-probabilities, they are made of the logits by torch, and that "
    "is timed. Its result has been compared with torch's before.",
}
_OVER = {TIME: "elements", ROWS: "rows of class scores"}


def tables(result: Row) -> list[Table]:
    """All tables that are not empty."""
    rows = _measured(result)
    made = summary(result)
    for kind in _OVER:
        cold = [row for row in rows_of(rows, kind) if row["cold"]]
        made += [_times(kind, what, cold) for what in (FORWARD, SCALED)]
        made.append(_bandwidth(kind, cold))
    made += [_short([row for row in rows_of(rows, TIME) if not row["cold"]])]
    made += [_memory(rows_of(rows, "memory")), _left_out(rows), _peers(rows)]
    return [table for table in made if table.rows]


def summary(result: Row) -> list[Table]:
    """The most important tables."""
    rows = _measured(result)
    steps = [
        _times(kind, STEP, [row for row in rows_of(rows, kind) if row["cold"]]) for kind in _OVER
    ]
    made = [_parts(result), goals(outcomes(rows)), *steps]
    return [table for table in made if table.rows]


def _measured(result: Row) -> list[Row]:
    return result["parts"].get("measure", {}).get("rows", [])


def _parts(result: Row) -> Table:
    table = Table("What was run", ("part", "outcome", "seconds", "in short"), labels=2)
    moods = {"passed": True, "failed": False, "timed out": False}
    for name, record in result["parts"].items():
        status = record["status"]
        good = moods.get(status)
        outcome = status if good is None else verdict(good, status, status)
        words = "; ".join(filter(None, [_in_short(record["rows"]), record["reason"]]))
        table.add(name.replace("_", " "), outcome, f"{record['seconds']:.0f}", words or NOTHING)
    return table


def _in_short(rows: list[Row]) -> str:
    said = [
        f"{row.get('passed', 0)} passed, {row.get('failed', 0)} failed, "
        f"{row.get('skipped', 0)} skipped"
        for row in rows_of(rows, "tests")
    ]
    checks = rows_of(rows, "sanitizer")
    clean = sum(row["status"] == "passed" for row in checks)
    said += [f"{clean} of {len(checks)} checks clean"] if checks else []
    said += [
        f"for {row['native']['cuda_arch']} by nvcc {row['native']['cuda']}"
        for row in rows_of(rows, "build")
        if row["native"].get("cuda")
    ]
    measured = [row for kind in _OVER for row in rows_of(rows, kind)]
    said += [f"{len(measured)} measurements"] if measured else []
    return "; ".join(said)


def _table(title: str, *columns: str, note: str = "") -> Table:
    return Table(title, (*_LABELS, *columns), labels=len(_LABELS), note=note)


def _labels(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in _LABELS)


def _known(rows: Iterable[Row], names: Iterable[str], *keys: str) -> list[str]:
    """The contenders that some row has something to say about."""
    said = {name for row in rows for key in keys for name in row[key]}
    return [name for name in names if name in said]


def _milliseconds(row: Row, name: str, unit: float = 1.0, digits: int = 3) -> str:
    """The time of a contender or yardstick, multiplied by ``unit``."""
    numbers = (row["contenders"] | row["yardsticks"]).get(name)
    if numbers is None and name in row["errors"]:
        return "error"
    return number(numbers and unit * numbers["ms"], digits)


def _speed(numbers: Row | None) -> str:
    """The bandwidth, and in brackets its ratio to the copy's."""
    if numbers is None:
        return NOTHING
    share = f" ({number(numbers['of_copy'])})" if "of_copy" in numbers else ""
    return number(numbers["gb_per_s"], 0) + share


def _times(kind: str, what: str, rows: list[Row]) -> Table:
    """The times of large calls, largest tensors last, and what others take to lossops."""
    rows = [row for row in rows if row["what"] == what]
    names = _known(rows, NAMES, "contenders", "errors")
    yards = _known(rows, (COPY, ADD), "yardsticks")
    pairs = [(name, "native") for name in names if name not in OURS]
    pairs += [(COMPILE, "triton")] if {COMPILE, "triton"} <= {*names} else []
    words = "training step: forward, backward" if what == STEP else what
    table = _table(
        f"Losses over {_OVER[kind]}, {words}, mean; ms",
        *names, *yards, *(" / ".join(pair) for pair in pairs),
        note=" ".join(dict.fromkeys((_NOTES[TIME], _NOTES[kind]))) if what == STEP else "",
    )  # fmt: skip
    for row in sorted(rows, key=lambda row: row["count"]) if kind == TIME else rows:
        times = (_milliseconds(row, name) for name in (*names, *yards))
        table.add(*_labels(row), *times, *(number(over(row, *pair)) for pair in pairs))
    return table


def _bandwidth(kind: str, rows: list[Row]) -> Table:
    names = [*_known(rows, (*OURS, LIGER, QUACK), "contenders", "errors"), COPY]
    whats = [what for what in (FORWARD, STEP, SCALED) if any(row["what"] == what for row in rows)]
    table = _table(
        f"Losses over {_OVER[kind]}: achieved bandwidth in GB/s, and as a share of the device "
        "copy's",
        *(f"{what}, {name}" for what in whats for name in names),
        note="Of the bytes that have to be moved, whatever a contender moves: input and target are "
        "read once (labels are nothing beside scores), and in a step the gradient is written once. "
        "With another grad_output than 1, it is read and written again.",
    )
    found = {(_labels(row), row["what"]): row["contenders"] | row["yardsticks"] for row in rows}
    for labels in dict.fromkeys(map(_labels, rows)):
        speeds = (found.get((labels, what), {}).get(name) for what in whats for name in names)
        table.add(*labels, *map(_speed, speeds))
    return table


def _short(rows: list[Row]) -> Table:
    names = _known(rows, NAMES, "contenders")
    table = _table(
        "Losses over few elements: µs per call",
        "what", *names,
        note="Calls right after each other, so that what the launches take counts.",
    )  # fmt: skip
    table.labels += 1
    order = [STEP, GRAPH, SCALED, FORWARD]
    places = {labels: i for i, labels in enumerate(dict.fromkeys(map(_labels, rows)))}
    for row in sorted(rows, key=lambda row: (places[_labels(row)], order.index(row["what"]))):
        table.add(*_labels(row), row["what"], *(_milliseconds(row, n, 1e3, 1) for n in names))
    return table


def _memory(rows: list[Row]) -> Table:
    names = _known(rows, NAMES, "gradients")
    table = _table("Peak memory of a training step beyond its inputs, in gradients", *names)
    for row in rows:
        table.add(*_labels(row), *(number(row["gradients"].get(name)) for name in names))
    return table


def _left_out(rows: list[Row]) -> Table:
    """Contenders that are there but were not measured, and why."""
    table = Table("Not measured", ("contender", "why", "first", "cases"), labels=3)
    said: dict[tuple[str, str], dict[tuple[str, ...], None]] = {}
    for row in (row for kind in (*_OVER, "memory") for row in rows_of(rows, kind)):
        for name, why in (row["absent"] | row["errors"]).items():
            if name != COMPILE and not why.startswith("ModuleNotFoundError"):
                said.setdefault((name, why), {})[_labels(row)] = None
    for (name, why), cases in sorted(said.items()):
        table.add(name, why, " ".join(next(iter(cases))), str(len(cases)))
    return table


def _peers(rows: list[Row]) -> Table:
    table = Table("Other libraries", ("library", "version", "has of these losses"), labels=3)
    for row in rows_of(rows, "peers"):
        for peer in row["peers"]:
            version = (peer["version"] or "unknown") if peer["found"] else peer["why_not"]
            table.add(peer["module"], version, ", ".join(peer["has"]) or "no equivalent")
    return table


def to_markdown(table: Table) -> str:
    """Formats a table as Markdown: numbers right-aligned, outcomes in bold."""
    rows = [[_markdown_cell(cell) for cell in cells] for cells in table.rows]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(table.columns)
    marks = ["---:" if all(map(_NUMBER.match, column)) else "---" for column in columns]
    lines = [f"**{table.title}**", "", f"| {' | '.join(table.columns)} |", f"|{'|'.join(marks)}|"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([*lines, *(["", table.note] if table.note else []), ""])


def _markdown_cell(cell: str | Cell) -> str:
    text = cell.text if isinstance(cell, Cell) else cell
    text = " ".join(text.replace("|", "\\|").split())
    return f"**{text}**" if isinstance(cell, Cell) and cell.mood else text
