"""One row per loss over rows of class scores; like :mod:`lossops.specs.elementwise`.

Tests, benchmarks, plots and documentation read these rows, the library itself never does.
"""

from __future__ import annotations

import inspect
import zlib
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from lossops import functional
from lossops.softmax import classification, divergences, log_probs
from lossops.specs import softmax_in_torch as in_torch
from lossops.specs.spec import declared, reduced

Loss = in_torch.Loss


@dataclass(frozen=True)
class Sample:
    """One way to call a loss: options, and the forms of input and target."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    target: str = "labels"  # or "logits", "log_probs", "probs"
    input: str = "logits"
    ignored: bool = False  # whether some labels are ignored
    per_class: str = ""  # the option that takes a tensor with one number per class

    def __str__(self) -> str:
        words = [f"{name}={value}" for name, value in self.kwargs.items()]
        words += [f"{self.per_class} per class"] if self.per_class else []
        words += ["some ignored"] if self.ignored else []
        return ", ".join([f"{self.input} to {self.target}", *words])

    @property
    def soft(self) -> bool:
        return self.target != "labels"

    def options(self, classes: int, dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
        """The keyword arguments for this number of classes."""
        if not self.per_class:
            return dict(self.kwargs)
        weight = 0.25 + torch.rand(classes, generator=_generator(classes), dtype=torch.float64)
        return self.kwargs | {self.per_class: weight.to(device, dtype)}

    def inputs(self, shape, dtype: torch.dtype, generator, spread: float = 1.5) -> Tensor:
        """Scores, with the classes in dimension 1. Some rows are flat, others peaked."""
        scale = torch.rand((shape[0], *[1] * (len(shape) - 1)), generator=generator)
        numbers = torch.randn(shape, dtype=torch.float64, generator=generator)
        return _as_form(numbers * spread * 4 ** (2 * scale - 1), self.input).to(dtype)

    def targets(self, shape, dtype: torch.dtype, generator, near: Tensor | None = None) -> Tensor:
        """Labels, or distributions. If the input is logits, every second distribution is close to
        that of ``near``."""
        if not self.soft:
            rows = (shape[0], *shape[2:])
            labels = torch.randint(shape[1], rows, generator=generator)
            if self.ignored and len(labels) > 1:
                labels[1::3] = self.kwargs.get("ignore_index", -100)
            return labels
        numbers = 1.5 * torch.randn(shape, dtype=torch.float64, generator=generator)
        if near is not None and self.input == "logits":
            noise = torch.randn(shape, dtype=torch.float64, generator=generator)
            numbers[::2] = (near.double() + 1e-2 * noise)[::2]
        return _as_form(numbers, self.target).to(dtype)

    def tensors(
        self, shape, dtype: torch.dtype, seed: int = 0, device: str = "cpu"
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Returns input, target and keyword arguments."""
        generator = _generator(seed + zlib.crc32(f"{self}{tuple(shape)}".encode()))
        input = self.inputs(shape, dtype, generator)
        target = self.targets(shape, dtype, generator, near=input)
        return input.to(device), target.to(device), self.options(shape[1], dtype, device)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _as_form(numbers: Tensor, form: str) -> Tensor:
    if form == "logits":
        return numbers
    if form == "log_probs":
        return numbers.log_softmax(1)
    return 0.9 * numbers.softmax(1) + 0.1 / numbers.shape[1]  # not 0 in half precision


@dataclass(frozen=True)
class RowSpec:
    """The description of a loss over rows of class scores."""

    public: Loss  # the function
    kernel: str  # its name in the kernels and in lossops.softmax.reference
    formula: str  # z the logits, q = softmax(z), p the target's distribution, y its label
    samples: tuple[Sample, ...]  # the plainest first
    source: str
    sign: float = 1.0  # -1 where the function returns minus the kernel's loss
    parameter: str | None = None  # the keyword of the loss's own hyperparameter, such as γ
    symmetric: bool = False  # with respect to input and target
    bounded: bool = False  # whether it is finite even if the label is impossible

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.public.__name__

    @property
    def function(self) -> Loss:
        return getattr(functional, self.name)

    @property
    def module(self) -> type[torch.nn.Module] | None:
        return getattr(self.public, "module", None)

    def own_parameter(self, options: dict[str, Any]) -> float | None:
        """The loss's own hyperparameter in a call with these options."""
        if self.parameter is None:
            return None
        default = inspect.signature(self.public).parameters[self.parameter].default
        return options.get(self.parameter, default)

    @property
    def torchs_own(self) -> bool:
        """Whether torch has the loss."""
        return hasattr(torch_functional, self.name)

    @property
    def in_torch(self) -> Loss:
        """torch's function, or the loss as torch users write it."""
        return in_torch.written(self.name, self.kernel, self.parameter)

    def loss(self, input: Tensor, target: Tensor, reduction: str = "mean", **kwargs) -> Tensor:
        """Calls the function as a training step does. If it has no reduction, torch reduces."""
        if self.name != "log_prob_of":
            return self.function(input, target, reduction=reduction, **kwargs)
        return reduced(self.function(input, target, dim=1, **kwargs), reduction)

    def call(self, sample: Sample) -> Loss:
        """The loss with the arguments that state the forms of input and target. Like ``in_torch``,
        it adds one Python call, because benchmarks of small tensors measure that, too."""
        if self.name == "log_prob_of":
            return self.loss
        function, forms = self.function, self.forms(sample)

        def loss(input: Tensor, target: Tensor, reduction: str = "mean", **kwargs) -> Tensor:
            return function(input, target, reduction=reduction, **forms, **kwargs)

        return loss

    def forms(self, sample: Sample) -> dict[str, str]:
        if not self.takes_forms:
            return {}
        forms = {} if sample.input == "logits" else {"input_form": sample.input}
        return forms | ({"target_form": sample.target} if sample.soft else {})

    def torch_call(self, sample: Sample) -> Loss:
        """The same for the loss in torch."""
        if not self.takes_forms:
            return self.in_torch

        def loss(input: Tensor, target: Tensor, reduction: str = "mean", **kwargs) -> Tensor:
            return self.in_torch(
                input, target, reduction, input_form=sample.input, target_form=sample.target,
                **kwargs,
            )  # fmt: skip

        return loss

    @property
    def takes_forms(self) -> bool:
        """Whether it compares two distributions, given in several forms."""
        return any(sample.target == "logits" for sample in self.samples)

    def passes_per_step(self, sample: Sample) -> int:
        """Passes over memory of the input's size in a training step with a scalar reduction: it
        reads the scores and a target of distributions, and writes the gradient."""
        return 3 if sample.soft else 2

    def passes_per_forward(self, sample: Sample) -> int:
        return 2 if sample.soft else 1


ROW_SPECS: tuple[RowSpec, ...] = tuple(
    RowSpec(function, **{**row, "samples": tuple(Sample(**sample) for sample in row["samples"])})
    for function, row in declared(classification, log_probs, divergences)
)


def row_spec(name: str) -> RowSpec:
    """The row of a loss, by its name in ``lossops.functional``."""
    for row in ROW_SPECS:
        if row.name == name:
            return row
    raise KeyError(f"no loss named {name!r}; there are {', '.join(row.name for row in ROW_SPECS)}")
