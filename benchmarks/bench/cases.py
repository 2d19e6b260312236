"""What is measured: losses over tensors of one shape, and the training steps of each contender."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

import lossops
from lossops.core import backends
from lossops.specs import elementwise
from lossops.specs.others import OTHERS
from lossops.specs.softmax import RowSpec, Sample, row_spec
from lossops.specs.vectors import VectorSpec, vector_spec
from lossops.verify.measure import Step

Loss = Callable[..., Tensor]
FLOOR, LOSSOPS, TRITON, EAGER, COMPILE = "floor", "lossops", "triton", "eager", "compile"
PRODUCTS, CHUNKED = "products", "chunked"  # only of a linear layer with its loss


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def elements(count: int) -> str:
    """Formats a power of two as one."""
    exponent = count.bit_length() - 1
    return f"2^{exponent}" if count == 1 << exponent else f"{count:,}"


class ModelOutput(torch.autograd.Function):
    """A non-leaf tensor, as a model produces it, which may be overwritten. Its backward, which
    stands for the model's, allocates nothing."""

    @staticmethod
    def forward(ctx, numbers: Tensor) -> Tensor:
        return numbers.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> None:
        return None


class Problem:
    """The tensors of a training step: those that require a gradient, the others, and options of the
    loss. Gradients are kept until the next step, as in training."""

    def __init__(
        self,
        leaves: Sequence[Tensor],
        others: Sequence[Tensor] = (),
        options: dict[str, Any] | None = None,
        pair: bool = False,  # the target is as large as the input, and read together with it
    ):
        self.leaves, self.others, self.options = list(leaves), list(others), options or {}
        self.pair = pair
        self.bytes = sum(leaf.nbytes for leaf in self.leaves)
        self.device = self.leaves[0].device.type

    @property
    def input(self) -> Tensor:
        return self.leaves[0]

    @property
    def target(self) -> Tensor:
        return self.others[0]

    def of_model(self) -> Problem:
        """The same with leaves that may be overwritten."""
        leaves = [ModelOutput.apply(leaf) for leaf in self.leaves]
        return Problem(leaves, self.others, self.options)

    def forget(self) -> None:
        """Frees the gradients, as ``zero_grad()`` does."""
        for leaf in self.leaves:
            leaf.grad = None

    def train(self, loss: Loss, grad_output: Tensor | None = None, **options) -> Step:
        options = self.options | options

        def step() -> None:
            self.forget()
            loss(*self.leaves, *self.others, **options).backward(grad_output)

        return step

    def floor(self) -> None:
        """Moves as many bytes as a fused step: adds the target of a pair to the input, or else
        doubles what wants a gradient."""
        with torch.no_grad():
            for leaf in self.leaves:
                leaf.grad = None
                leaf.grad = torch.add(leaf, self.target) if self.pair else torch.mul(leaf, 2)


class Case:
    """A loss over tensors of one shape, with its ``spec`` and its ``problem(dtype, device)``."""

    loss: str
    shape: tuple[int, ...]
    prefix: ClassVar[str]  # of the kind of its results
    floor: ClassVar[str] = FLOOR  # the name of the smallest possible step
    rounds: ClassVar[int] = 9
    compiles: bool = True  # whether the compiled loss fits into memory

    @property
    def ours(self) -> Loss:
        return self.spec.function

    @property
    def in_torch(self) -> Loss | None:
        """The loss as users of torch write it."""
        return self.spec.torch_function

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def words(self) -> str:
        """Describes the case: its shape and options."""
        return " × ".join(map(str, self.shape))

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies its results, besides the loss."""
        return {"case": self.words(), "shape": list(self.shape)}

    def losses(self, compiled: bool) -> dict[str, Loss]:
        """The loss of each contender."""
        found = {LOSSOPS: self.ours}
        if self.in_torch:
            found[EAGER] = self.in_torch
        if compiled and self.compiles:
            torch.compiler.reset()
            found[COMPILE] = torch.compile(self.in_torch, dynamic=False)
        return found

    def steps(self, problem: Problem, compiled: bool = True) -> dict[str, Step]:
        """The steps to compare, by contender."""
        losses = self.losses(compiled)
        steps = {self.floor: problem.floor}
        steps |= {name: problem.train(loss) for name, loss in losses.items()}
        if "triton" in backends.backends_for(problem.device):
            steps[TRITON] = lossops.backend("triton")(steps[LOSSOPS])  # a context and a decorator
        return steps

    def held(self, peaks: dict[str, int], problem: Problem) -> dict[str, Any]:
        """Peaks of memory relative to a gradient."""
        return {"gradients": {name: peak / problem.bytes for name, peak in peaks.items()}}


@dataclass(frozen=True)
class Elements(Case):
    """An elementwise loss."""

    loss: str
    shape: tuple[int]
    prefix: ClassVar[str] = ""
    rounds: ClassVar[int] = 15

    @property
    def spec(self) -> elementwise.Spec:
        return elementwise.spec(self.loss)

    def words(self) -> str:
        return elements(self.count)

    @property
    def facts(self) -> dict[str, Any]:
        return {"count": self.count}

    @property
    def ours(self) -> Loss:
        return functools.partial(self.spec.function, **self.spec.defaults)

    @property
    def in_torch(self) -> Loss:
        return self.spec.written_in_torch()

    def problem(self, dtype: torch.dtype, device: str) -> Problem:
        generator = torch.Generator(device).manual_seed(0)
        make: dict[str, Any] = {"dtype": dtype, "device": device, "generator": generator}
        numbers = torch.randn(self.shape, **make), torch.randn(self.shape, **make)
        input, target = self.spec.inner(*numbers)
        return Problem([input.requires_grad_()], [target], pair=True)

    def passes(self, forward: bool) -> int:
        """Passes over memory of the input's size that a fused implementation needs, forward alone
        or in a step."""
        return self.spec.passes_per_forward if forward else self.spec.passes_per_step


VOCABULARY, WIDE, LANGUAGE = (512, 32_000), (4096, 1000), (64, 128_256)
PICTURES = (8, 21, 512, 512)


@dataclass(frozen=True)
class Rows(Case):
    """A loss over rows of class scores."""

    loss: str
    shape: tuple[int, ...] = VOCABULARY
    sample: Sample = field(default_factory=Sample)
    prefix: ClassVar[str] = "rows_"

    @property
    def spec(self) -> RowSpec:
        return row_spec(self.loss)

    @property
    def plain(self) -> bool:
        """Whether it is nothing but rows of scores, without options."""
        return len(self.shape) == 2 and self.sample == self.spec.samples[0]

    def words(self) -> str:
        options = [f"{name} {value:g}" for name, value in self.sample.kwargs.items()]
        kind = [f"target {self.sample.target}"] if self.sample.soft else []
        more = (*kind, *(option.replace("_", " ") for option in options))
        return ", ".join([super().words(), *more])

    @property
    def ours(self) -> Loss:
        return self.spec.call(self.sample)

    @property
    def in_torch(self) -> Loss:
        return self.spec.torch_call(self.sample)

    def problem(self, dtype: torch.dtype, device: str) -> Problem:
        generator = torch.Generator(device).manual_seed(0)
        make: dict[str, Any] = {"device": device, "generator": generator}
        input = torch.randn(self.shape, **make)
        if self.sample.input == "log_probs":
            input = input.log_softmax(1)
        if self.sample.soft:
            target = torch.randn(self.shape, **make)
            target = (target.softmax(1) if self.sample.target == "probs" else target).to(dtype)
        else:
            target = torch.randint(self.shape[1], (self.shape[0], *self.shape[2:]), **make)
        options = self.sample.options(self.shape[1], dtype, device)
        return Problem([input.to(dtype).requires_grad_()], [target], options, self.sample.soft)

    def passes(self, forward: bool) -> int:
        per = self.spec.passes_per_forward if forward else self.spec.passes_per_step
        return per(self.sample)


@dataclass(frozen=True)
class Vectors(Case):
    """A loss over rows of vectors."""

    loss: str
    shape: tuple[int, int] = (16_384, 1024)
    prefix: ClassVar[str] = "vectors_"

    @property
    def spec(self) -> VectorSpec:
        return vector_spec(self.loss)

    @property
    def compiles(self) -> bool:
        return self.spec.compiles

    def problem(self, dtype: torch.dtype, device: str) -> Problem:
        vectors, given = self.spec.tensors(self.shape, dtype, device=device)
        return Problem([v.requires_grad_() for v in vectors], given, self.spec.samples[0])


@dataclass(frozen=True)
class WithoutKernels(Case):
    """A loss that is computed by torch, or by the kernels of other losses."""

    loss: str
    shape: tuple[int, int]
    prefix: ClassVar[str] = "others_"

    def _made(self, module) -> tuple[list[Tensor], Loss]:
        (other,) = (other for other in OTHERS if other.name == self.loss)
        return other.case(getattr(module, self.loss), torch.Generator().manual_seed(0), *self.shape)

    @property
    def ours(self) -> Loss:
        return self._made(lossops.functional)[1]

    @property
    def in_torch(self) -> Loss | None:
        return self._made(torch_functional)[1] if hasattr(torch_functional, self.loss) else None

    def problem(self, dtype: torch.dtype, device: str) -> Problem:
        leaves, _ = self._made(lossops.functional)
        return Problem([leaf.to(device, dtype).requires_grad_() for leaf in leaves])


LINEAR = "linear_cross_entropy"


def _in_two_steps(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return torch_functional.cross_entropy(torch_functional.linear(x, weight), labels)


def _chunked(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return torch_functional.linear_cross_entropy(x, weight, labels, options=options)


@dataclass(frozen=True)
class Linear(Case):
    """Cross entropy of a linear layer, compared with its matrix products alone."""

    loss: str = LINEAR
    shape: tuple[int, int, int] = (4096, 1024, 32_000)  # rows, features, classes
    prefix: ClassVar[str] = "linear_"
    floor: ClassVar[str] = PRODUCTS
    rounds: ClassVar[int] = 3

    def words(self) -> str:
        return "{} × {} to {}".format(*self.shape)

    @property
    def ours(self) -> Loss:
        return lossops.functional.linear_cross_entropy

    @property
    def in_torch(self) -> Loss:
        return _in_two_steps

    def problem(self, dtype: torch.dtype, device: str) -> Problem:
        rows, features, classes = self.shape
        generator = torch.Generator(device).manual_seed(0)
        make: dict[str, Any] = {"device": device, "generator": generator}
        x = torch.randn(rows, features, dtype=dtype, **make)
        weight = torch.randn(classes, features, dtype=dtype, **make) / features**0.5
        labels = torch.randint(classes, (rows,), **make)
        problem = Problem([x.requires_grad_(), weight.requires_grad_()], [labels])
        of_logits = torch.full((rows, classes), 1e-4, dtype=dtype, device=device)  # their gradient

        def products() -> None:
            with torch.no_grad():
                torch_functional.linear(x, weight)
                x.grad, weight.grad = of_logits @ weight, of_logits.T @ x

        problem.floor = products
        return problem

    def losses(self, compiled: bool) -> dict[str, Loss]:
        has_chunks = hasattr(torch.nn, "LinearCrossEntropyOptions")
        return super().losses(compiled) | ({CHUNKED: _chunked} if has_chunks else {})

    def held(self, peaks: dict[str, int], problem: Problem) -> dict[str, Any]:
        """Peaks of memory beyond the gradients, relative to the logits."""
        rows, _, classes = self.shape
        size = rows * classes * problem.input.itemsize
        return {"logits": {name: (n - problem.bytes) / size for name, n in peaks.items()}}
