"""The contenders: the backends of lossops, torch eager, torch.compile, and other libraries."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import torch

import lossops
from benchmarks.bench.cases import COMPILE, LOSSOPS, Case, Loss, Rows
from lossops.core import backends

OURS = ("native", "triton")


@dataclass(frozen=True)
class Contender:
    """A mean loss of the tensors and options of a problem."""

    name: str
    loss: Loss
    overwrites: bool = False  # overwrites the input with the gradient

    def within(self) -> contextlib.AbstractContextManager:
        """The context in which the loss has to be called."""
        return lossops.backend(self.name) if self.name in OURS else contextlib.nullcontext()


# The losses of other libraries, as mean losses of (logits, target), rows first. Each function
# imports its library and returns the loss.


def _liger_cross_entropy() -> Loss:
    from liger_kernel.transformers.functional import liger_cross_entropy

    return liger_cross_entropy


def _liger_divergence(name: str, of_target: Loss, **options) -> Callable[[], Loss]:
    """It takes log-probabilities, which its users compute with torch, as they do its targets."""

    def load() -> Loss:
        library = importlib.import_module("liger_kernel.transformers")
        divergence = getattr(library, name)(**options)
        return lambda logits, target: divergence(logits.log_softmax(1), of_target(target, 1))

    return load


def _quack_cross_entropy() -> Loss:
    """It does not overwrite the logits by default."""
    from quack.cross_entropy import cross_entropy

    return functools.partial(cross_entropy, reduction="mean")


@dataclass(frozen=True)
class Peer:
    """Another library of losses, and the equivalents it has, by the names of our losses."""

    module: str
    package: str
    losses: dict[str, Callable[[], Loss]] = field(default_factory=dict)
    overwrites: frozenset[str] = frozenset()  # the losses that overwrite their input


LIGER, QUACK = "liger_kernel", "quack"
# None of them has an elementwise regression loss. One has losses only as part of a linear layer.
PEERS = (
    Peer(
        LIGER,
        "liger-kernel",
        {
            "cross_entropy": _liger_cross_entropy,
            "kl_divergence": _liger_divergence(
                "LigerKLDIVLoss", torch.softmax, reduction="batchmean"
            ),
            # With equal weights 1/2; averages over the rows.
            "js_divergence": _liger_divergence("LigerJSD", torch.log_softmax),
        },
        overwrites=frozenset({"cross_entropy"}),
    ),
    Peer(QUACK, "quack-kernels", {"cross_entropy": _quack_cross_entropy}),
    Peer("cut_cross_entropy", "cut-cross-entropy"),
)

Found = tuple[dict[str, Contender], dict[str, str]]


def contenders(case: Case, device: str, compiled: bool) -> Found:
    """The contenders that can run here, and the reasons why the others cannot."""
    losses = case.losses(compiled)
    found = {name: Contender(name, loss) for name, loss in losses.items() if name != LOSSOPS}
    absent: dict[str, str] = {}
    for name in OURS:
        if name in backends.backends_for(device):
            found[name] = Contender(name, losses[LOSSOPS])
        else:
            absent[name] = f"this backend does not run on {device} tensors here"
    if not compiled:
        absent[COMPILE] = "not compiled for this size"
    for peer in (peer for peer in PEERS if case.loss in peer.losses):
        if isinstance(case, Rows) and not case.plain:
            # Other shapes must be copied into rows first, which the others do not need.
            absent[peer.module] = "takes nothing but rows of scores, without options"
            continue
        try:
            loss = peer.losses[case.loss]()
        except Exception as error:  # importing a foreign library may raise anything
            absent[peer.module] = in_words(error)
        else:
            found[peer.module] = Contender(peer.module, loss, case.loss in peer.overwrites)
    return {name: found[name] for name in (*OURS, *found) if name in found}, absent


def peers(names: list[str]) -> list[dict[str, Any]]:
    """The other libraries: whether they are installed, and which of these losses they have."""
    found = []
    for peer in PEERS:
        why_not = version = ""
        try:
            importlib.import_module(peer.module)
        except Exception as error:
            absent = isinstance(error, ModuleNotFoundError) and error.name == peer.module
            why_not = "not installed" if absent else in_words(error)
        else:
            with contextlib.suppress(metadata.PackageNotFoundError):
                version = metadata.version(peer.package)
        has = [name for name in names if name in peer.losses]
        row = {"module": peer.module, "version": version, "why_not": why_not, "has": has}
        found.append(row | {"found": not why_not})
    return found


def in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
