"""Speed and memory of the losses over rows of vectors, compared with torch.

Run as a module, it is the worker process: it reads a task as JSON from standard input and writes
one JSON object per line for each result.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from benchmarks.bench.elementwise import _in_process
from benchmarks.bench.steps import COMPILE, EAGER, FLOOR, LOSSOPS, TRITON, _on_triton
from benchmarks.bench.tables import _ratio, calls
from benchmarks.bench.targets import Target, ratio
from lossops.core import backends
from lossops.specs.vectors import VECTOR_SPECS, VectorSpec, vector_spec
from lossops.verify.machine import devices
from lossops.verify.measure import (
    Step,
    available_bytes,
    clock_for,
    interleaved,
    interleaved_blocks,
    keep_memory_warm,
    one_thread,
    peak_bytes,
)
from lossops.verify.tables import Table, number

Row = dict[str, Any]
PARTS = ("step", "tiny", "memory")
SHAPE, TINY = (16_384, 1024), (16, 10)
_POOL = 1 << 30  # bytes of memory that are kept warm

TARGETS = (
    Target("losses over vectors faster than torch eager", "vectors_step",
           ratio("ms", EAGER, LOSSOPS), at_least=2.0),
    Target("losses over vectors faster than torch.compile", "vectors_step",
           ratio("ms", COMPILE, LOSSOPS), at_least=1.0),
    Target("losses over vectors, 16 rows of 10, over torch's own time", "vectors_tiny",
           ratio("us", LOSSOPS, EAGER), at_most=1.25,
           reason="The checks of a call are in Python."),
    Target("losses over vectors: peak memory of a step beyond its inputs, in gradients",
           "vectors_memory", lambda row: row["gradients"][LOSSOPS], at_most=1.01,
           devices=("cpu", "cuda")),
)  # fmt: skip


def bench(
    wanted: Iterable[VectorSpec] = VECTOR_SPECS,
    advance: Callable[[str], None] = lambda what: None,
    quick: bool = False,
    parts: Iterable[str] = PARTS,
) -> list[Row]:
    """Measures the losses. All contenders for a loss run in one process. Returns one row per
    result."""
    losses, rows = [spec.name for spec in wanted], []
    chosen = [part for part in PARTS if part in set(parts)]
    if losses and chosen:
        for device in devices():
            task = {
                "losses": losses, "parts": chosen, "device": device, "quick": quick,
                "rounds": 3 if quick else 9,
            }  # fmt: skip
            for row in _in_process(task, "benchmarks.bench.vectors"):
                rows.append(row)
                advance(f"{row['kind'].removeprefix('vectors_')} {row['loss']} {row['case']}")
    return rows


def pieces(wanted: Iterable[VectorSpec], parts: Iterable[str] = PARTS) -> int:
    """How many times ``bench`` calls ``advance``."""
    return len(devices()) * len(list(wanted)) * len(set(PARTS) & set(parts))


class Steps:
    """The steps over vectors of one shape, in float32."""

    def __init__(self, spec: VectorSpec, shape: tuple[int, int], device: str):
        vectors, self.given = spec.tensors(shape, torch.float32, device=device)
        self.spec, self.vectors = spec, [v.requires_grad_() for v in vectors]
        self.bytes = sum(v.nbytes for v in vectors)

    def train(self, loss: Callable[..., torch.Tensor]) -> Step:
        options = self.spec.samples[0]

        def step() -> None:
            for v in self.vectors:
                v.grad = None
            loss(*self.vectors, *self.given, **options).backward()

        return step

    def floor(self) -> None:
        """Moves as many bytes as a fused step that reads only the vectors."""
        with torch.no_grad():
            for v in self.vectors:
                v.grad = None
                v.grad = torch.mul(v, 2)

    def contenders(self, compiled: bool) -> dict[str, Step]:
        in_torch = self.spec.torch_function
        steps = {
            FLOOR: self.floor,
            LOSSOPS: self.train(self.spec.function),
            EAGER: self.train(in_torch),
        }
        if "triton" in backends.backends_for(self.vectors[0].device.type):
            steps[TRITON] = _on_triton(steps[LOSSOPS])
        if compiled and self.spec.compiles:
            torch.compiler.reset()
            steps[COMPILE] = self.train(torch.compile(in_torch, dynamic=False))
        return steps


def run(task: dict[str, Any]) -> Iterator[Row]:
    """Yields the results of a task as they become available."""
    device = task["device"]
    warm = device == "cpu" and keep_memory_warm(min(_POOL, available_bytes() // 2))
    shape = (64, 256) if task["quick"] else SHAPE
    for part in task["parts"]:
        for name in task["losses"]:
            spec = vector_spec(name)
            size = TINY if part == "tiny" else shape
            row = {
                "kind": f"vectors_{part}", "loss": name, "case": " × ".join(map(str, size)),
                "device": device, "memory": "warm" if warm else "default",
            }  # fmt: skip
            yield row | _MEASURES[part](Steps(spec, size, device), task["rounds"], warm)


def _step(steps: Steps, rounds: int, warm: bool) -> Row:
    clock = clock_for(steps.vectors[0].device.type, warm, steps.bytes)
    return {"ms": interleaved(steps.contenders(True), rounds, clock)}


def _tiny(steps: Steps, rounds: int, warm: bool) -> Row:
    contenders = {name: step for name, step in steps.contenders(False).items() if name != FLOOR}
    clock = clock_for(steps.vectors[0].device.type, False, steps.bytes)
    with one_thread():
        return {"us": interleaved_blocks(contenders, 2 * rounds, 4, clock)}


def _memory(steps: Steps, rounds: int, warm: bool) -> Row:
    peaks = {}
    for name, loss in ((LOSSOPS, steps.spec.function), (EAGER, steps.spec.torch_function)):
        step = steps.train(loss)
        step()
        for v in steps.vectors:
            v.grad = None
        peaks[name] = peak_bytes(step, steps.vectors[0].device.type) / steps.bytes
    return {"gradients": peaks}


_MEASURES = {"step": _step, "tiny": _tiny, "memory": _memory}


def tables(rows: Iterable[Row]) -> list[Table]:
    """Tables of all measurements."""
    rows, made = [row for row in rows if row["kind"].startswith("vectors_")], []
    for device in dict.fromkeys(row["device"] for row in rows):
        for kind, table in (("step", _steps), ("tiny", _tinies), ("memory", _memories)):
            chosen = [r for r in rows if r["device"] == device and r["kind"] == f"vectors_{kind}"]
            if chosen:
                made.append(table(chosen, device))
    return made


def _steps(rows: list[Row], device: str) -> Table:
    where = "memory kept warm" if device == "cpu" else "L2 cache flushed"
    names = [name for name in (FLOOR, LOSSOPS, TRITON, EAGER, COMPILE) if name in rows[0]["ms"]]
    table = Table(
        f"Training step over rows of vectors on {device}: float32, mean, {where}",
        ("loss", "rows", *(f"{name}, ms" for name in names), "over floor", "eager / lossops",
         "compile / lossops"),
        labels=2,
        note="Forward and backward; medians of interleaved rounds. The floor: torch.mul(x, 2) of "
        "each vector that wants a gradient. Eager: torch's function, or what its users write.",
    )  # fmt: skip
    for row in rows:
        ms = row["ms"]
        table.add(
            row["loss"], row["case"], *(number(ms.get(name), 1) for name in names),
            number(_ratio(ms, LOSSOPS, FLOOR)), number(_ratio(ms, EAGER, LOSSOPS)),
            number(_ratio(ms, COMPILE, LOSSOPS)),
        )  # fmt: skip
    return table


def _tinies(rows: list[Row], device: str) -> Table:
    return calls(f"A step over 16 rows of vectors of 10 on {device}: what a call costs", rows)


def _memories(rows: list[Row], device: str) -> Table:
    table = Table(
        f"Peak memory of a step over rows of vectors on {device}, beyond its inputs, in gradients",
        ("loss", "rows", "lossops", "torch eager"),
        labels=2,
    )
    for row in rows:
        held = row["gradients"]
        table.add(row["loss"], row["case"], number(held[LOSSOPS]), number(held[EAGER]))
    return table


if __name__ == "__main__":
    for result in run(json.load(sys.stdin)):
        print(json.dumps(result), flush=True)
