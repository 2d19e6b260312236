"""The worker process of the benchmarks, with its own memory allocator settings.

Reads a task as JSON from standard input and writes one JSON object per line for each result.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.bench.steps import LOSSOPS, Tensors, contenders
from lossops.specs.elementwise import Spec, spec
from lossops.verify.accuracy import DTYPES
from lossops.verify.families import measure
from lossops.verify.measure import (
    available_bytes,
    clock_for,
    interleaved,
    interleaved_blocks,
    keep_memory_warm,
    one_thread,
    peak_bytes,
)

Row = dict[str, Any]


def run(task: dict[str, Any]) -> Iterator[Row]:
    """Yields the results of a task as they become available."""
    if task["warm"]:
        largest = 4 * max(task["count"], task["half_count"] if task["half"] else 0)
        pool = min(14 * largest, available_bytes() // 2)
        if not keep_memory_warm(pool):
            yield {"kind": "note", "text": "memory cannot be kept warm with this C library"}
            return
    specs = [spec(name) for name in task["losses"]]
    for kind in ("step", "half", "tiny", "memory", "accuracy"):
        for row in specs if task[kind] else ():
            yield from _MEASURES[kind](row, task)


def _step(row: Spec, task: dict[str, Any]) -> Iterator[Row]:
    """All contenders: float32, mean, forward and backward."""
    tensors = Tensors(row, task["count"], torch.float32, task["device"])
    clock = clock_for(task["device"], task["warm"], tensors.bytes)
    steps = contenders(row, tensors, task["compile"])
    times = interleaved(steps, task["rounds"], clock)
    yield _row("step", row, task, ms=times, repeated=clock.repeated)


def _half(row: Spec, task: dict[str, Any]) -> Iterator[Row]:
    """bfloat16 compared with float32, for the same number of elements."""
    steps = {}
    for dtype in (torch.float32, torch.bfloat16):
        tensors = Tensors(row, task["half_count"], dtype, task["device"])
        steps[str(dtype).removeprefix("torch.")] = tensors.train(row.function, **row.defaults)
    clock = clock_for(task["device"], task["warm"], tensors.bytes)
    times = interleaved(steps, task["rounds"], clock)
    yield _row("half", row, task, ms=times, count=task["half_count"])


def _tiny(row: Spec, task: dict[str, Any]) -> Iterator[Row]:
    """The overhead of a call: the time with almost nothing to compute."""
    tensors = Tensors(row, 16, torch.float32, task["device"])
    steps = {name: s for name, s in contenders(row, tensors, False).items() if name != "floor"}
    clock = clock_for(task["device"], False, tensors.bytes)
    times = interleaved_blocks(steps, 5 * task["rounds"], 4, clock)
    yield _row("tiny", row, task, us=times, count=16)


def _memory(row: Spec, task: dict[str, Any]) -> Iterator[Row]:
    """Peak memory that a step allocates, in multiples of a gradient's size."""
    tensors = Tensors(row, 1 << 20, torch.float32, task["device"])
    for reduction in ("mean", "sum"):
        peaks = {}
        for name, loss in ((LOSSOPS, row.function), ("eager", row.written_in_torch())):
            step = tensors.train(loss, reduction=reduction, **row.defaults)
            step()
            tensors.input.grad = None
            peaks[name] = peak_bytes(step, task["device"]) / tensors.bytes
        yield _row("memory", row, task, gradients=peaks, reduction=reduction, count=1 << 20)


def _accuracy(row: Spec, task: dict[str, Any]) -> Iterator[Row]:
    for dtype in DTYPES:
        count = task["values"] // 10 if dtype == torch.float64 else task["values"]
        with one_thread():
            found = measure(row, dtype, count, device=task["device"])
        errors = {name: e and asdict(e) for name, e in found.items()}
        name = str(dtype).removeprefix("torch.")
        own = row.torch_function is not None
        yield _row("accuracy", row, task, **errors, torchs_own=own, dtype=name, count=count)


def _row(kind: str, row: Spec, task: dict[str, Any], **found: Any) -> Row:
    shared = {
        "kind": kind,
        "loss": row.name,
        "device": task["device"],
        "count": task["count"],
        "memory": "warm" if task["warm"] else "default",
    }
    return shared | found


_MEASURES = {
    "step": _step,
    "half": _half,
    "tiny": _tiny,
    "memory": _memory,
    "accuracy": _accuracy,
}


if __name__ == "__main__":
    for result in run(json.load(sys.stdin)):
        print(json.dumps(result), flush=True)
