"""Part ``measure``: time, bandwidth and memory of every loss compared with the other contenders."""

from __future__ import annotations

import gc
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench.softmax_steps import Rows
from benchmarks.bench.steps import Tensors
from benchmarks.gpu import rows, visits
from benchmarks.gpu.clock import (
    CudaClock,
    Timed,
    WallClock,
    block_times,
    cold_times,
    summary,
)
from benchmarks.gpu.contenders import (
    COMPILE,
    EAGER,
    OURS,
    Contender,
    Found,
    contenders,
    peers,
    row_contenders,
)
from benchmarks.gpu.part import FailedError, OutOfTimeError, Row, SkippedError, Task, main
from benchmarks.gpu.visits import (
    DRY,
    FORWARD,
    GPU,
    GRAPH,
    MEMORY,
    SCALED,
    RowVisit,
    Sizes,
    Visit,
)
from lossops.specs.elementwise import SPECS
from lossops.specs.softmax import ROW_SPECS
from lossops.verify.measure import available_bytes, peak_bytes

COPY, ADD = "copy", "add"  # the yardsticks for the contenders' bandwidth
GRAD_OUTPUT = 0.7310  # grad_output of a scaled step: any value but 1
# Nothing is started with less time left than this, and nothing is compiled in the last third.
LAST_SECONDS, COMPILED_SHARE = 8.0, 1 / 3


@dataclass
class Session:
    """State shared by all visits."""

    task: Task
    sizes: Sizes
    clock: CudaClock | WallClock
    failures: list[str] = field(default_factory=list)  # of our contenders

    @property
    def device(self) -> str:
        return self.task.device


def measure(task: Task) -> None:
    sizes = DRY if task.dry else GPU
    session = Session(task, sizes, WallClock() if task.dry else CudaClock())
    task.emit({"kind": "peers", "peers": peers([s.name for s in SPECS + ROW_SPECS])})
    task.emit({"kind": "settings", "flushed_bytes": session.clock.flushed.numel()} | asdict(sizes))
    wake(session)
    if task.dry:
        torch.set_num_threads(1)  # with so little work, threads would only wait for each other
    gc.disable()  # a garbage collection must not run during a timing
    left_out = []
    for visit in visits.plan(sizes, task.dry):
        if task.left() < LAST_SECONDS:
            left_out.append(str(visit))
            continue
        try:
            run_visit(session, visit)
        except SkippedError as reason:
            task.emit({"kind": "omitted", "visit": str(visit), "reason": str(reason)})
    if left_out:
        task.emit({"kind": "left out", "visits": left_out})
    if session.failures:
        raise FailedError("; ".join(session.failures[:5]))
    if left_out:
        raise OutOfTimeError(f"no time was left for {len(left_out)} measurements")


def wake(session: Session, seconds: float = 0.5) -> None:
    """Keeps the device busy until its clocks have ramped up."""
    until = time.monotonic() + (0 if session.task.dry else seconds)
    while time.monotonic() < until:
        session.clock.cold(lambda: None)


def run_visit(session: Session, visit: Visit | RowVisit) -> None:
    """Emits a row per measurement."""
    print(f"{session.task.left():5.0f} s left, {visit}", flush=True)
    need = visit.held * visit.count * visit.dtype.itemsize
    free = free_bytes(session.device)
    if need > free:
        raise SkippedError(f"up to {need >> 20} MiB may be needed, {free >> 20} MiB are free")
    tensors = visit.tensors(session.device)
    found, absent = _contenders(session, visit, tensors)
    grad_output = torch.tensor(GRAD_OUTPUT, dtype=visit.dtype, device=session.device)
    for what in visit.whats:
        if what == GRAPH and session.device != "cuda":
            raise SkippedError("CUDA graphs need a GPU")
        run = _memory if what == MEMORY else _time
        session.task.emit(run(session, visit, what, found, absent, tensors, grad_output))
    del tensors, found
    if visit.compiled:
        gc.collect()  # frees the compiler's reference cycles; only once, because it is slow
    if session.device == "cuda":
        torch.cuda.empty_cache()


def _contenders(session: Session, visit: Visit | RowVisit, tensors: Tensors | Rows) -> Found:
    in_time = session.task.left() > COMPILED_SHARE * session.task.seconds
    compiled = visit.compiled and in_time
    if isinstance(visit, RowVisit):
        found, absent = row_contenders(visit.case, tensors.options, session.device, compiled)
        absent |= _take_out_wrong(session, visit, tensors, found)
    else:
        found, absent = contenders(visit.spec, session.device, compiled)
    if visit.compiled and not in_time:
        absent[COMPILE] = "no time was left to compile"
    return found, absent


def _take_out_wrong(
    session: Session, visit: RowVisit, tensors: Rows, found: dict[str, Contender]
) -> dict[str, str]:
    """Removes contenders whose result differs from torch's, and returns the reasons. The time of a
    wrong loss is meaningless."""
    reasons = {}
    expected = rows.of_torch(visit.case, tensors)
    for name in [name for name in found if name not in (EAGER, COMPILE)]:
        if reason := rows.wrong(found[name], tensors, expected):
            reasons[name] = reason
            del found[name]
            gc.collect()  # frees what the error references
            if name in OURS:
                session.failures.append(f"{name} {visit}: {reason}")
    return reasons


def free_bytes(device: str) -> int:
    if device != "cuda":
        return available_bytes()
    kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return torch.cuda.mem_get_info()[0] + kept


def timed_call(what: str, contender: Contender, tensors, grad_output: Tensor) -> Timed:
    """The measured call and its context."""
    if not contender.overwrites:
        return Timed(call_of(what, contender, tensors, grad_output), contender.within)
    own = rows.Own(tensors)
    return Timed(call_of(what, contender, own, grad_output), own.fresh)


def call_of(what: str, contender: Contender, tensors, grad_output: Tensor):
    """The measured call. A step starts without a gradient, as after zero_grad()."""
    input, target, loss = tensors.input, tensors.target, contender.loss

    def forward() -> None:
        with torch.no_grad():
            loss(input, target)

    def step() -> None:
        input.grad = None
        loss(input, target).backward()

    def scaled() -> None:
        input.grad = None
        loss(input, target).backward(grad_output)

    return {FORWARD: forward, SCALED: scaled}.get(what, step)


def _prepared(session, what, found, tensors, grad_output) -> tuple[dict[str, Timed], Row]:
    """The warmed-up calls, and the errors of those that cannot run."""
    timed, errors = {}, {}
    for name, contender in found.items():
        if (what == GRAPH and name not in (*OURS, EAGER)) or (what == FORWARD and name == COMPILE):
            continue  # torch.compile has its own graphs, or would need another graph for this alone
        try:
            each = timed_call(what, contender, tensors, grad_output)
            for _ in range(3):
                with each.within():
                    each.call()
            if what == GRAPH:
                with each.within():
                    each = Timed(captured(each.call), each.within)
                    each.call()
            _synchronize(session.device)
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
            if name in OURS:
                session.failures.append(f"{name} {what}: {errors[name]}")
            gc.collect()  # frees what the error references
            _synchronize(session.device)  # if this raises, no further measurements are possible
        else:
            timed[name] = each
    return timed, errors


def captured(step):
    """A CUDA graph of the step, to be replayed."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # capture requires warm-up on another stream
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def yardsticks(what: str, tensors: Tensors | Rows, moved: int) -> dict[str, Timed]:
    """A copy that reads and writes the same number of bytes. For a step with a target of the
    input's size, also the plain sum of two tensors, which reads two and writes one, as the step
    does."""
    half = torch.empty(moved // 2, dtype=torch.int8, device=tensors.target.device)
    other = torch.zeros_like(half)
    found = {COPY: Timed(lambda: half.copy_(other))}
    if what == visits.STEP and tensors.target.shape == tensors.input.shape:
        sum = torch.empty_like(tensors.target)
        input, target = tensors.input.detach(), tensors.target
        found[ADD] = Timed(lambda: torch.add(input, target, out=sum))
    for timed in found.values():
        timed.call()
    return found


def _time(session, visit: Visit | RowVisit, what, found, absent, tensors, grad_output) -> Row:
    moved = visit.passes(what) * tensors.bytes
    timed, errors = _prepared(session, what, found, tensors, grad_output)
    ours_and_others = list(timed)
    if what != GRAPH:
        timed |= yardsticks(what, tensors, moved)
    if visit.short:
        sizes = session.sizes
        times = block_times(timed, sizes.blocks, session.clock, sizes.block_ms)
    else:
        times = cold_times(timed, session.sizes.rounds, session.clock)
    tensors.input.grad = None
    numbers = {name: summary(values) for name, values in times.items()}
    for row in numbers.values():
        row["gb_per_s"] = float(f"{moved / row['ms'] / 1e6:.5g}")
    copy = numbers.get(COPY)
    for name in ours_and_others:
        if copy:
            numbers[name]["of_copy"] = float(f"{copy['ms'] / numbers[name]['ms']:.5g}")
    return _row(visit, what, absent, errors) | {
        "bytes": moved,
        "cold": not visit.short,
        "timings": len(next(iter(times.values()), [])),
        "contenders": {name: numbers[name] for name in ours_and_others},
        "yardsticks": {name: numbers[name] for name in (COPY, ADD) if name in numbers},
    }


def _memory(session, visit: Visit, what, found, absent, tensors, grad_output) -> Row:
    """Peak memory of a step beyond its inputs, in multiples of the input's size."""
    kept = {name: each for name, each in found.items() if name != COMPILE}
    timed, errors = _prepared(session, what, kept, tensors, grad_output)
    peaks: dict[str, Any] = {}
    for name, each in timed.items():
        tensors.input.grad = None
        with each.within():
            peaks[name] = float(f"{peak_bytes(each.call, session.device) / tensors.bytes:.5g}")
    tensors.input.grad = None
    return _row(visit, what, absent, errors) | {"kind": "memory", "gradients": peaks}


def _row(visit: Visit | RowVisit, what: str, absent: dict, errors: dict) -> Row:
    row = {"kind": visit.kind, "what": what} | visit.facts
    return row | {"absent": absent, "errors": errors}


if __name__ == "__main__":
    sys.exit(main(measure))
