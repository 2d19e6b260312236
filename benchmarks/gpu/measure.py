"""Part ``measure``: time, bandwidth and memory of every loss compared with the other contenders."""

from __future__ import annotations

import gc
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench.cases import COMPILE, EAGER, Loss, Problem
from benchmarks.gpu import checks, visits
from benchmarks.gpu import clock as clocks
from benchmarks.gpu.contenders import OURS, Contender, contenders, peers
from benchmarks.gpu.part import FailedError, OutOfTimeError, Row, SkippedError, Task, main
from benchmarks.gpu.visits import DRY, FORWARD, GPU, GRAPH, MEMORY, SCALED, STEP, Sizes, Visit
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
    clock: clocks.CudaClock
    failures: list[str] = field(default_factory=list)  # of our contenders

    @property
    def device(self) -> str:
        return self.task.device


def measure(task: Task) -> None:
    sizes = DRY if task.dry else GPU
    session = Session(task, sizes, clocks.WallClock() if task.dry else clocks.CudaClock())
    task.emit({"kind": "peers", "peers": peers([s.name for s in SPECS + ROW_SPECS])})
    task.emit({"kind": "settings", "flushed_bytes": session.clock.flushed.numel()} | asdict(sizes))
    until = time.monotonic() + 0.5
    while not task.dry and time.monotonic() < until:
        session.clock.cold(lambda: None)  # keeps the device busy until its clocks have ramped up
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


class Visited:
    """A visit with its tensors and contenders."""

    def __init__(self, session: Session, visit: Visit):
        self.session, self.visit = session, visit
        self.problem = visit.case.problem(visit.dtype, session.device)
        self.grad_output = torch.tensor(GRAD_OUTPUT, dtype=visit.dtype, device=session.device)
        in_time = session.task.left() > COMPILED_SHARE * session.task.seconds
        self.found, self.absent = contenders(visit.case, session.device, visit.compiled and in_time)
        if visit.checked:
            self.absent |= self._take_out_wrong()
        if visit.compiled and not in_time:
            self.absent[COMPILE] = "no time was left to compile"

    def _take_out_wrong(self) -> dict[str, str]:
        """Removes contenders whose result differs from torch's, and returns the reasons. The time
        of a wrong loss is meaningless."""
        reasons = {}
        expected = checks.of_torch(self.visit.case, self.problem)
        for name in [name for name in self.found if name not in (EAGER, COMPILE)]:
            if reason := checks.wrong(self.found[name], self.problem, expected):
                reasons[name] = reason
                del self.found[name]
                gc.collect()  # frees what the error references
                if name in OURS:
                    self.session.failures.append(f"{name} {self.visit}: {reason}")
        return reasons

    def measure(self, what: str) -> Row:
        row = {"kind": f"{self.visit.case.prefix}time", "what": what} | self.visit.facts
        row["device"] = self.session.device
        timed, errors = self.prepared(what)
        row |= {"absent": self.absent, "errors": errors}
        row |= self.memory(timed) if what == MEMORY else self.times(what, timed)
        self.problem.forget()
        return row

    def prepared(self, what: str) -> tuple[dict[str, clocks.Timed], dict[str, str]]:
        """The warmed-up calls, and the errors of those that cannot run."""
        timed, errors = {}, {}
        for name, contender in self.found.items():
            # torch.compile has its own graphs, and would need another for a forward alone.
            if name == COMPILE and what in (FORWARD, MEMORY):
                continue
            if what == GRAPH and name not in (*OURS, EAGER):
                continue
            try:
                timed[name] = self._warmed_up(what, contender)
            except Exception as error:
                errors[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
                if name in OURS:
                    self.session.failures.append(f"{name} {what}: {errors[name]}")
                gc.collect()  # frees what the error references
                _synchronize(self.session.device)  # if this raises, nothing more can be measured
        return timed, errors

    def _warmed_up(self, what: str, contender: Contender) -> clocks.Timed:
        each = timed_call(what, contender, self.problem, self.grad_output)
        for _ in range(3):
            with each.within():
                each.call()
        if what == GRAPH:
            with each.within():
                each = clocks.Timed(captured(each.call), each.within)
                each.call()
        _synchronize(self.session.device)
        return each

    def times(self, what: str, timed: dict[str, clocks.Timed]) -> Row:
        session, visit = self.session, self.visit
        moved = visit.passes(what) * self.problem.bytes
        yards = {} if what == GRAPH else yardsticks(what, self.problem, moved)
        if visit.short:
            sizes = session.sizes
            times = clocks.block_times(timed | yards, sizes.blocks, session.clock, sizes.block_ms)
        else:
            # These take longer on the device than their launches.
            times = clocks.interleaved(timed | yards, session.sizes.rounds, session.clock.cold)
        numbers = {name: clocks.summary(values) for name, values in times.items()}
        for row in numbers.values():
            row["gb_per_s"] = float(f"{moved / row['ms'] / 1e6:.5g}")
        for name in timed if COPY in numbers else ():
            share = numbers[COPY]["ms"] / numbers[name]["ms"]
            numbers[name]["of_copy"] = float(f"{share:.5g}")
        return {
            "bytes": moved,
            "cold": not visit.short,
            "timings": len(next(iter(times.values()), [])),
            "contenders": {name: numbers[name] for name in timed},
            "yardsticks": {name: numbers[name] for name in yards},
        }

    def memory(self, timed: dict[str, clocks.Timed]) -> Row:
        """Peak memory of a step beyond its inputs, in multiples of the input's size."""
        peaks: dict[str, Any] = {}
        for name, each in timed.items():
            self.problem.forget()
            with each.within():
                peak = peak_bytes(each.call, self.session.device)
            peaks[name] = float(f"{peak / self.problem.bytes:.5g}")
        return {"kind": "memory", "gradients": peaks}


def run_visit(session: Session, visit: Visit) -> None:
    """Emits a row per measurement."""
    print(f"{session.task.left():5.0f} s left, {visit}", flush=True)
    free = free_bytes(session.device)
    if visit.need > free:
        raise SkippedError(f"up to {visit.need >> 20} MiB may be needed, {free >> 20} MiB are free")
    visited = Visited(session, visit)
    for what in visit.whats:
        if what == GRAPH and session.device != "cuda":
            raise SkippedError("CUDA graphs need a GPU")
        session.task.emit(visited.measure(what))
    del visited
    if visit.compiled:
        gc.collect()  # frees the compiler's reference cycles; only once, because it is slow
    if session.device == "cuda":
        torch.cuda.empty_cache()


def free_bytes(device: str) -> int:
    if device != "cuda":
        return available_bytes()
    kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return torch.cuda.mem_get_info()[0] + kept


def timed_call(
    what: str, contender: Contender, problem: Problem, grad_output: Tensor
) -> clocks.Timed:
    """The measured call and its context."""
    if not contender.overwrites:
        return clocks.Timed(call_of(what, contender.loss, problem, grad_output), contender.within)
    own = checks.Own(problem)
    return clocks.Timed(call_of(what, contender.loss, own, grad_output), own.fresh)


def call_of(what: str, loss: Loss, problem: Problem, grad_output: Tensor):
    """The measured call. A step starts without a gradient, as after zero_grad()."""
    if what != FORWARD:
        return problem.train(loss, grad_output if what == SCALED else None)

    def forward() -> None:
        with torch.no_grad():
            loss(*problem.leaves, *problem.others, **problem.options)

    return forward


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


def yardsticks(what: str, problem: Problem, moved: int) -> dict[str, clocks.Timed]:
    """A copy that reads and writes the same number of bytes. For a step with a target of the
    input's size, also the plain sum of two tensors, which reads two and writes one, as the step
    does."""
    half = torch.empty(moved // 2, dtype=torch.int8, device=problem.target.device)
    other = torch.zeros_like(half)
    found = {COPY: clocks.Timed(lambda: half.copy_(other))}
    if what == STEP and problem.pair:
        sum = torch.empty_like(problem.target)
        input, target = problem.input.detach(), problem.target
        found[ADD] = clocks.Timed(lambda: torch.add(input, target, out=sum))
    for timed in found.values():
        timed.call()
    return found


if __name__ == "__main__":
    sys.exit(main(measure))
