"""What is measured of each family of losses, and the processes that measure it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.bench import cases, targets
from benchmarks.bench import tables as bench_tables
from lossops.specs.softmax import ROW_SPECS, Sample, row_spec
from lossops.verify import accuracy
from lossops.verify.machine import devices
from lossops.verify.tables import Table

Row = dict[str, Any]
Work = tuple[str, cases.Case, dict[str, Any]]  # the part, the case, and options of the call
PARTS = ("step", "half", "tiny", "memory", "accuracy")
TINY = (16, 10)


@dataclass(frozen=True)
class Family:
    """A family of losses."""

    # The cases of a part for these losses, small if quick, and the options of their calls.
    make: Callable[[str, list[str], bool], Iterable[tuple[cases.Case, dict[str, Any]]]]
    warm: tuple[bool, ...] = (True,)  # whether memory is kept warm, for each process on the CPU

    def work(self, losses: list[str], parts: Iterable[str], quick: bool) -> list[Work]:
        """All that is measured, one result each."""
        return [(part, *case) for part in parts for case in self.make(part, losses, quick)]

    def tasks(self, losses: list[str], parts: Iterable[str], quick: bool) -> Iterator[dict]:
        """The tasks of the worker processes."""
        for device in devices():
            for warm in self.warm if device == "cpu" else (False,):
                # What is not timed, or fits into the cache, is not measured again.
                again = warm and False in self.warm
                here = [p for p in parts if not again or p in ("step", "half")]
                if self.work(losses, here, quick):
                    yield {
                        "losses": losses, "parts": here, "device": device, "warm": warm,
                        "quick": quick,
                    }  # fmt: skip


def _elements(part: str, losses: list[str], quick: bool) -> Iterator[tuple[cases.Case, dict]]:
    count = {"step": 1 << (18 if quick else 25), "half": 1 << (19 if quick else 26), "tiny": 16,
             "memory": 1 << 20, "accuracy": 20_000 if quick else 10_000_000}[part]  # fmt: skip
    for loss in losses:
        if part == "memory":
            for reduction in ("mean", "sum"):
                yield cases.Elements(loss, (count,)), {"reduction": reduction}
        elif part == "accuracy":
            for dtype in map(cases.name_of, accuracy.DTYPES):
                few = dtype == "float64"  # whose truth is computed in numpy's longdouble
                yield cases.Elements(loss, (count // 10 if few else count,)), {"dtype": dtype}
        else:
            yield cases.Elements(loss, (count,)), {}


def row_cases(losses: list[str]) -> list[cases.Rows]:
    """The cases that have goals, followed by one case for every other loss."""
    found = [
        cases.Rows("cross_entropy"),
        cases.Rows("cross_entropy", cases.WIDE),
        cases.Rows("cross_entropy", cases.LANGUAGE),
        cases.Rows("cross_entropy", cases.PICTURES),
        cases.Rows("kl_divergence", sample=Sample(target="logits")),
        cases.Rows("js_divergence", sample=Sample(target="logits")),
        cases.Rows("cross_entropy", sample=Sample({"label_smoothing": 0.1})),
        cases.Rows("cross_entropy", sample=Sample(target="probs")),
    ]
    have = {case.loss for case in found}
    found += [
        cases.Rows(row.name, sample=row.samples[0]) for row in ROW_SPECS if row.name not in have
    ]
    found.append(cases.Rows("l1_distribution_loss"))
    return [case for case in found if case.loss in losses]


def _small(case: cases.Rows) -> cases.Rows:
    _, classes, *picture = case.shape
    shape = (4, classes, 16, 16) if picture else (4, classes // 8)
    return cases.Rows(case.loss, shape, case.sample)


def _rows(part: str, losses: list[str], quick: bool) -> Iterator[tuple[cases.Case, dict]]:
    if part == "step":
        yield from ((_small(case) if quick else case, {}) for case in row_cases(losses))
        return
    shape = {"tiny": TINY, "memory": (64, 2048) if quick else cases.VOCABULARY}.get(
        part, cases.VOCABULARY
    )
    for loss in losses:
        case = cases.Rows(loss, shape, row_spec(loss).samples[0])  # the simplest arguments
        if part in ("tiny", "memory"):
            yield case, {}
        if part == "memory" and loss == "cross_entropy":
            yield case, {"inplace": True}
        if part == "half" and loss in ("cross_entropy", "kl_divergence"):
            yield _small(case) if quick else case, {}


def _vectors(part: str, losses: list[str], quick: bool) -> Iterator[tuple[cases.Case, dict]]:
    shape = (64, 256) if quick else (16_384, 1024)
    if part in ("step", "tiny", "memory"):
        yield from ((cases.Vectors(loss, TINY if part == "tiny" else shape), {}) for loss in losses)


def _others(part: str, losses: list[str], quick: bool) -> Iterator[tuple[cases.Case, dict]]:
    if part == "tiny":
        yield from ((cases.WithoutKernels(loss, TINY), {}) for loss in losses)
    if part in ("step", "memory") and cases.LINEAR in losses:
        yield cases.Linear(shape=(2048, 16, 500)) if quick else cases.Linear(), {}


FAMILIES = {
    "elementwise": Family(_elements, warm=(False, True)),
    "softmax": Family(_rows),
    "vectors": Family(_vectors),
    "others": Family(_others, warm=(False,)),
}
Wanted = Sequence[Sequence[Any]]  # the specs of some losses, for each family


def tasks(wanted: Wanted, quick: bool, parts: Iterable[str]) -> Iterator[dict[str, Any]]:
    parts = [part for part in PARTS if part in parts]
    for (name, family), specs in zip(FAMILIES.items(), wanted, strict=True):
        for task in family.tasks([spec.name for spec in specs], parts, quick):
            yield task | {"family": name}


def pieces(wanted: Wanted, parts: Iterable[str] = PARTS) -> int:
    """How many times ``bench`` calls ``advance``."""
    return sum(
        len(FAMILIES[task["family"]].work(task["losses"], task["parts"], True))
        for task in tasks(wanted, True, parts)
    )


def bench(
    wanted: Wanted,
    advance: Callable[[str], None] = lambda what: None,
    quick: bool = False,
    parts: Iterable[str] = PARTS,
) -> dict[str, list[Row]]:
    """Measures the losses. All contenders for a loss run in one process. Returns one row per
    result as ``bench``, and the outcomes of the ``targets``."""
    rows: list[Row] = []
    for task in tasks(wanted, quick, parts):
        for row in in_process(task):
            rows.append(row)
            what = row.get("case") or row.get("dtype") or row.get("reduction") or row["memory"]
            advance(f"{row['kind'].rpartition('_')[2]} {row['loss']} {what}")
    return {"bench": rows, "targets": targets.outcomes(rows, quick)}


def tables(found: dict[str, list[Row]]) -> list[Table]:
    """The goals, and all measurements."""
    return [bench_tables.goals(found["targets"]), *bench_tables.tables(found["bench"])]


def in_process(task: dict[str, Any]) -> Iterator[Row]:
    """The results of a task, measured by a process of its own."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        process.stdin.write(json.dumps(task))
        process.stdin.close()
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
            status = process.wait()
        finally:
            process.kill()
        if status:
            errors.seek(0)
            raise RuntimeError(
                f"a measurement ended with status {status}:\n{errors.read()[-2000:]}"
            )
