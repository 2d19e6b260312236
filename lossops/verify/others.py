"""Verifies the losses without kernels of their own: formulas in plain torch, torch's own functions,
and compositions of other losses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from lossops import functional
from lossops.core import backends
from lossops.verify.elementwise import devices
from lossops.verify.tables import Table, verdict

_SHAPE = (5, 7)
_CHECKS = ("float64", "float32", "gradcheck", "gradgradcheck")
# The tensors that require grad, and the loss as a function of them.
Case = tuple[list[Tensor], Callable[..., Tensor]]


@dataclass(frozen=True)
class Other:
    """A loss, and a function that builds a test case from a number of rows and a row length."""

    name: str  # in lossops.functional and torch.nn.functional
    how: str  # how it is computed
    case: Callable[[Callable[..., Tensor], torch.Generator, int, int], Case]
    backends: bool = False  # whether it runs kernels of other losses
    twice: bool = True  # whether it can be differentiated twice
    ours: dict[str, Any] = field(default_factory=dict)  # additional arguments for lossops only


def _random(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _multilabel_soft_margin(loss, generator, rows, length) -> Case:
    wanted = torch.randint(2, (rows, length), generator=generator).float()
    tensors = [_random(rows, length, generator=generator)]
    return tensors, lambda x, **k: loss(x, wanted.to(x), **k)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    return 1 - torch_functional.cosine_similarity(x, y)


def _with_distance(loss, generator, rows, length) -> Case:
    tensors = [_random(rows, length, generator=generator) for _ in range(3)]
    return tensors, lambda *t, **k: loss(*t, distance_function=_distance, **k)


def _linear(loss, generator, rows, length) -> Case:
    labels = torch.randint(length, (rows,), generator=generator)
    tensors = [_random(n, 4, generator=generator) for n in (rows, length)]
    return tensors, lambda x, w, **k: loss(x, w, labels.to(x.device), **k)


def _ctc(loss, generator, rows, length) -> Case:
    lengths = torch.full((rows,), length), torch.full((rows,), 3)
    labels = torch.randint(1, 4, (rows, 3), generator=generator)

    def of_scores(x: Tensor, **options) -> Tensor:
        return loss(x.log_softmax(-1), labels.to(x.device), *lengths, **options)

    return [_random(length, rows, 4, generator=generator)], of_scores


OTHERS = (
    Other(
        "multilabel_soft_margin_loss", "binary_cross_entropy_with_logits", _multilabel_soft_margin,
        backends=True,
    ),
    Other("triplet_margin_with_distance_loss", "a formula of the distance", _with_distance),
    Other(
        "linear_cross_entropy", "cross_entropy of chunks", _linear, backends=True,
        ours={"options": SimpleNamespace(batch_chunk_size=2)},
    ),
    Other("ctc_loss", "torch's own", _ctc, twice=False),
)  # fmt: skip


def targets(wanted: Iterable[Other] = OTHERS) -> list[tuple[Other, str]]:
    """The combinations (loss, device) to verify."""
    return [(other, device) for other in wanted for device in devices()]


def verify(
    wanted: Iterable[Other] = OTHERS,
    advance: Callable[[str], None] = lambda what: None,
    full: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Verifies losses. Returns rows of ``checks``, and whether all ``passed``."""
    checks = []
    for other, device in targets(wanted):
        for backend in backends.backends_for(device) if other.backends else ("",):
            with _on(backend):
                checks.append(_checks(other, device, backend, seed))
        advance(f"{other.name} {device}")
    passed = all(row["passed"] for row in checks)
    return {"passed": passed, "seed": seed, "numbers": [], "checks": checks}


def _on(backend: str):
    return backends.backend(backend) if backend else torch.enable_grad()


def _checks(other: Other, device: str, backend: str, seed: int) -> dict[str, Any]:
    results = {}
    for name in _CHECKS:
        try:
            results[name] = _check(name, other, device, seed)
        except Exception as error:
            results[name] = " ".join(str(error).split()) or type(error).__name__
    row = {"loss": other.name, "how": other.how, "device": device, "backend": backend}
    return row | results | {"passed": not any(results.values())}


def _check(name: str, other: Other, device: str, seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    state = generator.get_state()
    function = functools.partial(getattr(functional, other.name), **other.ours)
    tensors, ours = other.case(function, generator, *_SHAPE)
    dtype = torch.float32 if name == "float32" else torch.float64
    tensors = [tensor.to(device, dtype).requires_grad_() for tensor in tensors]
    if name == "gradcheck":
        gradcheck(ours, tensors)
    elif name == "gradgradcheck":
        if other.twice:
            gradgradcheck(ours, tensors)
    elif hasattr(torch_functional, other.name):  # older versions of torch lack linear_cross_entropy
        generator.set_state(state)
        _, theirs = other.case(getattr(torch_functional, other.name), generator, *_SHAPE)
        for reduction in ("none", "mean", "sum"):
            found, expected = (loss(*tensors, reduction=reduction) for loss in (ours, theirs))
            torch.testing.assert_close(found, expected)
            grads = [torch.autograd.grad(loss.sum(), tensors) for loss in (found, expected)]
            torch.testing.assert_close(*grads)
    return ""


def tables(result: dict[str, Any]) -> list[Table]:
    """The results as readable tables."""
    table = Table(
        "Losses without kernels of their own: as torch, and derivatives in float64",
        ("loss", "computed by", "backend", "float64", "float32", "gradcheck", "gradgradcheck",
         "verdict"),
        labels=3,
        note="Value and gradient of every reduction, beside torch's. ctc_loss, which is torch's, "
        "cannot be differentiated twice.",
    )  # fmt: skip
    for row in result["checks"]:
        cells = (verdict(not row[name], "yes", "no") for name in _CHECKS)
        where = " ".join(filter(None, (row["backend"], row["device"]))).removesuffix(" cpu")
        table.add(row["loss"], row["how"], where, *cells, verdict(row["passed"]))
    return [table]


def failures(result: dict[str, Any]) -> list[str]:
    """Describes each failure in one line."""
    return [
        f"{row['loss']} {row['backend']} {name}: {row[name]}"
        for row in result["checks"]
        for name in _CHECKS
        if row[name]
    ]
