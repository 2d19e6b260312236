"""One row per loss over rows of class scores; like :mod:`lossops.specs.elementwise`.

Tests, benchmarks, plots and documentation read these rows, the library itself never does.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lossops import functional, nn
from lossops.specs import softmax_in_torch as in_torch
from lossops.specs.spec import reduced

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

    name: str  # in lossops.functional
    kernel: str  # its name in the kernels and in lossops.softmax.reference
    formula: str  # z the logits, q = softmax(z), p the target's distribution, y its label
    samples: tuple[Sample, ...]  # the plainest first
    in_torch: Loss  # torch's function, or the loss as torch users write it
    torchs_own: bool = False  # whether torch has it
    module: type[torch.nn.Module] | None = None
    sign: float = 1.0  # -1 where the function returns minus the kernel's loss
    # The loss's own hyperparameter, γ or ε.
    parameter: tuple[str, float] | None = None  # keyword and default
    symmetric: bool = False  # with respect to input and target
    bounded: bool = False  # whether it is finite even if the label is impossible
    source: str = ""
    refused: tuple[tuple[dict[str, Any], type[Exception], str], ...] = ()

    @property
    def function(self) -> Loss:
        """The function itself."""
        return getattr(functional, self.name)

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


_COOL = {"temperature": 2.0}
_WRONG_FORM = ({"input_form": "odds"}, ValueError, "input_form should be one of")
_COLD = (({"temperature": 0.0}, ValueError, "temperature should be positive"), _WRONG_FORM)


def _pairs(*more: Sample) -> tuple[Sample, ...]:
    """Samples with both kinds of target, and with all forms."""
    return (
        Sample(target="logits"),
        Sample(),
        Sample(target="probs"),
        Sample(_COOL, target="logits"),
        Sample(target="probs", input="probs"),
        Sample(target="log_probs", input="log_probs"),
        *more,
    )


ROW_SPECS: tuple[RowSpec, ...] = (
    RowSpec(
        name="cross_entropy",
        kernel="cross_entropy",
        module=nn.CrossEntropyLoss,
        formula="-Σ_c t_c log q_c, t_c = w_c((1 - ε)p_c + ε/C)",
        samples=(
            Sample(),
            Sample({"label_smoothing": 0.1}),
            Sample(target="probs"),
            Sample({"ignore_index": 2}, ignored=True, per_class="weight"),
            Sample({"label_smoothing": 0.2}, target="probs", per_class="weight"),
            Sample({"z_loss": 1e-3}),
            Sample({"softcap": 5.0, "temperature": 1.5}),
        ),
        in_torch=in_torch.cross_entropy,
        torchs_own=True,
        source="Good, Rational Decisions, 1952",
        refused=(
            ({"label_smoothing": -0.1}, RuntimeError, "between 0.0 and 1.0"),
            ({"label_smoothing": float("nan")}, RuntimeError, "between 0.0 and 1.0"),
            ({"temperature": 0.0}, ValueError, "temperature should be positive"),
            ({"softcap": -1.0}, ValueError, "softcap should be positive"),
            ({"z_loss": float("inf")}, ValueError, "z_loss should be finite"),
        ),
    ),
    RowSpec(
        name="nll_loss",
        kernel="cross_entropy",
        module=nn.NLLLoss,
        formula="-w_y x_y, x log-probabilities",
        samples=(
            Sample(input="log_probs"),
            Sample({"ignore_index": 1}, input="log_probs", ignored=True, per_class="weight"),
        ),
        in_torch=in_torch.nll_loss,
        torchs_own=True,
        source="Fisher, On the Mathematical Foundations of Theoretical Statistics, 1922",
    ),
    RowSpec(
        name="log_prob_of",
        kernel="cross_entropy",
        formula="log q_y",
        samples=(Sample(), Sample(_COOL)),
        in_torch=in_torch.log_prob_of,
        sign=-1.0,
        source="Williams, Simple Statistical Gradient-Following Algorithms, 1992",
        refused=(({"temperature": -1.0}, ValueError, "temperature should be positive"),),
    ),
    RowSpec(
        name="focal_loss",
        kernel="focal",
        module=nn.FocalLoss,
        formula="-α_y (1 - q_y)^γ log q_y",
        samples=(
            Sample(),
            Sample({"gamma": 0.5}),
            Sample({"alpha": 0.25, "ignore_index": 0}, ignored=True),
            Sample({"gamma": 3.0}, per_class="alpha"),
        ),
        in_torch=in_torch.focal_loss,
        parameter=("gamma", 2.0),
        source="Lin et al., Focal Loss for Dense Object Detection, 2017",
        refused=(({"gamma": -1.0}, ValueError, "gamma should not be negative"),),
    ),
    RowSpec(
        name="poly_loss",
        kernel="poly",
        module=nn.PolyLoss,
        formula="w_y (-log q_y + ε(1 - q_y))",
        samples=(
            Sample(),
            Sample({"epsilon": -0.5}),
            Sample({"ignore_index": 0}, ignored=True, per_class="weight"),
        ),
        in_torch=in_torch.poly_loss,
        parameter=("epsilon", 1.0),
        source="Leng et al., PolyLoss, 2022",
        refused=(({"epsilon": "much"}, TypeError, "epsilon should be a number"),),
    ),
    RowSpec(
        name="kl_divergence",
        kernel="kl",
        module=nn.KLDivergenceLoss,
        formula="Σ_c p_c (log p_c - log q_c)",
        samples=_pairs(
            Sample({"reverse": True}, target="logits"),
            Sample({"reverse": True}, target="probs", input="probs"),
        ),
        in_torch=in_torch.by_distributions(in_torch.kl_divergence),
        source="Kullback and Leibler, On Information and Sufficiency, 1951",
        refused=_COLD,
    ),
    RowSpec(
        name="js_divergence",
        kernel="jensen_shannon",
        module=nn.JSDivergenceLoss,
        formula="½ Σ_c p_c log(p_c/m_c) + q_c log(q_c/m_c), m = ½(p + q)",
        samples=_pairs(),
        in_torch=in_torch.by_distributions(in_torch.js_divergence),
        symmetric=True,
        bounded=True,
        source="Lin, Divergence Measures Based on the Shannon Entropy, 1991",
        refused=_COLD,
    ),
    RowSpec(
        name="total_variation",
        kernel="total_variation",
        module=nn.TotalVariationLoss,
        formula="½ Σ_c |p_c - q_c|",
        samples=_pairs(),
        in_torch=in_torch.by_distributions(in_torch.total_variation),
        symmetric=True,
        bounded=True,
        source="Levin and Peres, Markov Chains and Mixing Times, 2017",
        refused=_COLD,
    ),
    RowSpec(
        name="l1_distribution_loss",
        kernel="l1_distribution",
        module=nn.L1DistributionLoss,
        formula="Σ_c |p_c - q_c|",
        samples=_pairs(),
        in_torch=in_torch.by_distributions(in_torch.l1_distribution),
        symmetric=True,
        bounded=True,
        source="Ghosh, Kumar and Sastry, Robust Loss Functions under Label Noise, 2017",
        refused=_COLD,
    ),
    RowSpec(
        name="soft_cross_entropy",
        kernel="soft_cross_entropy",
        module=nn.SoftCrossEntropyLoss,
        formula="-Σ_c p_c log q_c",
        samples=_pairs(),
        in_torch=in_torch.by_distributions(in_torch.soft_cross_entropy),
        source="Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015",
        refused=_COLD,
    ),
)


def row_spec(name: str) -> RowSpec:
    """The row of a loss, by its name in ``lossops.functional``."""
    for row in ROW_SPECS:
        if row.name == name:
            return row
    raise KeyError(f"no loss named {name!r}; there are {', '.join(row.name for row in ROW_SPECS)}")
