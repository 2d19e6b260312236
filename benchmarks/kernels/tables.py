"""Tables of the kernel analysis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.kernels.rows import Row
from lossops.verify.tables import BAD, NOTHING, Cell, Table

TITLES = {"cuda": "CUDA kernels", "triton": "Triton kernels"}
_SHORT = {
    "float64": "fp64", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "int64": "i64",
    "int32": "i32",
}  # fmt: skip
_TIMES = "\N{MULTIPLICATION SIGN}"
_ACCESSES = (
    f"Loads and stores are the instructions that access global memory, number {_TIMES} bytes"
)


def tables(result: dict[str, Any], every: bool = False) -> list[Table]:
    """One table per engine, with one row for the kernels of all losses together, or for ``every``
    kernel."""
    made = []
    for engine, compiler in result["compilers"].items():
        rows = [row for row in result["kernels"] if row["engine"] == engine]
        title = f"{TITLES[engine]}, compiled by {compiler}"
        if rows:
            made.append(_each(title, rows) if every else _together(title, rows))
    return made


def _together(title: str, rows: Sequence[Row]) -> Table:
    architectures = list(dict.fromkeys(row["architecture"] for row in rows))
    columns = [f"sm_{architecture}" for architecture in architectures]
    families = {row["template"] for row in rows if row["pass"]}
    table = Table(
        f"{title}: {families.pop()}" if len(families) == 1 else title,
        ("kernel", "dtypes", *columns, "shared", "spilled", "loads", "stores"),
        labels=2,
        note="Under an architecture: registers of a thread, from loss to loss, and the least "
        "occupancy that\nthey leave. Shared memory of a block and spilled registers are in bytes, "
        f"the most of all.\n{_ACCESSES}:\nthe widest, and how many narrower ones there are beside "
        "them, for edges and single numbers.",
    )
    for (kernel, dtypes), alike in sorted(_grouped(rows).items(), key=lambda item: _order(item[0])):
        table.add(
            kernel,
            " ".join(_SHORT[dtype] for dtype in dtypes),
            *(_fit([r for r in alike if r["architecture"] == a]) for a in architectures),
            str(max(row["shared"] for row in alike)),
            _spilled(max(_local_bytes(row) for row in alike)),
            _widest(row["loads"] for row in alike),
            _widest(row["stores"] for row in alike),
        )
    return table


def _each(title: str, rows: Iterable[Row]) -> Table:
    table = Table(
        title,
        ("kernel", "for", "registers", "threads", "blocks", "occupancy", "shared", "spilled",
         "loads", "stores"),
        labels=2,
        note="Registers of a thread, threads of a block, blocks at once on a multiprocessor, bytes "
        f"of shared\nmemory of a block, bytes of spilled registers.\n{_ACCESSES}.",
    )  # fmt: skip
    for row in rows:
        arguments = [row["loss"], *(_SHORT[dtype] for dtype in row["dtypes"]), row["pass"]]
        table.add(
            f"{row['template']}<{', '.join(filter(None, arguments))}>",
            f"sm_{row['architecture']}",
            *(str(row[key]) for key in ("registers", "threads", "blocks")),
            _percent(row["occupancy"]),
            str(row["shared"]),
            _spilled(_local_bytes(row)),
            _widths(row["loads"]),
            _widths(row["stores"]),
        )
    return table


def _grouped(rows: Sequence[Row]) -> dict[tuple[str, tuple[str, ...]], list[Row]]:
    groups: dict[tuple[str, tuple[str, ...]], list[Row]] = {}
    only = len({row["template"] for row in rows if row["pass"]}) == 1  # then it is in the title
    for row in rows:
        kernel = f"{row['template']} {row['pass']}".strip()
        if only and row["pass"]:
            kernel = row["pass"]
        groups.setdefault((kernel, tuple(row["dtypes"])), []).append(row)
    return groups


def _order(group: tuple[str, tuple[str, ...]]) -> tuple[str, int, list[int]]:
    """Sorts by kernel, then single dtypes before mixed ones, then in the usual order of dtypes."""
    kernel, dtypes = group
    order = ["float32", "bfloat16", "float16", "float64", "int64", "int32"]
    return kernel, len(set(dtypes)), [order.index(dtype) for dtype in dtypes]


def _local_bytes(row: Row) -> int:
    """Bytes spilled, or else the bytes that a thread has in local memory for another reason."""
    return max(row["spill_stores"], row["spill_loads"]) or max(row["stack"], row["local"])


def _fit(rows: Sequence[Row]) -> str:
    if not rows:
        return NOTHING
    occupancy = _percent(min(row["occupancy"] for row in rows))
    return f"{_range(row['registers'] for row in rows)} {occupancy:>4}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _range(numbers: Iterable[int]) -> str:
    numbers = sorted(numbers)
    low, high = numbers[0], numbers[-1]
    return str(low) if low == high else f"{low}\N{EN DASH}{high}"


def _spilled(count: int) -> Cell:
    return Cell(str(count), BAD if count else "")


def _widest(accesses: Iterable[dict[str, int]]) -> str:
    """The number and width of the widest accesses, and the number of all others."""
    accesses = list(accesses)
    width = max((int(width) for each in accesses for width in each), default=0)
    if not width:
        return NOTHING
    narrower = [sum(n for w, n in each.items() if int(w) < width) for each in accesses]
    most = f"{_range(each.get(str(width), 0) for each in accesses)}{_TIMES}{width}"
    return f"{most} +{_range(narrower)}" if any(narrower) else most


def _widths(accesses: dict[str, int]) -> str:
    parts = (f"{count}{_TIMES}{width}" for width, count in accesses.items())
    return " ".join(parts) or NOTHING
