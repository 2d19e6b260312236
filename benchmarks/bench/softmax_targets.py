"""The targets of the losses over rows; see benchmarks.bench.targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.bench import targets
from benchmarks.bench.softmax_steps import LANGUAGE, PICTURES, VOCABULARY, WIDE
from benchmarks.bench.targets import Target, ratio

Row = dict[str, Any]
_MAIN = tuple(" × ".join(map(str, shape)) for shape in (VOCABULARY, WIDE, LANGUAGE))
_SEGMENTATION = (" × ".join(map(str, PICTURES)),)
_PAIR = (f"{_MAIN[0]}, target logits",)
_CROSS_ENTROPY, _KL = ("cross_entropy",), ("kl_divergence",)


def _of(cases: tuple[str, ...], above: str, below: str) -> Callable[[Row], float | None]:
    """A ratio of times, for these cases only."""
    number = ratio("ms", above, below)
    return lambda row: number(row) if row["case"] in cases else None


def _held(inplace: bool) -> Callable[[Row], float | None]:
    return lambda row: row["gradients"]["lossops"] if row["inplace"] == inplace else None


_EXPONENTIALS = "One exponential per score, which few cores cannot hide behind memory."
_TARGETS: tuple[Target, ...] = (
    Target(
        "cross_entropy, a step over a fresh torch.mul, warm memory",
        "rows_step", _of(_MAIN, "lossops", "floor"), at_most=1.3, losses=_CROSS_ENTROPY,
        reason=_EXPONENTIALS,
    ),
    Target(
        "cross_entropy faster than torch eager",
        "rows_step", _of(_MAIN, "eager", "lossops"), at_least=2.5, losses=_CROSS_ENTROPY,
        reason="By memory alone 9 passes to 2; eager's rows of 1,000 classes stay in the cache.",
    ),
    Target(
        "cross_entropy faster than torch.compile",
        "rows_step", _of(_MAIN, "compile", "lossops"), at_least=1.5, losses=_CROSS_ENTROPY,
        reason="Compiled code, too, computes a row in the cache, and reads it again in backward.",
    ),
    Target(
        "cross_entropy of pictures faster than torch eager",
        "rows_step", _of(_SEGMENTATION, "eager", "lossops"), at_least=2.0, losses=_CROSS_ENTROPY,
        reason=_EXPONENTIALS,
    ),
    Target(
        "kl_divergence of logits faster than torch's log_softmax + softmax + kl_div",
        "rows_step", _of(_PAIR, "eager", "lossops"), at_least=4.0, losses=_KL,
        reason="Two exponentials per class, which few cores cannot hide behind memory.",
    ),
    Target(
        "kl_divergence of logits faster than the same compiled",
        "rows_step", _of(_PAIR, "compile", "lossops"), at_least=2.0, losses=_KL,
        reason="Compiled code, too, computes a row in the cache.",
    ),
    Target(
        "losses over rows faster than torch eager",
        "rows_step", ratio("ms", "eager", "lossops"), at_least=2.0,
        reason="The gradient of nll_loss is zeros but for a number per row, and torch, too, does "
        "nothing but write them. log_prob_of has a gradient per row.",
    ),
    Target(
        "losses over rows faster than torch.compile",
        "rows_step", ratio("ms", "compile", "lossops"), at_least=1.0, reason=_EXPONENTIALS,
    ),
    Target(
        "losses over rows, 16 rows of 10, over torch's own time",
        "rows_tiny", ratio("us", "lossops", "eager"), at_most=1.25,
        reason="torch's node of the graph is made in a microsecond less.",
    ),
    Target(
        "losses over rows: peak memory of a step beyond its inputs, in gradients",
        "rows_memory", _held(False), at_most=1.01, devices=("cpu", "cuda"),
    ),
    Target(
        "cross_entropy with inplace=True: the same",
        "rows_memory", _held(True), at_most=0.01, devices=("cpu", "cuda"),
    ),
)  # fmt: skip

ALL = (*targets.TARGETS, *_TARGETS)
