"""Routes torch's own losses through lossops, for code that cannot be edited."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch.nn.functional as torch_functional

from lossops import functional

__all__ = ["use_in_torch", "use_in_torch_always"]

# Every loss that torch has under the same name.
_LOSSES = tuple(name for name in functional.__all__ if hasattr(torch_functional, name))

_open = 0  # blocks that are open, of whatever thread or task
_before: dict[str, Callable] = {}  # what stood in torch when the first of them was opened
_lock = threading.Lock()


@contextlib.contextmanager
def use_in_torch() -> Iterator[None]:
    """Within it, ``torch.nn.functional``'s losses, and so ``torch.nn``'s modules, are lossops'.

    What has taken a function out of ``torch.nn.functional`` before (``from torch.nn.functional
    import mse_loss``) keeps that one; and so do all threads share the change. When the last of the
    blocks that are open, of whatever thread or task, is left, what was there before is there again.

    Tensor subclasses with ``__torch_function__`` and ``TorchFunctionMode`` see torch's functions
    and arguments, as they do without it; what these handlers call runs by lossops.

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
    """The same, from now on and to the end of the process."""
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
