"""The benchmark cases of the losses over rows, and the steps of each contender."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench.steps import COMPILE, EAGER, FLOOR, LOSSOPS, TRITON, _on_triton
from lossops.core import backends
from lossops.specs.softmax import ROW_SPECS, RowSpec, Sample, row_spec
from lossops.verify.measure import Step

VOCABULARY, WIDE, LANGUAGE = (512, 32_000), (4096, 1000), (64, 128_256)
PICTURES = (8, 21, 512, 512)
TINY = (16, 10)


@dataclass(frozen=True)
class Case:
    """A loss over tensors of one shape."""

    loss: str
    shape: tuple[int, ...] = VOCABULARY
    sample: Sample = field(default_factory=Sample)

    @property
    def spec(self) -> RowSpec:
        return row_spec(self.loss)

    @property
    def soft(self) -> bool:
        return self.sample.soft

    def words(self) -> str:
        """Describes the case: its shape and options."""
        sizes = " × ".join(map(str, self.shape))
        options = [f"{name} {value:g}" for name, value in self.sample.kwargs.items()]
        kind = [f"target {self.sample.target}"] if self.soft else []
        return ", ".join([sizes, *kind, *(option.replace("_", " ") for option in options)])

    def quick(self) -> Case:
        small = (4, self.shape[1], 16, 16) if len(self.shape) > 2 else (4, self.shape[1] // 8)
        return Case(self.loss, small, self.sample)


def cases(losses: list[str]) -> list[Case]:
    """The cases that have goals, followed by one case for every other loss."""
    found = [
        Case("cross_entropy", VOCABULARY),
        Case("cross_entropy", WIDE),
        Case("cross_entropy", LANGUAGE),
        Case("cross_entropy", PICTURES),
        Case("kl_divergence", sample=Sample(target="logits")),
        Case("js_divergence", sample=Sample(target="logits")),
        Case("cross_entropy", sample=Sample({"label_smoothing": 0.1})),
        Case("cross_entropy", sample=Sample(target="probs")),
    ]
    have = {case.loss for case in found}
    found += [Case(row.name, sample=row.samples[0]) for row in ROW_SPECS if row.name not in have]
    found.append(Case("l1_distribution_loss"))
    return [case for case in found if case.loss in losses]


class Rows:
    """Scores that require a gradient, and a target. The gradient is kept until the next step."""

    def __init__(self, case: Case, dtype: torch.dtype, device: str):
        generator = torch.Generator(device).manual_seed(0)
        make: dict[str, Any] = {"device": device, "generator": generator}
        input = torch.randn(case.shape, **make)
        if case.sample.input == "log_probs":
            input = input.log_softmax(1)
        self.input = input.to(dtype).requires_grad_()
        if case.soft:
            target = torch.randn(case.shape, **make)
            self.target = (target.softmax(1) if case.sample.target == "probs" else target).to(dtype)
        else:
            rows = (case.shape[0], *case.shape[2:])
            self.target = torch.randint(case.shape[1], rows, **make)
        self.options = case.sample.options(case.shape[1], dtype, device)
        self.bytes = self.input.numel() * dtype.itemsize

    def train(self, loss: Callable[..., Tensor]) -> Step:
        def step() -> None:
            self.input.grad = None
            loss(self.input, self.target, **self.options).backward()

        return step

    def floor(self) -> Step:
        """An operation that moves as many bytes as a fused step has to. With labels it doubles the
        scores. With a target of the scores' size it adds the two."""
        together = self.target.shape == self.input.shape

        def step() -> None:
            self.input.grad = None
            with torch.no_grad():
                self.input.grad = (
                    torch.add(self.input, self.target) if together else torch.mul(self.input, 2)
                )

        return step


def contenders(case: Case, rows: Rows, compiled: bool = True) -> dict[str, Step]:
    """The steps to compare, by name."""
    in_torch = case.spec.torch_call(case.sample)
    steps = {
        FLOOR: rows.floor(),
        LOSSOPS: rows.train(case.spec.call(case.sample)),
        EAGER: rows.train(in_torch),
    }
    if "triton" in backends.backends_for(rows.input.device.type):
        steps[TRITON] = _on_triton(steps[LOSSOPS])
    if compiled:
        torch.compiler.reset()
        steps[COMPILE] = rows.train(torch.compile(in_torch, dynamic=False))
    return steps


class ModelOutput(torch.autograd.Function):
    """A non-leaf tensor of scores, as a model produces them, which may be overwritten. Its
    backward, which stands for the model's, allocates nothing."""

    @staticmethod
    def forward(ctx, numbers: Tensor) -> Tensor:
        return numbers.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> None:
        return None
