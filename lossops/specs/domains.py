"""The domains of inputs and targets: how to make values of them from any numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Domain(NamedTuple):
    """The values that an argument of a loss may have."""

    # Maps random numbers to values off the boundary of the domain, in half precision, too.
    inner: Callable[[Tensor], Tensor]
    # Maps all numbers there are to values including the boundary; may depend on the other argument.
    folded: Callable[[Tensor, Tensor], Tensor]


def _probability(x: Tensor) -> Tensor:
    return torch.sigmoid(0.5 * x)


def _into_unit(x: Tensor) -> Tensor:
    """|x| or 1/|x|: covers every exponent up to that of 1, and both ends of the interval."""
    z = x.abs()
    return torch.where(z > 1, 1 / z, z)


def _label(x: Tensor) -> Tensor:
    """Maps to as many hard labels as soft ones."""
    return torch.where(x.abs() > 1, (x > 0).to(x.dtype), x.abs())


def _off(x: Tensor, *points: float) -> Tensor:
    """Moves numbers away from points where a derivative jumps."""
    for point in points:
        x = torch.where((x - point).abs() < 0.05, x + 0.1, x)
    return x


def _sign(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1.0, -1.0).to(x.dtype)


def _itself(x: Tensor, other: Tensor | None = None) -> Tensor:
    return x


DOMAINS = {
    "number": Domain(_itself, _itself),
    "number up to 50": Domain(_itself, lambda x, _: torch.where(x.isinf(), x.sign() * 50, x)),
    "probability": Domain(_probability, lambda x, _: _into_unit(x)),
    "log_probability": Domain(
        lambda x: torch.nn.functional.logsigmoid(0.5 * x), lambda x, _: -x.abs()
    ),
    "label": Domain(_probability, lambda x, _: _label(x)),
    "sign": Domain(_sign, lambda x, _: _sign(x)),
    "distance": Domain(lambda x: _off(x.abs(), 1.0, 0.3), _itself),
    "margin": Domain(lambda x: _off(x, -0.5, 0.0, 0.5), _itself),
    # The bounds keep exp(x), and sums of some thousand values, in the range of float16.
    "log_rate": Domain(
        lambda x: 0.5 * x, lambda x, _: torch.where(x.isfinite(), x.clamp_max(10), x)
    ),
    "rate": Domain(lambda x: x.abs() + 0.1, lambda x, _: x.abs()),
    "count": Domain(torch.abs, lambda x, _: x.abs()),
    # The bounds keep x² / v, where v is the variance, in the range of float16.
    "error": Domain(
        _itself,
        lambda x, v: torch.where(x.isfinite() & (v.abs() < 1), x.clamp(-0.2, 0.2), x),
    ),
    "variance": Domain(lambda x: (0.5 * x).exp(), lambda x, _: x.abs()),
}
