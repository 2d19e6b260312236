"""Calls that others handle: tensor subclasses with ``__torch_function__``, and modes.

They see a call as torch's own functions show theirs: what is required by position, options by name.
While :func:`lossops.use_in_torch` has put our function in the place of torch's, they see torch's,
by which they know what to do, and where they call it, ours runs.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import (
    TorchFunctionMode,
    _pop_mode,
    _pop_mode_temporarily,
    _push_mode,
    handle_torch_function,
    has_torch_function_variadic,
)

# As they are when this is imported: lossops.use_in_torch() may put ours in their place.
TORCHS: dict[str, Callable] = {
    name: function
    for name, function in vars(torch.nn.functional).items()
    if inspect.isfunction(function)
}


def overridden(*tensors) -> bool:
    """Whether a mode, or the class of one of the tensors, handles calls."""
    if not has_torch_function_variadic(*tensors):
        return False
    # The compiler's has_torch_function_variadic forgets where handlers are disabled.
    return not torch.compiler.is_compiling() or torch._C._is_torch_function_enabled()


def handle(ours: Callable, tensors: tuple, *required, **options) -> Tensor | tuple[Tensor, ...]:
    """Hands a call to the mode, or the class of one of the tensors, that handles it."""
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
    """Below who handles a call of torch's function: what is called in the end is ours."""

    def __init__(self, ours: Callable, torchs: Callable, passes: bool = False) -> None:
        super().__init__()
        self.ours, self.torchs = ours, torchs
        self.passes = passes  # the call itself, which is for the tensors' class to handle

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if self.passes:
            self.passes = False
            return NotImplemented
        function = self.ours if func is self.torchs else func
        return function(*args, **(kwargs or {}))


def _as_torchs(ours: Callable, options: dict) -> tuple[Callable, dict]:
    """Torch's function and what options of a call it has; ours where one is given that it lacks."""
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
