"""The value and gradient of each loss, more precisely than the dtype under test can represent, and
the units that errors are counted in.

They are computed in float64, or in numpy's longdouble to judge float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lossops.elementwise import reference
from lossops.specs.elementwise import Spec
from lossops.specs.vectors import VectorSpec
from lossops.vectors.reference import multi_margin
from lossops.verify import numpy
from lossops.verify.dual import Dual

Array = Any  # a numpy array


@dataclass(frozen=True)
class Exact:
    """Exact results and the unit of their errors."""

    value: Array
    unit: Array
    known: Array | bool = True  # where the result is defined


@dataclass(frozen=True)
class Truth:
    """All exact results of a call."""

    value: Exact  # of each element or row
    gradients: Sequence[Exact]  # of the sum, by each input
    reductions: Sequence[tuple[Array, Array, dict[str, Any]]] = ()  # result, unit, options
    at: Array | None = None  # the differences x - y


def wide(dtype: torch.dtype) -> Any:
    """The numpy dtype of the truth for results of ``dtype``."""
    return numpy.longdouble if dtype == torch.float64 else numpy.float64


def computed_in(dtype: torch.dtype) -> torch.finfo:
    """The dtype in which losses compute results of ``dtype``."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)


def judges_float64() -> bool:
    """Whether numpy's longdouble is more precise than float64 on this machine."""
    return numpy.finfo(numpy.longdouble).nmant > 52


def array(tensor: Tensor, dtype: Any) -> Array:
    return tensor.detach().cpu().double().numpy().astype(dtype)


def first_beyond(dtype: torch.dtype, wide: Any) -> Array:
    """The first number that is too large for the dtype."""
    with numpy.errstate(over="ignore"):  # of float64 in float64
        return numpy.ldexp(wide.type(1), round(math.log2(torch.finfo(dtype).max)))


def ulp(size: Array, dtype: torch.dtype) -> Array:
    """The unit in the last place of results of this size."""
    info = torch.finfo(dtype)
    _, exponent = numpy.frexp(numpy.fmin(size, first_beyond(dtype, size.dtype)))
    eps, tiny = round(math.log2(info.eps)), round(math.log2(info.tiny))
    return numpy.ldexp(size.dtype.type(1), numpy.maximum(exponent - 1, tiny) + eps)


def sum_and_mean(total, moves, count, dtype: torch.dtype) -> Iterator[tuple[Array, Array, dict]]:
    """The reductions of a truth, unless they are too large. ``moves`` is how far rounding each term
    moves their sum, in eps."""
    for name, divisor in (("sum", 1), ("mean", count)):
        right = total / divisor
        if divisor and abs(right) <= torch.finfo(dtype).max:
            unavoidable = computed_in(dtype).eps * moves / divisor
            yield right, torch.finfo(dtype).eps * abs(right) + unavoidable, {"reduction": name}


# The elementwise losses: the reference formula on dual numbers. Where a formula selects a branch,
# dual numbers select its derivative as well. Unlike in autograd, an infinity in the branch not
# taken does no harm.


def of_elements(
    spec: Spec, kwargs: dict[str, Any], input: Tensor, target: Tensor, weight: Tensor | None = None
) -> Truth:
    """The truth of an elementwise loss; if there is a weight, that of its reductions only, because
    among many ordinary values, there are some whose derivative is a sum that nearly cancels.

    In losses of the difference, a difference that is too large for the compute dtype under test is
    infinite. If the terms of a sum cancel, the unit is that of the terms.
    """
    kernel, dtype = spec.kernel, input.dtype
    with numpy.errstate(all="ignore"):
        x, y = (array(tensor, wide(dtype)) for tensor in (input, target))
        if kernel not in reference.TERMS:  # a function of the difference
            far = abs(x - y) > computed_in(dtype).max
            x = numpy.where(far, numpy.copysign(numpy.inf, x - y), x)
        formula = reference.TERMS.get(kernel, lambda *args: (reference.FORMULAS[kernel](*args),))
        terms = formula(Dual(x, numpy.ones_like(x)), Dual(y), *spec.params(kwargs))
        derivatives = [term.derivative + numpy.zeros_like(x) for term in terms]
        found = []
        for parts in ([term.value for term in terms], derivatives):
            total, size = sum(parts), sum(abs(part) for part in parts)
            found.append((total, ulp(numpy.fmax(abs(total), size), dtype)))
        at = x - y
    if weight is None:
        known = ~numpy.isnan(at)
        return Truth(Exact(*found[0]), [Exact(*found[1], known=known)], at=at)
    loss, w = found[0][0], array(weight, wide(dtype))
    weighted = (loss * w).sum() / (w.sum() if spec.divides_by_weight else w.size)
    reductions = [
        (loss.mean(), {"reduction": "mean"}),
        (loss.sum(), {"reduction": "sum"}),
        (loss.mean(1), {"reduction": "sample"}),
        (weighted, {"weight": weight}),
    ]
    eps = torch.finfo(dtype).eps
    judged = [(right, eps * abs(right), options) for right, options in reductions]
    return Truth(Exact(*found[0], known=False), [Exact(*found[1], known=False)], judged, at)


# The losses over rows of vectors: torch's function in float64, unless it is not exact enough.


def _multi_margin(x: Tensor, y: Tensor, p=1, margin=1.0, reduction="none") -> Tensor:
    """For a row of 20,000, torch's gradient is 460 units off."""
    return multi_margin((x,), y, margin, p == 2)


def _multilabel_margin(x: Tensor, labels: Tensor, reduction="none") -> Tensor:
    """Like ``_multi_margin``. Sums over all pairs explicitly."""
    given = (labels >= 0).cumprod(1)
    most = max(1, int(given.sum(1).max()))
    listed, index = given[:, :most, None] > 0, labels[:, :most].clamp_min(0)
    is_label = torch.zeros_like(x).scatter_add(1, index, given[:, :most].to(x.dtype)) > 0
    hinges = torch.relu(1 - x.gather(1, index)[:, :, None] + x[:, None, :])
    return torch.where(listed & ~is_label[:, None, :], hinges, 0).sum((1, 2)) / x.shape[1]


_VECTORS: dict[str, Callable[..., Tensor]] = {
    "multi_margin_loss": _multi_margin,
    "multilabel_margin_loss": _multilabel_margin,
}


def _norms(vectors, value: Tensor, p=2.0, **options) -> Tensor:
    return sum((vectors[0] - v).norm(p, 1) for v in vectors[1:]) + 1


def _and_one(vectors, value: Tensor, **options) -> Tensor:
    return value.abs() + 1


# What a value is made of, see VectorSpec.size.
_SIZES: dict[str, Callable[..., Tensor]] = {
    "value": lambda vectors, value, **options: value.abs(),
    "value and 1": _and_one,
    "norms": _norms,
}


def of_vectors(spec: VectorSpec, vectors, given, options: dict[str, Any]) -> Truth:
    """The truth of a loss over rows of vectors. The unit is relative to what a value is made of,
    and to the largest number of a row of the gradient."""
    dtype = vectors[0].dtype
    eps = torch.finfo(dtype).eps
    vectors = [v.detach().double().requires_grad_() for v in vectors]
    given = [t.double() if t.is_floating_point() else t for t in given]
    loss = _VECTORS.get(spec.name, spec.torch_function)
    value = loss(*vectors, *given, reduction="none", **options)
    gradients = torch.autograd.grad(value.sum(), vectors)
    size = _SIZES[spec.size]
    exact = []
    for vector, gradient in zip(vectors, gradients, strict=True):
        largest = gradient.abs().amax(1, keepdim=True)
        if spec.gradient_is_a_difference:
            terms = vector.abs().amax(1, keepdim=True) / vector.square().sum(1, keepdim=True)
            largest = terms * (largest != 0)
        unit = eps * torch.where(largest == 0, 1, largest)
        exact.append(Exact(array(gradient, float), array(unit, float)))
    size, value = (array(t, float) for t in (size(vectors, value, **options), value))
    if dtype == torch.float64:  # the truth is not exact enough
        return Truth(Exact(value, eps * size), exact)
    reductions = sum_and_mean(value.sum(), size.sum(), len(value), dtype)
    return Truth(Exact(value, eps * size), exact, list(reductions))
