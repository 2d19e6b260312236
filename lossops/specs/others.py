"""One row per loss without kernels of its own: formulas in plain torch, torch's own functions, and
compositions of other losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

# The tensors that require grad, and the loss as a function of them.
Call = tuple[list[Tensor], Callable[..., Tensor]]


@dataclass(frozen=True)
class Other:
    """A loss, and a function that calls it with a number of rows and a row length."""

    name: str  # in lossops.functional and torch.nn.functional
    case: Callable[[Callable[..., Tensor], torch.Generator, int, int], Call]
    backends: bool = False  # whether it runs kernels of other losses
    twice: bool = True  # whether it can be differentiated twice
    ours: dict[str, Any] = field(default_factory=dict)  # additional arguments for lossops only


def _random(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _multilabel_soft_margin(loss, generator, rows, length) -> Call:
    wanted = torch.randint(2, (rows, length), generator=generator).float()
    tensors = [_random(rows, length, generator=generator)]
    return tensors, lambda x, **k: loss(x, wanted.to(x), **k)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    return 1 - torch_functional.cosine_similarity(x, y)


def _with_distance(loss, generator, rows, length) -> Call:
    tensors = [_random(rows, length, generator=generator) for _ in range(3)]
    return tensors, lambda *t, **k: loss(*t, distance_function=_distance, **k)


def _linear(loss, generator, rows, length) -> Call:
    labels = torch.randint(length, (rows,), generator=generator)
    tensors = [_random(n, 4, generator=generator) for n in (rows, length)]
    return tensors, lambda x, w, **k: loss(x, w, labels.to(x.device), **k)


def _ctc(loss, generator, rows, length) -> Call:
    lengths = torch.full((rows,), length), torch.full((rows,), 3)
    labels = torch.randint(1, 4, (rows, 3), generator=generator)

    def of_scores(x: Tensor, **options) -> Tensor:
        return loss(x.log_softmax(-1), labels.to(x.device), *lengths, **options)

    return [_random(length, rows, 4, generator=generator)], of_scores


OTHERS = (
    Other("multilabel_soft_margin_loss", _multilabel_soft_margin, backends=True),
    Other("triplet_margin_with_distance_loss", _with_distance),
    Other(
        "linear_cross_entropy", _linear, backends=True,
        ours={"options": SimpleNamespace(batch_chunk_size=2)},
    ),
    Other("ctc_loss", _ctc, twice=False),
)  # fmt: skip
