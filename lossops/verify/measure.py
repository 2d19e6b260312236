"""Time and memory of a step, measured so that noise on the machine affects all contenders alike."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator

import torch

Step = Callable[[], None]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from <malloc.h>
_PAGE = 4096


class CpuClock:
    """Times a step in milliseconds with the wall clock.

    Args:
        max_fresh_bytes: a step that takes more fresh memory than this from the system is repeated.
    """

    attempts = 6

    def __init__(self, max_fresh_bytes: float = float("inf")):
        self.max_fresh_bytes = max_fresh_bytes
        self.repeated = 0

    def __call__(self, step: Step) -> float:
        for _ in range(self.attempts):
            faults = _page_faults()
            start = time.perf_counter()
            step()
            elapsed = 1e3 * (time.perf_counter() - start)
            if (_page_faults() - faults) * _PAGE <= self.max_fresh_bytes:
                break
            self.repeated += 1
        return elapsed


class CudaClock:
    """Times a step in milliseconds with CUDA events, after overwriting the L2 cache."""

    def __init__(self):
        properties = torch.cuda.get_device_properties(0)
        size = max(4 * getattr(properties, "L2_cache_size", 0), 1 << 28)
        self.flush = torch.empty(size, dtype=torch.int8, device="cuda")
        self.repeated = 0

    def __call__(self, step: Step) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def clock_for(device: str, warm: bool, tensor_bytes: int) -> CpuClock | CudaClock:
    if device == "cuda":
        return CudaClock()
    return CpuClock(max_fresh_bytes=tensor_bytes / 20 if warm else float("inf"))


def interleaved(
    steps: dict[str, Step], rounds: int, clock: Callable[[Step], float]
) -> dict[str, float]:
    """The median time of each step in ms. Each round times every step once, in rotating order."""
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for step in steps.values():
        step()
        step()
    with without_gc():
        for i in range(rounds):
            shift = i % len(names)
            for name in names[shift:] + names[:shift]:
                times[name].append(clock(steps[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def interleaved_blocks(
    steps: dict[str, Step], blocks: int, block_ms: float, clock: Callable[[Step], float]
) -> dict[str, float]:
    """Like ``interleaved``, for steps too short to be timed individually. Returns microseconds per
    step."""
    slowest = max(clock(lambda step=step: _repeat(step, 50)) for step in steps.values()) / 50
    count = max(1, int(block_ms / slowest))
    repeated = {name: lambda step=step: _repeat(step, count) for name, step in steps.items()}
    return {name: 1e3 * ms / count for name, ms in interleaved(repeated, blocks, clock).items()}


def _repeat(step: Step, count: int) -> None:
    for _ in range(count):
        step()


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limits torch to one thread. With small tensors, threads would only wait for each other, and
    for long where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_memory_warm(pool_bytes: int) -> bool:
    """Makes this process keep the memory that it frees, as jemalloc does, and touches a pool of
    memory once. Returns whether this is possible here (it is with glibc).

    Has the effect of MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_, but from inside the
    process. The pool is needed because glibc before 2.38 cannot reuse a freed aligned block for
    another block of the same size once a small block has been allocated behind it. It would take
    fresh memory instead.
    """
    try:
        libc = ctypes.CDLL(None)
        kept = libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    except (OSError, AttributeError, TypeError):
        return False
    if not kept:
        return False
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    pool = libc.malloc(pool_bytes)
    if pool:
        ctypes.memset(pool, 0, pool_bytes)
        libc.free(pool)
    return bool(pool)


def available_bytes() -> int:
    """The memory that can be allocated safely."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":") for line in file)
        return 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def peak_bytes(step: Step, device: str) -> int:
    """The peak memory of a step, in addition to what was allocated before.

    On the CPU, it comes from the profiler, which records every allocation and release of torch's
    allocator. The resident size of the process would include memory of the libraries.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
