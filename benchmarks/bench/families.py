"""The benchmarks of all loss families, combined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.bench import elementwise as bench
from benchmarks.bench import others as others_bench
from benchmarks.bench import softmax as softmax_bench
from benchmarks.bench import softmax_tables, softmax_targets, targets
from benchmarks.bench import tables as bench_tables
from benchmarks.bench import vectors as vectors_bench
from lossops.verify.tables import Table

_FAMILIES = (bench, softmax_bench, vectors_bench, others_bench)
Families = Sequence[Sequence[Any]]


def pieces(families: Families, parts: Iterable[str] = bench.PARTS) -> int:
    """How many times ``bench`` calls ``advance``."""
    return sum(
        module.pieces(family, [part for part in parts if part in module.PARTS])
        for module, family in zip(_FAMILIES, families, strict=True)
    )


def bench_families(
    families: Families,
    advance: Callable[[str], None],
    quick: bool = False,
    parts: Iterable[str] = bench.PARTS,
) -> dict[str, Any]:
    """The rows of all results as ``bench``, and the outcomes of the ``targets``."""
    rows = []
    for module, family in zip(_FAMILIES, families, strict=True):
        if family:
            rows += module.bench(family, advance, quick, parts)
    among = (*softmax_targets.ALL, *vectors_bench.TARGETS, *others_bench.TARGETS)
    found = targets.outcomes(rows, quick, among)
    return {"bench": rows, "targets": found}


def tables(found: dict[str, Any]) -> list[Table]:
    """Tables of all measurements."""
    rows = found["bench"]
    return [
        *bench_tables.tables(rows, found["targets"]),
        *softmax_tables.tables(rows),
        *vectors_bench.tables(rows),
        *others_bench.tables(rows),
    ]
