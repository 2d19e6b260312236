"""What tests, benchmarks, plots and documents need to know about an elementwise loss; the rows of
which stand in :mod:`lossops.specs.elementwise`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lossops import functional
from lossops.elementwise import reference

Domain = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _anything(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return input, target


@dataclass(frozen=True)
class Spec:
    """What is known of an elementwise loss."""

    name: str  # in lossops.functional
    kernel: str  # its name in the kernels and in lossops.elementwise.reference
    module: type[torch.nn.Module]
    formula: str  # with d = x - y
    samples: tuple[dict[str, float], ...] = ({},)  # hyperparameters to test with; defaults first
    # Where the loss or its derivatives jump, as differences x - y.
    kinks: Callable[[dict[str, float]], Iterable[float]] = lambda kwargs: ()
    differentiable: int = 2  # how often, away from kinks, with a derivative that is not all zero
    torch_function: Callable[..., Tensor] | None = None  # torch's own, where it has one
    torch_module: type[torch.nn.Module] | None = None
    divides_by_weight: bool = True  # a weighted mean divides by the sum of weights
    source: str = ""
    refused: tuple[tuple[dict[str, Any], type[Exception], str], ...] = field(default=())

    # What it is called in lossops.functional, where rows share a function.
    called: str = ""
    # What is called instead, where the function takes more than an input and a target.
    through: Callable[..., Tensor] | None = None
    # Whether it compares a prediction with a measurement: the report trains and draws those.
    regression: bool = True
    # Makes valid inputs and targets of any numbers, as `inner` of random ones, without the borders
    # of the domain; `folded` of all there are, with them.
    inner: Domain = _anything
    folded: Domain = _anything
    # What a target of another shape than the input's does: "warns", "broadcasts" or "raises".
    other_shapes: str = "warns"
    expands_weight: bool = False  # a weight of another shape is broadcast to the input's
    integers: type[Exception] = NotImplementedError  # raised for them
    takes_integers: bool = False  # nothing is raised: without kernels, as torch takes them
    slope_without_input: bool = False  # the derivative by the input does not depend on it
    # Units in the last place that its value may be off beyond what other losses may.
    slack: Callable[[dict[str, float]], float] = lambda kwargs: 0.0
    # The call as torch's function takes it: input, target and keyword arguments.
    for_torch: Callable[..., tuple[Tensor, Tensor, dict]] = lambda x, y, **kwargs: (x, y, kwargs)

    # The hyperparameters as the kernels take them.
    params: Callable[[dict[str, float]], tuple[float, ...]] = lambda kwargs: tuple(kwargs.values())

    @property
    def function(self) -> Callable[..., Tensor]:
        """The loss of an input and a target."""
        return self.through or getattr(functional, self.public_name)

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
                warnings.simplefilter("ignore")  # of kl_div's mean
                return self.torch_function(input, target, reduction=reduction, **kwargs)
        params = self.params({**self.defaults, **kwargs})
        value = reference.FORMULAS[self.kernel](input, target, *params)
        return reference.reduce(value, reduction)

    # Passes over memory of the input's size in a training step, with a scalar reduction: input and
    # target are read, the gradient is written.
    passes_per_step: int = 3
    passes_per_forward: int = 2
