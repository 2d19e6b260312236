"""The targets of lossops, compared with the measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.bench import tables
from benchmarks.bench.cases import LANGUAGE, PICTURES, VOCABULARY, WIDE
from lossops.verify.accuracy import ALLOWED_ALONE

Row = dict[str, Any]
MAIN = ("mse_loss", "huber_loss", "smooth_l1_loss")


@dataclass(frozen=True)
class Target:
    """A bound on a number that some of the benchmark rows have."""

    text: str
    kinds: tuple[str, ...]  # of results
    number: Callable[[Row], float | None]
    at_most: float | None = None
    at_least: float | None = None
    losses: tuple[str, ...] = ()  # empty: all losses
    memory: str = ""  # empty: any
    devices: tuple[str, ...] = ("cpu",)
    reason: str = ""  # why it may be missed, as far as known

    @property
    def goal(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_most is None else f"≤ {self.at_most:g}"

    def applies(self, row: Row) -> bool:
        return (
            row["kind"] in self.kinds
            and row["device"] in self.devices
            and (not self.losses or row["loss"] in self.losses)
            and (not self.memory or row["memory"] == self.memory)
            and self.number(row) is not None
        )

    def outcomes(self, rows: Iterable[Row]) -> list[Row]:
        """For each device the worst measurement, and where the target was missed."""
        found: dict[str, list[Row]] = {}
        for row in filter(self.applies, rows):
            found.setdefault(row["device"], []).append(row)
        return [self._outcome(device, rows) for device, rows in found.items()]

    def _outcome(self, device: str, rows: list[Row]) -> Row:
        pairs = [(self.number(row), row) for row in rows]
        low, high = self.at_least, self.at_most
        missed = [
            f"{_label(row)} {number:.3g}"
            for number, row in pairs
            if (number < low if high is None else number > high)
        ]
        return {
            "target": self.text,
            "goal": self.goal,
            "device": device,
            "worst": (min if high is None else max)(number for number, _ in pairs),
            "missed": missed,
            "reason": self.reason if missed else "",
            "met": not missed,
        }


def _label(row: Row) -> str:
    names = ("loss", "dtype", "case", "reduction")
    return " ".join(row[name] for name in names if name in row)


def ratio(unit: str, above: str, below: str) -> Callable[[Row], float | None]:
    """One contender's number divided by another's."""

    return lambda row: tables.ratio(row[unit], above, below)


def _beyond_allowed(row: Row) -> float:
    """The larger error of value and gradient, divided by the allowed error, which is torch's + 1
    ulp. Infinite if a NaN or infinity is misplaced."""
    ours, theirs = row["lossops"], row["torch"]
    if ours["wrong_kind"] > (theirs["wrong_kind"] if theirs else 0):
        return math.inf
    return max(
        ours[what] / (theirs[what] + 1 if theirs and row["torchs_own"] else ALLOWED_ALONE)
        for what in ("value", "gradient")
    )


_MAIN = tuple(" × ".join(map(str, shape)) for shape in (VOCABULARY, WIDE, LANGUAGE))
_SEGMENTATION = (" × ".join(map(str, PICTURES)),)
_PAIR = (f"{_MAIN[0]}, target logits",)
_CROSS_ENTROPY, _KL = ("cross_entropy",), ("kl_divergence",)


def _of(cases: tuple[str, ...], above: str, below: str) -> Callable[[Row], float | None]:
    """A ratio of times, for these cases only."""
    number = ratio("ms", above, below)
    return lambda row: number(row) if row["case"] in cases else None


def _held(inplace: bool) -> Callable[[Row], float | None]:
    return lambda row: row["gradients"]["lossops"] if row.get("inplace", False) == inplace else None


_FRESH = (
    "Most of this time is page faults, whose cost varies from run to run. There are few where the "
    "system gives huge pages to those who ask for them, as lossops does; but a hypervisor that "
    "takes free ones back meanwhile has to fetch them again."
)
_ARITHMETIC = (
    "Two logarithms or more per element, or an exponential and a logarithm, which a few cores "
    "cannot hide behind memory; gaussian_nll_loss also makes a tensor of differences."
)
_OVERHEAD = (
    "torch's losses are called and differentiated in C++ alone; here the checks of the arguments "
    "run in Python."
)
_EXPONENTIALS = "One exponential per score, which few cores cannot hide behind memory."

TARGETS: tuple[Target, ...] = (
    Target(
        "training step over a fresh torch.add, default allocator",
        ("step",), ratio("ms", "lossops", "floor"), at_most=1.15, memory="default", reason=_FRESH,
    ),
    Target(
        "training step over a fresh torch.add, warm memory",
        ("step",), ratio("ms", "lossops", "floor"), at_most=1.15, memory="warm", reason=_ARITHMETIC,
    ),
    Target(
        "faster than torch eager, warm memory",
        ("step",), ratio("ms", "eager", "lossops"), at_least=2.5, memory="warm", losses=MAIN,
        reason="Eager moves 8 tensors' worth of memory to 3 here: by memory alone, 2.67.",
    ),
    Target(
        "faster than torch.compile, warm memory",
        ("step",), ratio("ms", "compile", "lossops"), at_least=1.8, memory="warm", losses=MAIN,
        reason="Compiled code moves 5 tensors' worth of memory to 3 here: by memory alone, 1.67.",
    ),
    Target(
        "every loss faster than torch eager, warm memory",
        ("step",), ratio("ms", "eager", "lossops"), at_least=2.0, memory="warm", reason=_ARITHMETIC,
    ),
    Target(
        "every loss faster than torch.compile, default allocator",
        ("step",), ratio("ms", "compile", "lossops"), at_least=1.0, memory="default", reason=_FRESH,
    ),
    Target(
        "every loss faster than torch.compile, warm memory",
        ("step",), ratio("ms", "compile", "lossops"), at_least=1.0, memory="warm",
        reason=_ARITHMETIC,
    ),
    Target(
        "faster than compiled log-cosh, warm memory",
        ("step",), ratio("ms", "compile", "lossops"), at_least=2.5, memory="warm",
        losses=("log_cosh_loss",),
        reason="By memory alone, one pass gains 5/3; the rest has to come from faster arithmetic.",
    ),
    Target(
        "bfloat16 over float32, per element",
        ("half",), ratio("ms", "bfloat16", "float32"), at_most=1.0, devices=("cpu", "cuda"),
        reason="Half the bytes, but each is widened to float32 and rounded back.",
    ),
    Target(
        "16 elements, or 16 rows of 10, over torch's own time",
        ("tiny", "rows_tiny", "vectors_tiny", "others_tiny"), ratio("us", "lossops", "eager"),
        at_most=1.25, devices=("cpu", "cuda"), reason=_OVERHEAD,
    ),
    Target(
        "peak memory of a step beyond its inputs, in gradients",
        ("memory", "rows_memory", "vectors_memory"), _held(False), at_most=1.01,
        devices=("cpu", "cuda"),
    ),
    Target(
        "largest error, over torch's own plus one ulp",
        ("accuracy",), _beyond_allowed, at_most=1.0, devices=("cpu", "cuda"),
        reason="See the table of errors for the difference at which it occurs.",
    ),
    Target(
        "cross_entropy, a step over a fresh torch.mul, warm memory",
        ("rows_step",), _of(_MAIN, "lossops", "floor"), at_most=1.3, losses=_CROSS_ENTROPY,
        reason=_EXPONENTIALS,
    ),
    Target(
        "cross_entropy faster than torch eager",
        ("rows_step",), _of(_MAIN, "eager", "lossops"), at_least=2.5, losses=_CROSS_ENTROPY,
        reason="By memory alone 9 passes to 2; eager's rows of 1,000 classes stay in the cache.",
    ),
    Target(
        "cross_entropy faster than torch.compile",
        ("rows_step",), _of(_MAIN, "compile", "lossops"), at_least=1.5, losses=_CROSS_ENTROPY,
        reason="Compiled code, too, computes a row in the cache, and reads it again in backward.",
    ),
    Target(
        "cross_entropy of pictures faster than torch eager",
        ("rows_step",), _of(_SEGMENTATION, "eager", "lossops"), at_least=2.0, losses=_CROSS_ENTROPY,
        reason=_EXPONENTIALS,
    ),
    Target(
        "kl_divergence of logits faster than torch's log_softmax + softmax + kl_div",
        ("rows_step",), _of(_PAIR, "eager", "lossops"), at_least=4.0, losses=_KL,
        reason="Two exponentials per class, which few cores cannot hide behind memory.",
    ),
    Target(
        "kl_divergence of logits faster than the same compiled",
        ("rows_step",), _of(_PAIR, "compile", "lossops"), at_least=2.0, losses=_KL,
        reason="Compiled code, too, computes a row in the cache.",
    ),
    Target(
        "losses over rows faster than torch eager",
        ("rows_step", "vectors_step"), ratio("ms", "eager", "lossops"), at_least=2.0,
        reason="The gradient of nll_loss is zeros but for a number per row, and torch, too, does "
        "nothing but write them. log_prob_of has a gradient per row.",
    ),
    Target(
        "losses over rows faster than torch.compile",
        ("rows_step", "vectors_step"), ratio("ms", "compile", "lossops"), at_least=1.0,
        reason=_EXPONENTIALS,
    ),
    Target(
        "cross_entropy with inplace=True: the same",
        ("rows_memory",), _held(True), at_most=0.01, devices=("cpu", "cuda"),
    ),
    Target(
        "linear_cross_entropy over its three matrix products",
        ("linear_step",), ratio("ms", "lossops", "products"), at_most=1.15,
    ),
    Target(
        "linear_cross_entropy faster than torch.compile",
        ("linear_step",), ratio("ms", "compile", "lossops"), at_least=1.0,
        reason="Compiled code holds all logits, and so reads the weight once where chunks read "
        "it, and read and write its gradient, eight times.",
    ),
    Target(
        "linear_cross_entropy: peak memory beyond inputs and gradients, in logits",
        ("linear_memory",), lambda row: row["logits"]["lossops"], at_most=0.15,
        devices=("cpu", "cuda"),
    ),
)  # fmt: skip


def outcomes(
    rows: Iterable[Row], quick: bool = False, among: Iterable[Target] = TARGETS
) -> list[dict[str, Any]]:
    """The outcomes of all targets that were measured."""
    rows = list(rows)
    found = [outcome for target in among for outcome in target.outcomes(rows)]
    for outcome in found:
        if quick and not outcome["met"]:
            outcome["reason"] = "Quick mode: the tensors are too small for the targets to apply."
    return found
