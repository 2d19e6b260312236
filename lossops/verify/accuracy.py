"""The largest error of a loss and of its gradient, in ulp (units in the last place), compared with
torch's.

An error of 0.5 is the best possible for a rounded result. The exact values come from the reference
formula in float64, or in extended precision to judge float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lossops.specs.elementwise import Spec
from lossops.verify import optional
from lossops.verify.contenders import written_in_torch
from lossops.verify.truth import Truth, exact
from lossops.verify.values import adversarial

ALLOWED_ALONE = 8.0  # ulp, if torch has no such loss to compare with
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Errors:
    """The errors of one implementation."""

    value: float = 0.0  # largest error of the loss, in ulp
    gradient: float = 0.0  # largest error of its derivative, in ulp
    value_at: float = 0.0  # the difference x - y where that error occurs
    gradient_at: float = 0.0
    wrong_kind: int = 0  # results that are NaN, or differ from a truth that is NaN or infinite


def measure(
    spec: Spec, dtype: torch.dtype, count: int, seed: int = 0, device: str = "cpu"
) -> dict[str, Errors | None]:
    """Measures the errors of "lossops" and "torch" (None if it lacks a kernel) over ``count``
    adversarial values, which are split between the samples of hyperparameters."""
    contenders = {"lossops": spec.function, "torch": written_in_torch(spec)}
    errors: dict[str, Errors | None] = {name: Errors() for name in contenders}
    generator = torch.Generator().manual_seed(seed)
    for kwargs in spec.samples:
        pairs = adversarial(spec, kwargs, dtype, count // len(spec.samples), generator)
        for x, y in pairs:
            truth = exact(spec.kernel, spec.params(kwargs), x, y)
            judge = Judge(truth, dtype)
            # At a kink, a formula written by hand follows no convention for the derivative.
            kinks = list(spec.kinks(kwargs)) if spec.differentiable == 1 else []
            for name, function in contenders.items():
                if errors[name] is None:
                    continue
                try:
                    results = value_and_gradient(function, kwargs, x.to(device), y.to(device))
                except (NotImplementedError, RuntimeError):
                    if name == "lossops":
                        raise
                    errors[name] = None
                else:
                    by_hand = name == "torch" and spec.torch_function is None
                    judge(errors[name], *results, skip=kinks if by_hand else ())
    return errors


def value_and_gradient(
    function: Callable[..., Tensor], kwargs: dict[str, float], x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of each element and its derivative with respect to ``x``."""
    x = x.detach().requires_grad_()
    loss = function(x, y, reduction="none", **kwargs)
    (gradient,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
    return loss.detach(), gradient


class Judge:
    """Compares results with exact values."""

    def __init__(self, truth: Truth, dtype: torch.dtype):
        numpy = optional("numpy")
        self.difference = truth.difference
        with numpy.errstate(over="ignore"):
            self.exact_gradient = truth.gradient.astype(float)
        # Where the difference is NaN, the derivative is not defined.
        known = ~numpy.isnan(truth.difference)
        self.value = _Scale(truth.value, dtype, judged=None, size=truth.value_size)
        self.gradient = _Scale(truth.gradient, dtype, judged=known, size=truth.gradient_size)

    def __call__(
        self, errors: Errors, value: Tensor, gradient: Tensor, skip: Iterable[float] = ()
    ) -> None:
        """Updates ``errors``. Ignores gradients at the differences in ``skip``."""
        for difference in skip:
            gradient = gradient.clone()
            at = self.difference == difference
            gradient[torch.from_numpy(at)] = torch.from_numpy(self.exact_gradient[at]).to(gradient)
        for what, scale, result in (
            ("value", self.value, value),
            ("gradient", self.gradient, gradient),
        ):
            ulps, wrong_kind = scale.compare(result)
            errors.wrong_kind += wrong_kind
            worst = int(ulps.argmax()) if ulps.size else 0
            if ulps.size and ulps[worst] > getattr(errors, what):
                setattr(errors, what, float(ulps[worst]))
                setattr(errors, f"{what}_at", float(self.difference[worst]))


class _Scale:
    """Exact values, and the size of a unit in their last place.

    Exact values and results are clipped to the first number that is too large for the dtype.
    Rounding up from the largest number to infinity is then an error of one unit.
    """

    def __init__(self, truth, dtype: torch.dtype, judged, size=0):
        numpy = optional("numpy")
        info = torch.finfo(dtype)
        digits = 1 - round(math.log2(info.eps))  # bits of the significand
        self.end = numpy.ldexp(truth.dtype.type(1), round(math.log2(info.max)))
        self.finite = numpy.isfinite(truth)
        self.judged = judged
        self.raw = truth
        self.truth = numpy.clip(truth, -self.end, self.end)
        # If the terms of a sum cancel, the unit is that of the terms.
        _, exponent = numpy.frexp(numpy.fmin(numpy.fmax(abs(self.truth), size), self.end))
        least = round(math.log2(info.tiny)) - digits + 1  # exponent of the smallest denormal
        exponent = numpy.maximum(exponent - digits, least)
        self.per_ulp = numpy.ldexp(truth.dtype.type(1), -exponent)

    def compare(self, result: Tensor):
        """Returns the error of each element in ulp, and the number of results of the wrong kind."""
        numpy = optional("numpy")
        found = result.cpu().double().numpy()
        with numpy.errstate(invalid="ignore"):
            clipped = numpy.clip(found, -self.end, self.end)
            ulps = abs(clipped - self.truth) * self.per_ulp
        odd = numpy.isnan(ulps) | ~self.finite
        if self.judged is not None:
            ulps[~self.judged] = 0
            odd &= self.judged
        if not odd.any():
            return ulps, 0
        ulps[odd] = 0
        same = (found == self.raw) | (numpy.isnan(found) & numpy.isnan(self.raw))
        return ulps, int((odd & ~same).sum())


def within(ours: float, theirs: float | None, allowed: float = ALLOWED_ALONE) -> bool:
    """Whether an error is at most torch's plus one ulp, or ``allowed`` if torch has none."""
    return ours <= (allowed if theirs is None else theirs + 1)


def worst(found: Iterable[Errors]) -> Errors:
    """Combines several errors: the largest of each, and the sum of ``wrong_kind``."""
    total = Errors()
    for errors in found:
        for what in ("value", "gradient"):
            if getattr(errors, what) > getattr(total, what):
                setattr(total, what, getattr(errors, what))
                setattr(total, f"{what}_at", getattr(errors, f"{what}_at"))
        total.wrong_kind += errors.wrong_kind
    return total
