"""Runs a sequence of calls."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from lossops.core import backends

from . import hostile, judge
from .call import Call, Draw
from .public import public_call
from .raw import raw_call


@dataclass
class Counts:
    accepted: int = 0
    refused: int = 0
    wrong: int = 0

    def __str__(self) -> str:
        total = self.accepted + self.refused + self.wrong
        return (
            f"{total} calls, {self.accepted} accepted, {self.refused} refused, {self.wrong} wrong"
        )


def make_call(draw: Draw, what: str, namespace: str) -> Call:
    raw = what == "raw" or (what == "all" and draw.chance(0.75))
    call = raw_call(draw, namespace) if raw else public_call(draw)
    for _ in range(draw.of(0, 0, 1, 1, 1, 1, 2, 3, 5)):
        hostile.spoil(draw, call)
    if not call.raw:
        call.arguments = {name: apart(value) for name, value in call.arguments.items()}
    return call


def apart(value):
    """A value that shares its memory with the original, but is detached from its graph."""
    if isinstance(value, (list, tuple)):
        return [apart(element) for element in value]
    return (
        value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
    )


def run(
    seed: int, calls: int, first: int = 0, seconds: float | None = None, what: str = "all",
    namespace: str = "lossops", failures: int = 1, show: bool = False,
) -> Counts:  # fmt: skip
    if namespace == "lossops_triton":
        backends.kernel_ops("triton")  # registers them
    torch.set_num_threads(1)  # enough for such small tensors
    torch.utils.deterministic.fill_uninitialized_memory = True
    counts, begin = Counts(), time.monotonic()
    for number in range(first, first + calls):
        if seconds is not None and time.monotonic() - begin > seconds:
            break
        draw = Draw(f"{seed}:{number}")
        call = make_call(draw, what, namespace)
        if show:
            print(f"{number}: {call}", flush=True)
        described = str(call)
        try:
            if judge.judge(draw, call):
                counts.accepted += 1
            else:
                counts.refused += 1
        except judge.FoundError as error:
            counts.wrong += 1
            report(seed, number, what, namespace, described, error)
        except Exception as error:
            counts.wrong += 1
            report(seed, number, what, namespace, described, error)
            if not isinstance(error, (RuntimeError, ValueError, IndexError, TypeError)):
                raise
        if counts.wrong >= failures:
            break
    return counts


def report(seed: int, number: int, what: str, namespace: str, call: str, error) -> None:
    more = "" if namespace == "lossops" else f" --namespace {namespace}"
    print(
        f"\n{call}\n  → {type(error).__name__}: {error}\n"
        f"repeat with: python -m tests.fuzz --what {what}{more} --seed {seed} --first {number} "
        "--calls 1",
        flush=True,
    )
