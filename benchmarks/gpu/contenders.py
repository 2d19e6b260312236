"""Who is measured: lossops by its backends, torch eager, torch.compile, and other libraries."""

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
from lossops import backends
from lossops.report.contenders import written_in_torch
from lossops.specs import Spec

Loss = Callable[[Tensor, Tensor], Tensor]
OURS = ("native", "triton")
EAGER, COMPILE = "eager", "compile"


@dataclass(frozen=True)
class Contender:
    """A mean loss of (input, target)."""

    name: str
    loss: Loss

    def within(self) -> contextlib.AbstractContextManager:
        """What it has to be called in."""
        return lossops.backend(self.name) if self.name in OURS else contextlib.nullcontext()


@dataclass(frozen=True)
class Peer:
    """Another library of losses, and which of ours it has.

    An entry of ``losses`` maps the name of a loss of ours to a function that imports the library
    and returns its equivalent, a mean loss of (input, target).
    """

    module: str
    package: str
    losses: dict[str, Callable[[], Loss]] = field(default_factory=dict)


# None of them has an elementwise regression loss.
PEERS = (
    Peer("liger_kernel", "liger-kernel"),
    Peer("quack", "quack-kernels"),
    Peer("cut_cross_entropy", "cut-cross-entropy"),
)


def contenders(
    spec: Spec, device: str, compiled: bool
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Those that can run here, and why the others cannot."""
    found: dict[str, Contender] = {}
    absent: dict[str, str] = {}
    for name in OURS:
        if name in backends.backends_for(device):
            found[name] = Contender(name, functools.partial(spec.function, **spec.defaults))
        else:
            absent[name] = f"this backend does not run on {device} tensors here"
    in_torch = written_in_torch(spec)
    found[EAGER] = Contender(EAGER, in_torch)
    if compiled:
        torch.compiler.reset()
        found[COMPILE] = Contender(COMPILE, torch.compile(in_torch, dynamic=False))
    else:
        absent[COMPILE] = "not compiled for this size"
    for peer in PEERS:
        if spec.name not in peer.losses:
            continue
        try:
            found[peer.module] = Contender(peer.module, peer.losses[spec.name]())
        except Exception as error:  # whatever an import of a foreign library may raise
            absent[peer.module] = _words(error)
    return found, absent


def peers(names: list[str]) -> list[dict[str, Any]]:
    """What is known of the other libraries: there or not, and which of these losses they have."""
    return [_look(peer) | {"has": [n for n in names if n in peer.losses]} for peer in PEERS]


def _look(peer: Peer) -> dict[str, Any]:
    row: dict[str, Any] = {"module": peer.module, "version": None, "found": False, "why_not": ""}
    try:
        importlib.import_module(peer.module)
    except ModuleNotFoundError as error:
        row["why_not"] = "not installed" if error.name == peer.module else _words(error)
        return row
    except Exception as error:
        row["why_not"] = _words(error)
        return row
    row["found"] = True
    with contextlib.suppress(metadata.PackageNotFoundError):
        row["version"] = metadata.version(peer.package)
    return row


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
