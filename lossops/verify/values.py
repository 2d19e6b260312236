"""Random and adversarial test values of a dtype."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lossops.specs.elementwise import Spec

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
CHUNK = 1 << 18


def adversarial(
    spec: Spec,
    kwargs: dict[str, float],
    dtype: torch.dtype,
    count: int,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields about ``count`` pairs (input, target) in chunks: ordinary values, every exponent down
    to denormals, differences within a few ulp of the thresholds, and all pairs of special values
    (0, smallest, largest, infinite, NaN …)."""
    yield spec.folded(*_special_pairs(dtype))
    thresholds = [t for t in {*spec.kinks({**spec.defaults, **kwargs}), 1.0} if math.isfinite(t)]
    makers = [_ordinary, _every_exponent, _at_thresholds(thresholds)]
    for number, start in enumerate(range(0, count, CHUNK)):
        size = min(CHUNK, count - start)
        yield spec.folded(*makers[number % len(makers)](size, dtype, generator))


def _ordinary(size: int, dtype: torch.dtype, generator) -> tuple[Tensor, Tensor]:
    """Predictions at many distances from targets of many magnitudes."""
    target, noise, scale = torch.randn(3, size, dtype=torch.float64, generator=generator)
    target = target * 3 ** scale.flip(0)
    return (target + noise * 10**scale).to(dtype), target.to(dtype)


def _every_exponent(size: int, dtype: torch.dtype, generator) -> tuple[Tensor, Tensor]:
    """Random bit patterns; half of the targets are zero."""
    bits = _BITS[dtype.itemsize]
    limits = torch.iinfo(bits)
    input, target = (
        torch.randint(limits.min, limits.max, (size,), dtype=bits, generator=generator).view(dtype)
        for _ in range(2)
    )
    target[: size // 2] = 0
    return input, target


def _at_thresholds(thresholds: list[float]):
    def values(size: int, dtype: torch.dtype, generator) -> tuple[Tensor, Tensor]:
        which = torch.randint(len(thresholds), (size,), generator=generator)
        target = torch.randn(size, dtype=torch.float64, generator=generator).to(dtype)
        target[: size // 2] = 0
        distance = torch.tensor(thresholds, dtype=torch.float64)[which]
        input = (target.double() + distance).to(dtype)
        steps = torch.randint(-3, 4, (size,), generator=generator).to(_BITS[dtype.itemsize])
        steps[input == 0] = 0  # the bit pattern below that of zero is NaN
        return (input.view(steps.dtype) + steps).view(dtype), target

    return values


def _special_pairs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    info = torch.finfo(dtype)
    least = info.tiny * info.eps  # the smallest denormal
    some = (0.0, least, info.tiny, info.eps, 0.5, 1.0, 3.0, info.max / 2, info.max, math.inf)
    numbers = [*some, *(-number for number in some), math.nan]
    pairs = torch.tensor(list(itertools.product(numbers, numbers)), dtype=torch.float64).to(dtype)
    return pairs[:, 0].clone(), pairs[:, 1].clone()
