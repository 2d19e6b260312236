"""``torch.jit.script``, which compiles Python and cannot know how kernels are called from it.

A loss that torch has, too, is compiled as torch's: the numbers are the same, and the script can be
saved. What torch lacks is refused, with what there is in place of scripting.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch

from lossops import functional, nn
from lossops.core.overrides import TORCHS

__all__: list[str] = []

_MODULES = {getattr(nn, name) for name in nn.__all__}
# What torch cannot compile either.
_BEYOND_SCRIPT = {
    "gaussian_nll_loss", "linear_cross_entropy", "triplet_margin_with_distance_loss",
    "GaussianNLLLoss", "LinearCrossEntropyLoss", "TripletMarginWithDistanceLoss",
}  # fmt: skip


def _refusal(what: str) -> NotImplementedError:
    return NotImplementedError(
        f"torch.jit.script compiles torch's own losses only, and cannot compile lossops.{what}: "
        "use torch.compile, torch.export or torch.jit.trace"
    )


def _torchs_function(ours: Callable) -> Callable:
    """What is compiled for a function of ours."""
    name = ours.__name__
    if name not in TORCHS or name in _BEYOND_SCRIPT:
        raise _refusal(f"functional.{name}")
    return TORCHS[name]


def _torchs_module(self: torch.nn.Module) -> torch.nn.Module:
    """What is compiled for a module of ours, and what a model that is compiled then holds."""
    ours = next(cls for cls in type(self).__mro__ if cls in _MODULES)
    if type(self).forward is not ours.forward:  # somebody's own
        return self
    theirs = getattr(torch.nn, ours.__name__, None)
    if theirs is None or ours.__name__ in _BEYOND_SCRIPT:
        raise _refusal(f"nn.{ours.__name__}")
    known = inspect.signature(theirs).parameters
    for name, option in inspect.signature(ours).parameters.items():
        value = getattr(self, name, option.default)
        lacks = name not in known and value != option.default
        if lacks or (name == "reduction" and value == "sample"):
            raise _refusal(f"nn.{ours.__name__}({name}={value!r})")
    module = theirs(**{name: getattr(self, name) for name in known if hasattr(self, name)})
    return module.train(self.training)


for _function in (getattr(functional, name) for name in functional.__all__):
    _function.__prepare_scriptable__ = functools.partial(_torchs_function, _function)
for _module in _MODULES:
    _module.__prepare_scriptable__ = _torchs_module
