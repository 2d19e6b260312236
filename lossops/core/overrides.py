"""``__torch_function__`` overrides: calls handled by tensor subclasses or modes.

Handlers receive a call in the form that torch's own functions use: required arguments by position,
options by keyword. While :func:`lossops.use_in_torch` replaces torch's function with ours, handlers
receive torch's function, because that is the one they recognise. If they call it, ours runs.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch
from torch.overrides import (
    TorchFunctionMode,
    _pop_mode,
    _pop_mode_temporarily,
    _push_mode,
    handle_torch_function,
)

# Captured at import time, because lossops.use_in_torch() may replace these functions later.
TORCHS: dict[str, Callable] = {
    name: function
    for name, function in vars(torch.nn.functional).items()
    if inspect.isfunction(function)
}


def overrides_are_enabled() -> bool:
    """Under torch.compile, has_torch_function_variadic ignores that overrides may be disabled."""
    return not torch.compiler.is_compiling() or torch._C._is_torch_function_enabled()


def handle(ours: Callable, required: tuple, options: dict):
    """Passes a call to the mode, or the class of one of the tensors, that overrides it."""
    tensors = (*required, *options.values())
    torchs, shown = ours, options
    if not torch.compiler.is_compiling() and getattr(torch.nn.functional, ours.__name__, 0) is ours:
        torchs, shown = _as_torchs(ours, options)
    if torchs is ours:
        return handle_torch_function(ours, tensors, *required, **options)
    if not torch._C._is_torch_function_mode_enabled():
        with _OursForTorchs(ours, torchs, passes=True):
            return handle_torch_function(torchs, tensors, *required, **shown)
    with _pop_mode_temporarily() as mode, _OursForTorchs(ours, torchs):
        _push_mode(mode)
        try:
            return handle_torch_function(torchs, tensors, *required, **shown)
        finally:
            _pop_mode()


class _OursForTorchs(TorchFunctionMode):
    """A mode below the handler of torch's function: if the handler calls torch's, ours runs."""

    def __init__(self, ours: Callable, torchs: Callable, passes: bool = False) -> None:
        super().__init__()
        self.ours, self.torchs = ours, torchs
        self.passes = passes  # leave the first call to the tensors' class

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if self.passes:
            self.passes = False
            return NotImplemented
        function = self.ours if func is self.torchs else func
        return function(*args, **(kwargs or {}))


def _as_torchs(ours: Callable, options: dict) -> tuple[Callable, dict]:
    """Returns torch's function and the options it supports, or ours if torch's lacks an option that
    is not at its default."""
    torchs = TORCHS[ours.__name__]
    known, defaults = _parameters(torchs), _parameters(ours)
    for name, value in options.items():
        default = defaults[name].default
        if name not in known and not (type(value) is type(default) and value == default):
            return ours, options
    return torchs, {name: value for name, value in options.items() if name in known}


@functools.cache
def _parameters(function: Callable) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)
