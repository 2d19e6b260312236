"""Tables of a GPU result, for a terminal and for benchmarks/README.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from benchmarks.gpu import row_tables
from benchmarks.gpu.cells import milliseconds, speed
from benchmarks.gpu.contenders import COMPILE, EAGER, OURS
from benchmarks.gpu.goals import elements, outcomes, over
from benchmarks.gpu.measure import ADD, COPY
from benchmarks.gpu.part import Row, rows_of
from benchmarks.gpu.visits import FORWARD, GRAPH, ROWS, SCALED, STEP
from lossops.verify.tables import NOTHING, Cell, Table, number, verdict

NAMES = (*OURS, EAGER, COMPILE)
_NUMBER = re.compile(rf"[-\d≤≥(]|{NOTHING}$")  # how cells of a numeric column start


def tables(result: Row) -> list[Table]:
    """All tables that are not empty."""
    times = rows_of(_measured(result), "time")
    cold = [row for row in times if row["cold"]]
    short = [row for row in times if not row["cold"]]
    made = summary(result)
    made += [_bandwidth(same) for same in _by_count(cold)]
    made += [_short(same) for same in _by_count(short)]
    made += [_memory(rows_of(_measured(result), "memory"))]
    made += row_tables.tables(rows_of(_measured(result), ROWS))
    made += [_peers(_measured(result))]
    return [table for table in made if table.rows]


def summary(result: Row) -> list[Table]:
    """The most important tables."""
    rows = _measured(result)
    steps = [row for row in rows_of(rows, "time") if row["cold"] and row["what"] == STEP]
    made = [_parts(result), _goals(rows), *map(_steps, _by_count(steps))]
    made += row_tables.summary(rows_of(rows, ROWS))
    return [table for table in made if table.rows]


def _measured(result: Row) -> list[Row]:
    return result["parts"].get("measure", {}).get("rows", [])


def _by_count(rows: Iterable[Row]) -> Iterator[list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row["count"], []).append(row)
    return iter(found[count] for count in sorted(found))


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
    measured = [*rows_of(rows, "time"), *rows_of(rows, ROWS)]
    said += [f"{len(measured)} measurements"] if measured else []
    return "; ".join(said)


def _goals(rows: list[Row]) -> Table:
    table = Table(
        "Goals",
        ("goal", "by", "at least", "worst", "where", "outcome"),
        labels=2,
        note="Over single elements in float32 and bfloat16, from 2^26 elements on; over rows of "
        "class scores in bfloat16, from 4096 classes on. The bytes of a step are three passes over "
        "a tensor: input and target are read, the gradient is written; they are two where the "
        "target is labels.",
    )
    for goal in outcomes(rows):
        outcome: str | Cell = "not measured"
        if goal["met"] is not None:
            outcome = verdict(goal["met"], "met", f"missed {len(goal['missed'])} times")
        table.add(
            goal["goal"], goal["backend"], f"{goal['at_least']:g}",
            number(goal["worst"]), goal["where"] or NOTHING, outcome,
        )  # fmt: skip
    return table


def _steps(rows: list[Row]) -> Table:
    ratios = [(EAGER, "native"), (COMPILE, "native"), (COMPILE, "triton")]
    table = Table(
        f"Training step over {elements(rows[0]['count'])} elements: forward, backward, mean; ms",
        ("loss", "dtype", *NAMES, COPY, ADD, *(f"{above} / {below}" for above, below in ratios)),
        labels=2,
        note="Medians of GPU time, the L2 cache flushed before each, contenders taking turns. "
        "native is CUDA C++. copy moves as many bytes as the step by Tensor.copy_; add is "
        "torch.add(input, target) into memory that is there, which reads and writes what the step "
        "does.",
    )
    for row in rows:
        yards = row["yardsticks"]
        table.add(
            row["loss"], row["dtype"], *(milliseconds(row, name) for name in NAMES),
            *(number(yards[name]["ms"], 3) if name in yards else NOTHING for name in (COPY, ADD)),
            *(number(over(row, above, below)) for above, below in ratios),
        )  # fmt: skip
    return table


def _bandwidth(rows: list[Row]) -> Table:
    """The bandwidth of forward, step and scaled step."""
    whats = (FORWARD, STEP, SCALED)
    table = Table(
        f"Achieved bandwidth over {elements(rows[0]['count'])} elements, in GB/s, and as a share "
        "of the device copy's",
        ("loss", "dtype", *(f"{what}, {name}" for what in whats for name in (*OURS, COPY))),
        labels=2,
        note="Of the bytes that have to be moved: two passes over a tensor forward, three in a "
        "step, five in one with another grad_output than 1, whose gradient is scaled afterwards.",
    )
    found = {(row["loss"], row["dtype"], row["what"]): row for row in rows}
    for loss, dtype in dict.fromkeys((row["loss"], row["dtype"]) for row in rows):
        cells = []
        for what in whats:
            row = found.get((loss, dtype, what), {"contenders": {}, "yardsticks": {}})
            cells += [speed(row["contenders"].get(name)) for name in OURS]
            cells.append(speed(row["yardsticks"].get(COPY)))
        table.add(loss, dtype, *cells)
    return table


def _short(rows: list[Row]) -> Table:
    names = [name for name in NAMES if any(name in row["contenders"] for row in rows)]
    table = Table(
        f"Small tensors, {elements(rows[0]['count'])} elements: µs per call",
        ("loss", "dtype", "what", *names),
        labels=3,
        note="Calls right after each other, so that what the launches take counts.",
    )
    found = {(row["loss"], row["dtype"], row["what"]): row for row in rows}
    for loss, dtype in dict.fromkeys((row["loss"], row["dtype"]) for row in rows):
        for what in (STEP, GRAPH, SCALED, FORWARD):
            if row := found.get((loss, dtype, what)):
                table.add(loss, dtype, what, *(milliseconds(row, name, 1e3, 1) for name in names))
    return table


def _memory(rows: list[Row]) -> Table:
    names = [name for name in NAMES if any(name in row["gradients"] for row in rows)]
    count = elements(rows[0]["count"]) if rows else ""
    table = Table(
        f"Peak memory of a training step over {count} elements beyond its inputs, in gradients",
        ("loss", "dtype", *names),
        labels=2,
    )
    for row in rows:
        table.add(row["loss"], row["dtype"], *(number(row["gradients"].get(n)) for n in names))
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
