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
from torch import Tensor

import lossops
from benchmarks.bench.softmax_steps import Case
from benchmarks.gpu import peer_losses
from lossops.core import backends
from lossops.specs.elementwise import Spec

Loss = Callable[[Tensor, Tensor], Tensor]
OURS = ("native", "triton")
EAGER, COMPILE = "eager", "compile"


@dataclass(frozen=True)
class Contender:
    """A mean loss of (input, target)."""

    name: str
    loss: Loss
    overwrites: bool = False  # overwrites the input with the gradient

    def within(self) -> contextlib.AbstractContextManager:
        """The context in which the loss has to be called."""
        return lossops.backend(self.name) if self.name in OURS else contextlib.nullcontext()


@dataclass(frozen=True)
class Peer:
    """Another library of losses, and the equivalents it has.

    An entry of ``losses`` maps the name of one of our losses to a function that imports the library
    and returns the equivalent, a mean loss of (input, target).
    """

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
            "cross_entropy": peer_losses.liger_cross_entropy,
            "kl_divergence": peer_losses.liger_kl_divergence,
            "js_divergence": peer_losses.liger_js_divergence,
        },
        overwrites=frozenset({"cross_entropy"}),
    ),
    Peer(QUACK, "quack-kernels", {"cross_entropy": peer_losses.quack_cross_entropy}),
    Peer("cut_cross_entropy", "cut-cross-entropy"),
)

Found = tuple[dict[str, Contender], dict[str, str]]


def contenders(spec: Spec, device: str, compiled: bool) -> Found:
    """The contenders that can run here, and the reasons why the others cannot."""
    ours = functools.partial(spec.function, **spec.defaults)
    return _gather(spec.name, ours, spec.written_in_torch(), device, compiled)


def row_contenders(case: Case, options: dict[str, Any], device: str, compiled: bool) -> Found:
    """The same for a loss over rows of class scores, called with ``options``."""
    spec, sample = case.spec, case.sample
    ours, in_torch = (
        functools.partial(loss, **options) for loss in (spec.call(sample), spec.torch_call(sample))
    )
    # Other shapes must be copied into rows first, which the other contenders do not need.
    plain = len(case.shape) == 2 and sample == spec.samples[0]
    why_not = "" if plain else "takes nothing but rows of scores, without options"
    return _gather(case.loss, ours, in_torch, device, compiled, why_not)


def _gather(
    name_of_loss: str, ours: Loss, in_torch: Loss, device: str, compiled: bool, no_peers: str = ""
) -> Found:
    found: dict[str, Contender] = {}
    absent: dict[str, str] = {}
    for name in OURS:
        if name in backends.backends_for(device):
            found[name] = Contender(name, ours)
        else:
            absent[name] = f"this backend does not run on {device} tensors here"
    found[EAGER] = Contender(EAGER, in_torch)
    if compiled:
        torch.compiler.reset()
        found[COMPILE] = Contender(COMPILE, torch.compile(in_torch, dynamic=False))
    else:
        absent[COMPILE] = "not compiled for this size"
    for peer in PEERS:
        if name_of_loss not in peer.losses:
            continue
        if no_peers:
            absent[peer.module] = no_peers
            continue
        try:
            loss = peer.losses[name_of_loss]()
        except Exception as error:  # importing a foreign library may raise anything
            absent[peer.module] = in_words(error)
        else:
            overwrites = name_of_loss in peer.overwrites
            found[peer.module] = Contender(peer.module, loss, overwrites)
    return found, absent


def peers(names: list[str]) -> list[dict[str, Any]]:
    """The other libraries: whether they are installed, and which of these losses they have."""
    return [_look(peer) | {"has": [n for n in names if n in peer.losses]} for peer in PEERS]


def _look(peer: Peer) -> dict[str, Any]:
    row: dict[str, Any] = {"module": peer.module, "version": None, "found": False, "why_not": ""}
    try:
        importlib.import_module(peer.module)
    except ModuleNotFoundError as error:
        row["why_not"] = "not installed" if error.name == peer.module else in_words(error)
        return row
    except Exception as error:
        row["why_not"] = in_words(error)
        return row
    row["found"] = True
    with contextlib.suppress(metadata.PackageNotFoundError):
        row["version"] = metadata.version(peer.package)
    return row


def in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
