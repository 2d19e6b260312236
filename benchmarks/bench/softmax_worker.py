"""The worker process that measures the losses over rows, like benchmarks.bench.worker. Reads a task
as JSON from standard input and writes one JSON object per line for each result."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.bench.softmax_steps import (
    TINY,
    VOCABULARY,
    Case,
    ModelOutput,
    Rows,
    cases,
    contenders,
)
from benchmarks.bench.steps import LOSSOPS
from lossops.specs.softmax import Sample, row_spec
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
_POOL = 1 << 30  # bytes of memory that are kept warm


def run(task: dict[str, Any]) -> Iterator[Row]:
    """Yields the results of a task as they become available."""
    warm = task["device"] == "cpu" and keep_memory_warm(min(_POOL, available_bytes() // 2))
    memory = "warm" if warm else "default"
    for part, measure in _MEASURES.items():
        if task[part]:
            for row in measure(task, warm):
                yield {"device": task["device"], "memory": memory} | row


def _sized(case: Case, task: dict[str, Any]) -> Case:
    return case.quick() if task["quick"] else case


def _step(task: dict[str, Any], warm: bool) -> Iterator[Row]:
    """All contenders: float32, mean, forward and backward."""
    for case in (_sized(case, task) for case in cases(task["losses"])):
        rows = Rows(case, torch.float32, task["device"])
        clock = clock_for(task["device"], warm, rows.bytes)
        steps = contenders(case, rows, task["compile"])
        times = interleaved(steps, task["rounds"], clock)
        yield _row("rows_step", case, ms=times, repeated=clock.repeated)


def _half(task: dict[str, Any], warm: bool) -> Iterator[Row]:
    """bfloat16 compared with float32, for the same number of scores."""
    for case in (Case("cross_entropy"), Case("kl_divergence", sample=_pair("kl_divergence"))):
        if case.loss in task["losses"]:
            case = _sized(case, task)
            steps = {}
            for dtype in (torch.float32, torch.bfloat16):
                rows = Rows(case, dtype, task["device"])
                steps[str(dtype).removeprefix("torch.")] = rows.train(case.spec.call(case.sample))
            clock = clock_for(task["device"], warm, rows.bytes)
            yield _row("rows_half", case, ms=interleaved(steps, task["rounds"], clock))


def _tiny(task: dict[str, Any], warm: bool) -> Iterator[Row]:
    """The overhead of a call: the time with almost nothing to compute."""
    for name in task["losses"]:
        case = Case(name, TINY, _pair(name))
        rows = Rows(case, torch.float32, task["device"])
        steps = {n: s for n, s in contenders(case, rows, False).items() if n != "floor"}
        clock = clock_for(task["device"], False, rows.bytes)
        with one_thread():
            times = interleaved_blocks(steps, 2 * task["rounds"], 4, clock)
        yield _row("rows_tiny", case, us=times)


def _memory(task: dict[str, Any], warm: bool) -> Iterator[Row]:
    """Peak memory of a step beyond scores and target, as a multiple of the scores' size."""
    for name in task["losses"]:
        for inplace in (False, True) if name == "cross_entropy" else (False,):
            case = Case(name, (64, 2048) if task["quick"] else VOCABULARY, _pair(name))
            peaks = {LOSSOPS: _peak(case, task["device"], case.spec.call(case.sample), inplace)}
            if not inplace:
                in_torch = case.spec.torch_call(case.sample)
                peaks["eager"] = _peak(case, task["device"], in_torch, False)
            yield _row("rows_memory", case, gradients=peaks, inplace=inplace)


def _peak(case: Case, device: str, loss, inplace: bool) -> float:
    rows = Rows(case, torch.float32, device)
    if inplace:
        loss = functools.partial(loss, inplace=True)

    def step(scores) -> None:
        loss(scores, rows.target, **rows.options).backward()

    step(ModelOutput.apply(rows.input))
    scores = ModelOutput.apply(rows.input)
    return peak_bytes(lambda: step(scores), device) / rows.bytes


def _pair(name: str) -> Sample:
    """The simplest arguments of a loss."""
    return row_spec(name).samples[0]


def _row(kind: str, case: Case, **found: Any) -> Row:
    return {"kind": kind, "loss": case.loss, "case": case.words(), "shape": case.shape} | found


_MEASURES = {"step": _step, "half": _half, "tiny": _tiny, "memory": _memory}


if __name__ == "__main__":
    for result in run(json.load(sys.stdin)):
        print(json.dumps(result), flush=True)
