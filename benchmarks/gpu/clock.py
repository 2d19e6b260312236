"""Time on a device, from a cold cache, with the contenders taking turns."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Timed:
    """What is timed, and within what: the context is entered before the clock starts."""

    call: Call
    within: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


def flush_bytes(l2_bytes: int, free_bytes: int) -> int:
    """How much to write between two timings.

    Several times the cache, to push out all that was in it, and as a rule far more: while the
    device writes, the processor gets ahead of it, so that what is timed next is not kept waiting
    for its launches.
    """
    return max(2 * l2_bytes, min(max(4 * l2_bytes, 1 << 30), free_bytes // 8), 1)


class CudaClock:
    """Milliseconds by CUDA events on the current stream."""

    def __init__(self):
        properties = torch.cuda.get_device_properties(0)
        free, _ = torch.cuda.mem_get_info()
        size = flush_bytes(getattr(properties, "L2_cache_size", 0), free)
        self.flushed = torch.empty(size, dtype=torch.int8, device="cuda")

    def cold(self, call: Call) -> float:
        """One call, with nothing of its data in the cache."""
        self.flushed.zero_()
        return self._events(call)

    def block(self, call: Call, count: int) -> float:
        """The mean of calls right after each other, launches included."""
        torch.cuda.synchronize()
        return self._events(lambda: _repeat(call, count)) / count

    def _events(self, call: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


class WallClock:
    """Milliseconds by the processor's clock, for dry runs."""

    def __init__(self):
        self.flushed = torch.empty(1 << 20, dtype=torch.int8)

    def cold(self, call: Call) -> float:
        self.flushed.zero_()
        return self.block(call, 1)

    def block(self, call: Call, count: int) -> float:
        start = time.perf_counter()
        _repeat(call, count)
        return 1e3 * (time.perf_counter() - start) / count


Clock = CudaClock | WallClock


def _repeat(call: Call, count: int) -> None:
    for _ in range(count):
        call()


def interleaved(
    timed: dict[str, Timed], rounds: int, clock: Callable[[Call], float]
) -> dict[str, list[float]]:
    """Every time of each. Each round times all of them, in an order that rotates."""
    names = list(timed)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        shift = i % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            with timed[name].within():
                times[name].append(clock(timed[name].call))
    return times


def cold_times(timed: dict[str, Timed], rounds: int, clock: Clock) -> dict[str, list[float]]:
    """For calls that keep the device busy longer than it takes to launch them."""
    return interleaved(timed, rounds, clock.cold)


def block_times(
    timed: dict[str, Timed], rounds: int, clock: Clock, block_ms: float
) -> dict[str, list[float]]:
    """For calls too short to be timed alone; their data stays in the cache, as it would anyway."""
    slowest = 0.0
    for each in timed.values():
        with each.within():
            slowest = max(slowest, clock.block(each.call, 10))
    count = max(1, int(block_ms / max(slowest, 1e-6)))
    return interleaved(timed, rounds, lambda call: clock.block(call, count))


def summary(times: list[float]) -> dict[str, float]:
    """Median and quartiles, in ms."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return {name: float(f"{ms:.5g}") for name, ms in (("ms", median), ("p25", low), ("p75", high))}
