"""The worker process of the benchmarks, with its own memory allocator settings.

Reads a task as JSON from standard input and writes one JSON object per line for each result.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.bench.cases import LOSSOPS, Case, Linear, name_of
from benchmarks.bench.families import FAMILIES, Row
from lossops.specs.elementwise import spec
from lossops.verify.families import measure
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

Options = dict[str, Any]  # of a call
_TENSORS = 14  # as large as the largest of a family, for which memory is kept warm


@dataclass(frozen=True)
class Setting:
    """What is the same for all measurements of a process."""

    device: str
    warm: bool
    compiled: bool
    quick: bool

    def rounds(self, case: Case) -> int:
        return 3 if self.quick else case.rounds


def run(task: dict[str, Any]) -> Iterator[Row]:
    """Yields the results of a task as they become available."""
    family, device, warm = FAMILIES[task["family"]], task["device"], task["warm"]
    work = family.work(task["losses"], task["parts"], task["quick"])
    if warm:
        largest = 4 * max(case.count for _, case, _ in work)
        warm = keep_memory_warm(min(_TENSORS * largest, available_bytes() // 2))
        if not warm and False in family.warm:
            return  # measured by another process
    setting = Setting(device, warm, task.get("compile", True), task["quick"])
    for part, case, options in work:
        row = {"kind": f"{case.prefix}{part}", "loss": case.loss, "device": device}
        row |= {"memory": "warm" if warm else "default"} | case.facts | options
        yield row | _MEASURES[part](case, options, setting)


def _step(case: Case, options: Options, setting: Setting) -> Row:
    """All contenders: float32, mean, forward and backward."""
    problem = case.problem(torch.float32, setting.device)
    clock = clock_for(setting.device, setting.warm, problem.bytes)
    steps = case.steps(problem, setting.compiled)
    return {"ms": interleaved(steps, setting.rounds(case), clock), "repeated": clock.repeated}


def _half(case: Case, options: Options, setting: Setting) -> Row:
    """bfloat16 compared with float32, for the same number of elements."""
    steps = {}
    for dtype in (torch.float32, torch.bfloat16):
        problem = case.problem(dtype, setting.device)
        steps[name_of(dtype)] = problem.train(case.ours)
    clock = clock_for(setting.device, setting.warm, problem.bytes)
    return {"ms": interleaved(steps, setting.rounds(case), clock)}


def _tiny(case: Case, options: Options, setting: Setting) -> Row:
    """The overhead of a call: the time with almost nothing to compute."""
    problem = case.problem(torch.float32, setting.device)
    steps = case.steps(problem, compiled=False)
    del steps[case.floor]
    clock = clock_for(setting.device, False, problem.bytes)
    with one_thread():
        return {"us": interleaved_blocks(steps, 5 * setting.rounds(case), 4, clock)}


def _memory(case: Case, options: Options, setting: Setting) -> Row:
    """Peak memory that a step allocates, relative to what it cannot do without."""
    problem = case.problem(torch.float32, setting.device)
    inplace = options.get("inplace", False)

    def step(loss) -> Step:
        return (problem.of_model() if inplace else problem).train(loss, **options)

    peaks = {}
    for name, loss in case.losses(setting.compiled and isinstance(case, Linear)).items():
        if inplace and name != LOSSOPS:
            continue  # torch has nothing like it
        step(loss)()  # compiles
        problem.forget()
        peaks[name] = peak_bytes(step(loss), setting.device)
    return case.held(peaks, problem)


def _accuracy(case: Case, options: Options, setting: Setting) -> Row:
    row, dtype = spec(case.loss), getattr(torch, options["dtype"])
    with one_thread():
        found = measure(row, dtype, case.count, device=setting.device)
    errors = {name: each and asdict(each) for name, each in found.items()}
    return errors | {"torchs_own": row.torch_function is not None}


_MEASURES = {"step": _step, "half": _half, "tiny": _tiny, "memory": _memory, "accuracy": _accuracy}


if __name__ == "__main__":
    for result in run(json.load(sys.stdin)):
        print(json.dumps(result), flush=True)
