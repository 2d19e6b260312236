"""Routes torch's own losses through lossops, for code that cannot be edited."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch.nn.functional as torch_functional

from lossops import functional

__all__ = ["use_in_torch", "use_in_torch_always"]

# Every loss that torch has under the same name.
_LOSSES = tuple(name for name in functional.__all__ if hasattr(torch_functional, name))


@contextlib.contextmanager
def use_in_torch() -> Iterator[None]:
    """Within it, ``torch.nn.functional``'s losses, and so ``torch.nn``'s modules, are lossops'.

    What has taken a function out of ``torch.nn.functional`` before (``from torch.nn.functional
    import mse_loss``) keeps that one; and so do all threads share the change. On leaving, what was
    there before is there again.

    Example:
        >>> import torch, lossops
        >>> with lossops.use_in_torch():
        ...     torch.nn.functional.mse_loss is lossops.functional.mse_loss
        True
        >>> torch.nn.functional.mse_loss is lossops.functional.mse_loss
        False
    """
    before = {name: getattr(torch_functional, name) for name in _LOSSES}
    use_in_torch_always()
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(torch_functional, name, function)


def use_in_torch_always() -> None:
    """The same, from now on and to the end of the process."""
    for name in _LOSSES:
        setattr(torch_functional, name, getattr(functional, name))
