"""The description of an elementwise loss for tests, benchmarks, plots and documentation. The rows
are in :mod:`lossops.specs.elementwise`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from lossops import functional
from lossops.elementwise import reference

Domain = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def reduced(loss: Tensor, reduction: str) -> Tensor:
    return loss if reduction == "none" else getattr(loss, reduction)()


def _anything(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return input, target


@dataclass(frozen=True)
class Spec:
    """The description of an elementwise loss."""

    name: str  # in lossops.functional
    kernel: str  # its name in the kernels and in lossops.elementwise.reference
    module: type[torch.nn.Module]
    formula: str  # with d = x - y
    samples: tuple[dict[str, float], ...] = ({},)  # hyperparameters to test with; defaults first
    # The differences x - y at which the loss or its derivatives jump.
    kinks: Callable[[dict[str, float]], Iterable[float]] = lambda kwargs: ()
    differentiable: int = 2  # number of derivatives that are not 0 everywhere, away from kinks
    divides_by_weight: bool = False  # a weighted mean divides by the sum of weights
    source: str = ""
    refused: tuple[tuple[dict[str, Any], type[Exception], str], ...] = field(default=())

    # Its name in lossops.functional, if several rows share a function.
    called: str = ""
    # Called instead of a function that takes more than an input and a target.
    through: Callable[..., Tensor] | None = None
    through_torch: Callable[..., Tensor] | None = None
    # Whether it compares a prediction with a measurement. The report trains and plots such losses.
    regression: bool = False
    # Map arbitrary numbers to valid inputs and targets: `inner` maps random numbers and avoids the
    # boundary of the domain, `folded` maps all numbers there are and includes the boundary.
    inner: Domain = _anything
    folded: Domain = _anything
    # Effect of a target whose shape differs from the input's: "warns", "broadcasts" or "raises".
    other_shapes: str = "warns"
    expands_weight: bool = False  # a weight of another shape is broadcast to the input's
    integers: type[Exception] = NotImplementedError  # raised for integer tensors
    takes_integers: bool = False  # accepts integers as torch does, without kernels
    slope_without_input: bool = False  # the derivative by the input does not depend on it
    # Extra error that its value may have compared with other losses, in units in the last place.
    slack: Callable[[dict[str, float]], float] = lambda kwargs: 0.0
    # Converts input, target and keyword arguments to those of torch's function.
    for_torch: Callable[..., tuple[Tensor, Tensor, dict]] = lambda x, y, **kwargs: (x, y, kwargs)

    # The formula as users of torch write it, if torch lacks the loss. By default, it is that of the
    # reference, which is more careful and slower.
    users_formula: Callable[..., Tensor] | None = None

    # Converts hyperparameters to those of the kernels.
    params: Callable[[dict[str, float]], tuple[float, ...]] = lambda kwargs: tuple(kwargs.values())

    @property
    def function(self) -> Callable[..., Tensor]:
        """The loss, as a function of an input and a target."""
        return self.through or getattr(functional, self.public_name)

    @property
    def torch_function(self) -> Callable[..., Tensor] | None:
        """Torch's own, if it has one."""
        return self.through_torch or getattr(torch_functional, self.public_name, None)

    @property
    def torch_module(self) -> type[torch.nn.Module] | None:
        return getattr(torch.nn, self.module.__name__, None)

    @property
    def public_name(self) -> str:
        return self.called or self.name

    @property
    def defaults(self) -> dict[str, float]:
        return self.samples[0]

    def in_torch(self, input: Tensor, target: Tensor, reduction: str = "mean", **kwargs) -> Tensor:
        """The loss as a torch user would write it: torch's function, or its formula in torch."""
        if self.torch_function is not None:
            input, target, kwargs = self.for_torch(input, target, **kwargs)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the warning about kl_div's mean
                return self.torch_function(input, target, reduction=reduction, **kwargs)
        params = self.params({**self.defaults, **kwargs})
        value = reference.FORMULAS[self.kernel](input, target, *params)
        return reference.reduce(value, reduction)

    def written_in_torch(self) -> Callable[..., Tensor]:
        """Torch's own function, or else the loss as a user writes it in torch. It adds nothing that
        takes time."""
        formula = self.users_formula or reference.FORMULAS[self.kernel]

        def by_formula(x: Tensor, y: Tensor, reduction: str = "mean", **kwargs) -> Tensor:
            return reduced(formula(x, y, *self.params({**self.defaults, **kwargs})), reduction)

        def converted(x: Tensor, y: Tensor, reduction: str = "mean", **kwargs) -> Tensor:
            x, y, kwargs = self.for_torch(x, y, **{**self.defaults, **kwargs})
            return self.torch_function(x, y, reduction=reduction, **kwargs)

        if self.torch_function is None:
            return by_formula
        return self.torch_function if self.regression else converted

    # Passes over memory of the input's size in a training step with a scalar reduction: it reads
    # input and target, and writes the gradient.
    passes_per_step: int = 3
    passes_per_forward: int = 2
