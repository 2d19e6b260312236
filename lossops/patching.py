"""Replaces torch's own losses by those of lossops, for code that cannot be edited."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch.nn.functional as torch_functional

from lossops import functional

__all__ = ["use_in_torch", "use_in_torch_always"]

# All losses that torch has under the same name.
_LOSSES = tuple(name for name in functional.__all__ if hasattr(torch_functional, name))

_open = 0  # number of open blocks, across all threads and tasks
_before: dict[str, Callable] = {}  # torch's functions when the first block was opened
_lock = threading.Lock()


@contextlib.contextmanager
def use_in_torch() -> Iterator[None]:
    """Replaces the losses in ``torch.nn.functional``, and so those of ``torch.nn`` modules, by
    lossops' within a ``with`` block.

    Code that has already imported a function (``from torch.nn.functional import mse_loss``) keeps
    torch's. All threads share the change. When the last open block, of any thread or task, exits,
    the previous functions are restored.

    Tensor subclasses with ``__torch_function__`` and ``TorchFunctionMode`` still see torch's
    functions and arguments. The functions that these handlers call are lossops'.

    Example:
        >>> import torch, lossops
        >>> with lossops.use_in_torch():
        ...     torch.nn.functional.mse_loss is lossops.functional.mse_loss
        True
        >>> torch.nn.functional.mse_loss is lossops.functional.mse_loss
        False
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def use_in_torch_always() -> None:
    """Like :func:`use_in_torch`, but from now until the end of the process."""
    _enter()


def _enter() -> None:
    global _open
    with _lock:
        if not _open:
            _before.update({name: getattr(torch_functional, name) for name in _LOSSES})
            for name in _LOSSES:
                setattr(torch_functional, name, getattr(functional, name))
        _open += 1


def _leave() -> None:
    global _open
    with _lock:
        _open -= 1
        if not _open:
            for name, function in _before.items():
                setattr(torch_functional, name, function)
