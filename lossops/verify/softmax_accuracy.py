"""The error of a loss over rows and of its gradient, compared with torch's.

One unit is the error that a careful algorithm cannot avoid: one rounding of the result, plus the
change of the result when the shifted logits, exponentials and logarithms are rounded in the compute
dtype (float32 for half precision). A loss that is a small difference of large terms cannot be more
accurate than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lossops.specs.softmax import RowSpec, Sample
from lossops.verify import optional
from lossops.verify.softmax_truth import RowTruth, exact

HUGE = 128_256  # classes: the vocabulary size of a current language model
SHAPES = ((200, 10), (32, 1000), (2, HUGE))


@dataclass
class RowErrors:
    """The errors of one implementation."""

    value: float = 0.0  # largest error of the loss, in units
    gradient: float = 0.0  # largest error of its derivative, in units
    reduced: float = 0.0  # of a mean or sum, in eps of the dtype, relative to the result
    wrong_kind: int = 0  # results that are NaN where the truth is not, or vice versa

    def add(self, other: RowErrors) -> None:
        for name in ("value", "gradient", "reduced"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        self.wrong_kind += other.wrong_kind


class Trial:
    """The inputs of one loss, and its exact results."""

    def __init__(
        self, spec: RowSpec, sample: Sample, shape, dtype: torch.dtype, seed: int, device: str
    ):
        self.spec, self.sample, self.shape, self.dtype = spec, sample, shape, dtype
        tensors = sample.tensors(shape, dtype, seed)
        self.truth = exact(spec, sample, *tensors)
        self.units = _units(self.truth, dtype)
        self.target, self.options = tensors[1].to(device), _moved(tensors[2], device)
        self.input = tensors[0].to(device)
        self.means = tensors[1], tensors[2]

    def __str__(self) -> str:
        return f"{self.sample}, {self.shape[1]} classes"

    def judge(self, loss: Callable[..., Tensor]) -> RowErrors:
        """The errors of an implementation. The gradient is that of the sum."""
        x = self.input.detach().requires_grad_()
        total = loss(x, self.target, "sum", **self.options)
        (gradient,) = torch.autograd.grad(total, x)
        with torch.no_grad():
            value = loss(self.input, self.target, "none", **self.options)
            mean = loss(self.input, self.target, "mean", **self.options)
        errors = RowErrors()
        for name, found in (("value", value), ("gradient", gradient)):
            error, wrong = _compare(found, getattr(self.truth, name), self.units[name], self.dtype)
            setattr(errors, name, error)
            errors.wrong_kind += wrong
        errors.reduced = max(self._reduced(total, 1.0), self._reduced(mean, self._denominator()))
        return errors

    def _denominator(self) -> float:
        """The denominator of a mean."""
        target, options = self.means
        if self.sample.soft:
            return len(target)
        counts = target != options.get("ignore_index", -100)
        weight = options.get("weight")
        return float((counts if weight is None else counts * weight.double()[target.clip(0)]).sum())

    def _reduced(self, found: Tensor, denominator: float) -> float:
        right = self.truth.value.sum() / denominator
        if abs(right) > torch.finfo(self.dtype).max or denominator == 0:
            return 0.0
        unavoidable = _eps(self.dtype) * self.truth.value_moves.sum() / denominator
        error = abs(found.detach().double().item() - float(right))
        return error / float(torch.finfo(self.dtype).eps * abs(right) + unavoidable)


def _moved(options: dict[str, Any], device: str) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}


def _eps(dtype: torch.dtype) -> float:
    """The eps of the dtype that results of ``dtype`` are computed in."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def _units(truth: RowTruth, dtype: torch.dtype) -> dict[str, Any]:
    numpy, info = optional("numpy"), torch.finfo(dtype)
    found = {}
    for name in ("value", "gradient"):
        right, moves = getattr(truth, name), getattr(truth, f"{name}_moves")
        with numpy.errstate(all="ignore"):
            _, exponent = numpy.frexp(numpy.clip(abs(right), info.tiny, info.max))
            place = numpy.ldexp(right.dtype.type(info.eps), exponent - 1)
            found[name] = place + _eps(dtype) * moves
    return found


def _compare(found: Tensor, right, unit, dtype: torch.dtype) -> tuple[float, int]:
    """Returns the largest error in units, and the number of results of the wrong kind. Values are
    clipped to the first number that is too large for the dtype, so that rounding up to infinity is
    an error of one unit."""
    numpy = optional("numpy")
    end = numpy.ldexp(right.dtype.type(1), round(math.log2(torch.finfo(dtype).max)))
    ours = found.detach().cpu().double().numpy().astype(right.dtype)
    with numpy.errstate(all="ignore"):
        errors = abs(numpy.clip(ours, -end, end) - numpy.clip(right, -end, end)) / unit
    odd = numpy.isnan(errors)
    wrong = int((numpy.isnan(ours) != numpy.isnan(right)).sum())
    return float(errors[~odd].max()) if not odd.all() else 0.0, wrong


def trials(spec: RowSpec, dtype: torch.dtype, seed: int, device: str, shapes=SHAPES):
    """Yields a trial of each sample for each shape. Only the first two samples are tried with the
    largest number of classes."""
    for sample in spec.samples:
        for shape in shapes:
            plain = sample in spec.samples[:2]
            # With so many classes, nearly all probabilities are 0 in float16.
            known = dtype != torch.float16 or "probs" not in (sample.input, sample.target)
            if shape[1] < HUGE or (plain and known):
                yield Trial(spec, sample, shape, dtype, seed, device)
