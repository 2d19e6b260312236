"""The measured steps: forward and backward of a loss, for each contender."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import lossops
from lossops.core import backends
from lossops.specs.elementwise import Spec
from lossops.verify.measure import Step

FLOOR, LOSSOPS, TRITON, EAGER, COMPILE = "floor", "lossops", "triton", "eager", "compile"


class Tensors:
    """Predictions that require a gradient, and targets. The gradient is kept until the next step,
    as in training."""

    def __init__(self, spec: Spec, count: int, dtype: torch.dtype, device: str):
        generator = torch.Generator(device).manual_seed(0)
        make = {"dtype": dtype, "device": device, "generator": generator}
        numbers = torch.randn(count, **make), torch.randn(count, **make)
        self.input, self.target = spec.inner(*numbers)
        self.input.requires_grad_()
        self.bytes = count * dtype.itemsize

    def train(self, loss: Callable[..., Tensor], **kwargs) -> Step:
        def step() -> None:
            self.input.grad = None
            loss(self.input, self.target, **kwargs).backward()

        return step

    def add(self) -> Step:
        """The floor: an operation that reads and writes the same bytes as a fused step."""

        def step() -> None:
            self.input.grad = None
            with torch.no_grad():
                self.input.grad = torch.add(self.input, self.target)

        return step


def contenders(spec: Spec, tensors: Tensors, compiled: bool = True) -> dict[str, Step]:
    """The steps to compare, by name."""
    in_torch = spec.written_in_torch()
    steps = {
        FLOOR: tensors.add(),
        LOSSOPS: tensors.train(spec.function, **spec.defaults),
        EAGER: tensors.train(in_torch),
    }
    if "triton" in backends.backends_for(tensors.input.device.type):
        steps[TRITON] = _on_triton(steps[LOSSOPS])
    if compiled:
        torch.compiler.reset()
        steps[COMPILE] = tensors.train(torch.compile(in_torch, dynamic=False))
    return steps


def _on_triton(train: Step) -> Step:
    def step() -> None:
        with lossops.backend("triton"):
            train()

    return step
