"""Support for ``torch.jit.script``, which compiles Python and cannot compile calls of our kernels.

A loss that torch has as well is compiled as torch's loss: the results are the same, and the script
can be saved. A loss that torch lacks is rejected with a message that names the alternatives.
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
    """Returns the function of torch that is compiled in place of one of ours."""
    name = ours.__name__
    if name not in TORCHS or name in _BEYOND_SCRIPT:
        raise _refusal(f"functional.{name}")
    return TORCHS[name]


def _torchs_module(self: torch.nn.Module) -> torch.nn.Module:
    """Returns the module of torch that is compiled in place of one of ours. The compiled model
    contains this module."""
    ours = next(cls for cls in type(self).__mro__ if cls in _MODULES)
    if type(self).forward is not ours.forward:  # overridden in a subclass
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
    options = {name: getattr(self, name) for name in known if hasattr(self, name)}
    if isinstance(options.get("pos_weight"), float | int):  # torch's module takes a tensor only
        options["pos_weight"] = torch.tensor(float(options["pos_weight"]))
    return theirs(**options).train(self.training)


for _function in (getattr(functional, name) for name in functional.__all__):
    _function.__prepare_scriptable__ = functools.partial(_torchs_function, _function)
for _module in _MODULES:
    _module.__prepare_scriptable__ = _torchs_module
