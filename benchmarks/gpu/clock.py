"""Timing on a device with a cold cache, interleaving the contenders."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lossops.verify.measure import CpuClock

Call = Callable[[], object]


@dataclass(frozen=True)
class Timed:
    """A call to time and its context, which is entered before the clock starts."""

    call: Call
    within: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


def flush_bytes(l2_bytes: int, free_bytes: int) -> int:
    """How many bytes to write between two timings.

    At least twice the L2 cache, to evict its contents, and usually far more: while the device
    writes, the CPU runs ahead of it, so that the next timing does not include launch latency.
    """
    return max(2 * l2_bytes, min(max(4 * l2_bytes, 1 << 30), free_bytes // 8), 1)


class CudaClock:
    """Milliseconds from CUDA events on the current stream."""

    def __init__(self):
        properties = torch.cuda.get_device_properties(0)
        free, _ = torch.cuda.mem_get_info()
        size = flush_bytes(getattr(properties, "L2_cache_size", 0), free)
        self.flushed = torch.empty(size, dtype=torch.int8, device="cuda")

    def cold(self, call: Call) -> float:
        """Times one call with a cold cache."""
        self.flushed.zero_()
        return self.time(call)

    def block(self, call: Call, count: int) -> float:
        """The mean time of back-to-back calls, including launches."""
        torch.cuda.synchronize()
        return self.time(lambda: _repeat(call, count)) / count

    def time(self, call: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


class WallClock(CudaClock):
    """Milliseconds of CPU wall-clock time, for dry runs."""

    def __init__(self):
        self.flushed = torch.empty(1 << 20, dtype=torch.int8)
        self.time = CpuClock()

    def block(self, call: Call, count: int) -> float:
        return self.time(lambda: _repeat(call, count)) / count


def _repeat(call: Call, count: int) -> None:
    for _ in range(count):
        call()


def interleaved(
    timed: dict[str, Timed], rounds: int, clock: Callable[[Call], float]
) -> dict[str, list[float]]:
    """All times of each contender. Each round times every contender once, in rotating order."""
    names = list(timed)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        shift = i % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            with timed[name].within():
                times[name].append(clock(timed[name].call))
    return times


def block_times(
    timed: dict[str, Timed], rounds: int, clock: CudaClock, block_ms: float
) -> dict[str, list[float]]:
    """For calls too short to be timed alone. Their data fit into the cache and stay there."""
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
