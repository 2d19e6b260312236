"""The description of an elementwise loss for tests, benchmarks, plots and documentation. The rows
are in :mod:`lossops.specs.elementwise`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from lossops import functional
from lossops.elementwise import reference
from lossops.elementwise.call import broadcast_loss
from lossops.specs.domains import DOMAINS


def declared(*modules: ModuleType) -> Iterator[tuple[Callable[..., Tensor], dict[str, Any]]]:
    """The functions that the modules declare, each with its rows."""
    for module in modules:
        for function in vars(module).values():
            if getattr(function, "__module__", "") == module.__name__:
                yield from ((function, row) for row in getattr(function, "rows", ()))


def reduced(loss: Tensor, reduction: str) -> Tensor:
    return loss if reduction == "none" else getattr(loss, reduction)()


@dataclass(frozen=True)
class Spec:
    """The description of an elementwise loss."""

    name: str  # in lossops.functional, unless several rows share a function
    public: Callable[..., Tensor]  # the function
    kernel: str  # its name in the kernels and in lossops.elementwise.reference
    formula: str  # with d = x - y
    source: str
    samples: tuple[dict[str, float], ...] = ({},)  # hyperparameters to test with; defaults first
    # Converts hyperparameters to those of the kernels.
    params: Callable[[dict[str, float]], tuple[float, ...]] = lambda kwargs: tuple(kwargs.values())
    # The differences x - y at which the loss or its derivatives jump.
    kinks: Callable[[dict[str, float]], Iterable[float]] = lambda kwargs: ()
    differentiable: int = 2  # number of derivatives that are not 0 everywhere, away from kinks
    # Whether it compares a prediction with a measurement. The report trains and plots such losses.
    regression: bool = False
    divides_by_weight: bool = False  # a weighted mean divides by the sum of weights
    # The function takes two tensors, whose difference is the kernel's input, before the target.
    takes_a_difference: bool = False
    domains: tuple[str, str] = ("number", "number")  # of input and target, see DOMAINS
    # Effect of a target whose shape differs from the input's: "warns", "broadcasts" or "raises".
    other_shapes: str = "warns"
    expands_weight: bool = False  # a weight of another shape is broadcast to the input's
    integers: type[Exception] = NotImplementedError  # raised for integer tensors
    takes_integers: bool = False  # accepts integers as torch does, without kernels
    slope_without_input: bool = False  # the derivative by the input does not depend on it
    # Extra error that its value may have compared with other losses, in units in the last place.
    slack: Callable[[dict[str, float]], float] = lambda kwargs: 0.0

    # The formula as users of torch write it, if torch lacks the loss. By default, it is that of the
    # reference, which is more careful and slower.
    users_formula: Callable[..., Tensor] | None = None

    # Passes over memory of the input's size in a training step with a scalar reduction: it reads
    # input and target, and writes the gradient.
    passes_per_step: int = 3
    passes_per_forward: int = 2

    @property
    def function(self) -> Callable[..., Tensor]:
        """The loss, as a function of an input and a target."""
        if self.takes_a_difference:
            return self.of_a_difference
        return getattr(functional, self.public_name)

    def of_a_difference(
        self, input: Tensor, target: Tensor, reduction="mean", weight=None, **kwargs
    ) -> Tensor:
        """The loss of a difference that is already computed."""
        params = self.params({**self.defaults, **kwargs})
        return broadcast_loss(self.kernel, input, target, weight, reduction, *params)

    @property
    def public_name(self) -> str:
        return self.public.__name__

    @property
    def module(self) -> type[torch.nn.Module]:
        return self.public.module

    @property
    def defaults(self) -> dict[str, float]:
        return self.samples[0]

    def inner(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Maps random numbers to valid inputs and targets, off the boundary of their domains."""
        own, others = (DOMAINS[name].inner for name in self.domains)
        return own(x), others(y)

    def folded(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Maps all numbers there are to valid inputs and targets, including the boundary."""
        own, others = (DOMAINS[name].folded for name in self.domains)
        return own(x, y), others(y, x)

    @property
    def torch_function(self) -> Callable[..., Tensor] | None:
        """torch's function, if it has one, of an input and a target."""
        torchs = getattr(torch_functional, self.public_name, None)
        if torchs is None or not self.takes_a_difference:
            return torchs
        return lambda x, y, **kwargs: torchs(x, torch.zeros_like(x), y, **kwargs)

    @property
    def torch_module(self) -> type[torch.nn.Module] | None:
        return getattr(torch.nn, self.module.__name__, None)

    @staticmethod
    def for_torch(
        input: Tensor, target: Tensor, label_smoothing: float = 0.0, **kwargs
    ) -> tuple[Tensor, Tensor, dict]:
        """Converts input, target and keyword arguments to those of torch's function."""
        if label_smoothing:
            target = target * (1 - label_smoothing) + 0.5 * label_smoothing
        if "pos_weight" in kwargs:
            kwargs["pos_weight"] = torch.as_tensor(kwargs["pos_weight"]).to(input)
        return input, target, kwargs

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
        """torch's own function, or else the loss as a user writes it in torch. It adds nothing that
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
