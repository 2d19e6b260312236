"""The largest errors of a loss and of its gradient, counted in units that depend on the exact
results. Half a unit in the last place is the best possible error of a rounded result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lossops.verify import numpy
from lossops.verify.truth import Exact, Truth, first_beyond

ALLOWED_ALONE = 8.0  # units, if torch has no such loss to compare with
REDUCTION_ALLOWED = 4.0  # eps, for any number of elements or rows
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Errors:
    """The errors of one implementation."""

    value: float = 0.0  # largest error of the loss, in units
    gradient: float = 0.0  # largest error of its derivatives, in units
    value_at: float = 0.0  # where that error occurs: the difference x - y of an elementwise loss
    gradient_at: float = 0.0
    reduced: float = 0.0  # largest error of a reduction, in eps of the dtype
    wrong_kind: int = 0  # results that are NaN, or differ from a truth that is NaN or infinite

    def add(self, other: Errors) -> Errors:
        for what in ("value", "gradient"):
            if getattr(other, what) > getattr(self, what):
                setattr(self, what, getattr(other, what))
                setattr(self, f"{what}_at", getattr(other, f"{what}_at"))
        self.reduced = max(self.reduced, other.reduced)
        self.wrong_kind += other.wrong_kind
        return self


@dataclass
class Case:
    """A way to call a loss, as a function of tensors and of a reduction."""

    words: str
    tensors: list[Tensor]  # all that can be differentiated by
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor] | None = None  # the loss in torch
    inputs: int = 1  # how many of the tensors are those that a training step differentiates by
    twice: bool = True  # whether the loss can be differentiated twice
    # The reductions whose forward-mode and batched derivatives are checked.
    other_modes: tuple[str, ...] = ("none", "mean")
    torchs_kinks: tuple[float, ...] = ()  # differences at which torch's derivative is not judged

    def leaves(self, of_all: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the tensors as the leaves of a graph, and those to differentiate by."""
        count = len(self.tensors) if of_all else self.inputs
        leaves = [tensor.detach().requires_grad_() for tensor in self.tensors[:count]]
        return [*leaves, *self.tensors[count:]], leaves


def judge(loss: Callable[..., Tensor], case: Case, truth: Truth) -> Errors:
    """The errors of an implementation: of its values, of the gradients by the inputs, both without
    a reduction and of the sum, and of its reductions."""
    errors = Errors()
    tensors, inputs = case.leaves()
    skipped = loss is case.theirs and numpy.isin(truth.at, case.torchs_kinks)
    for reduction in ("none", "sum"):
        found = loss(*tensors, reduction=reduction)
        gradients = torch.autograd.grad(found, inputs, torch.ones_like(found))
        if reduction == "none":
            errors.add(_compare("value", found, truth.value, truth.at))
        for gradient, exact in zip(gradients, truth.gradients, strict=True):
            errors.add(_compare("gradient", gradient, exact, truth.at, skipped))
    for right, unit, options in truth.reductions:
        if loss is case.ours or options.get("reduction") in ("mean", "sum"):
            with torch.no_grad():
                found = loss(*case.tensors, **options).cpu().double().numpy()
            error = float((abs(found - right) / unit).max())
            errors.reduced = max(errors.reduced, torch.inf if math.isnan(error) else error)
    return errors


def _compare(what: str, found: Tensor, exact: Exact, at, skipped=False) -> Errors:
    """Exact values and results are clipped to the first number that is too large for the dtype.
    Rounding up from the largest number to infinity is then an error of one unit."""
    right, known = exact.value, numpy.logical_and(exact.known, numpy.logical_not(skipped))
    end = first_beyond(found.dtype, right.dtype)
    ours = found.detach().cpu().double().numpy().astype(right.dtype)
    with numpy.errstate(all="ignore"):
        units = abs(numpy.clip(ours, -end, end) - numpy.clip(right, -end, end)) / exact.unit
    units = numpy.where(known & numpy.isfinite(right) & ~numpy.isnan(units), units, 0)
    wrong = (numpy.isnan(ours) != numpy.isnan(right)) | (numpy.isinf(right) & (ours != right))
    errors = Errors(wrong_kind=int((wrong & known).sum()))
    if units.size:
        worst = int(units.argmax())
        setattr(errors, what, float(units.flat[worst]))
        setattr(errors, f"{what}_at", float(at.flat[worst]) if at is not None else 0.0)
    return errors


def beyond(ours: Errors, theirs: Errors | None, alone: float, factor: float = 1.0) -> list[str]:
    """Describes the errors that exceed ``factor`` times torch's error plus one unit, or ``alone``
    if there is no such error to compare with."""
    found = []
    for what in ("value", "gradient"):
        error, torchs = getattr(ours, what), theirs and getattr(theirs, what)
        if not error <= (alone if theirs is None else factor * torchs + 1):
            text = f"{what} off by {error:.3g} units"
            text += f", torch by {torchs:.3g}" if theirs else ""
            place = getattr(ours, f"{what}_at")
            found.append(f"{text}, where x - y = {place:.3g}" if place else text)
    if not ours.reduced <= REDUCTION_ALLOWED:
        found.append(f"reductions off by {ours.reduced:.3g} eps")
    return found
