"""How each family of losses is called to be verified, and with which inputs."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from lossops import functional
from lossops.specs.elementwise import Spec
from lossops.specs.others import Other
from lossops.specs.softmax import RowSpec, Sample
from lossops.specs.vectors import VectorSpec
from lossops.verify import row_edges
from lossops.verify.accuracy import ALLOWED_ALONE, Case, Errors, judge
from lossops.verify.row_truth import of_rows
from lossops.verify.truth import Truth, of_elements, of_vectors
from lossops.verify.values import adversarial

Batches = Iterable[tuple[Case, Truth]]
COUNT, FULL_COUNT, COUNT_OF_INTERPRETER = 20_000, 10_000_000, 2_000
HUGE = 128_256  # classes: the vocabulary size of a current language model
ROW_SHAPES = ((200, 10), (32, 1000), (2, HUGE))
VECTOR_SHAPES = ((60, 10), (20, 1000), (3, 20_000))


@dataclass
class Trial:
    """Inputs whose largest errors are compared with torch's."""

    batches: Batches
    words: str = ""
    alone: float = ALLOWED_ALONE  # allowed units where torch's error says nothing
    torch_counts: bool = True  # whether torch's error is what to compare with
    torch_decides: bool = False  # which results are NaN, where it is a matter of convention
    factor: float = 1.0  # of torch's error that the reference may have
    # Whether it is for Triton's interpreter, which is slow, or for other backends only.
    interpreter: bool | None = None


@dataclass(frozen=True)
class Family:
    """A family of losses. ``cases`` and ``trials`` take a row of lossops.specs, a dtype, a device
    and a seed. The former also take a shape, the latter whether to try as much as possible."""

    name: str
    ops: str  # how the names of its kernels' ops begin
    title: str
    unit: str  # of the errors of values and gradients, in words
    cases: Callable[..., Iterator[Case]]
    trials: Callable[..., Iterator[Trial]] = lambda *arguments: iter(())
    edges: dict[str, Callable[[Any, str], None]] | None = None  # raise what is wrong
    small: tuple[int, ...] = (3, 4)  # the shape of the cases of slow checks
    large: tuple[int, ...] = (40, 12)  # and of others
    one_thread: bool = True  # small rows: threads would wait for each other
    slack: Callable[[Any], float] = lambda spec: 0.0  # extra error that is allowed, in units


# Elementwise losses.


def _elements(spec: Spec, shape, dtype, device, seed) -> tuple[Tensor, Tensor, Tensor]:
    """Returns input, target and weight. No difference is close to a kink of the loss, for any of
    its samples of hyperparameters."""
    generator = torch.Generator().manual_seed(seed + zlib.crc32(spec.name.encode()))
    target = torch.randn(shape, dtype=torch.float64, generator=generator)
    difference = 2 * torch.randn(shape, dtype=torch.float64, generator=generator)
    for kwargs in spec.samples:
        for kink in (k for k in spec.kinks(kwargs) if abs(k) < 1e9):
            difference[(difference - kink).abs() < 0.05] = kink + 0.11
    weight = 0.5 + torch.rand(shape, dtype=torch.float64, generator=generator)
    input, target = spec.inner(target + difference, target)
    return tuple(t.to(device, dtype) for t in (input, target, weight))


def _element_case(spec: Spec, kwargs, tensors: Iterable[Tensor]) -> Case:
    def ours(x: Tensor, y: Tensor, *weight: Tensor, **options) -> Tensor:
        options |= {"weight": weight[0]} if weight else {}
        return spec.function(x, y, **kwargs, **options)

    # At a kink, a formula written by hand follows no convention for the derivative.
    by_hand = spec.torch_function is None and spec.differentiable == 1
    theirs = functools.partial(spec.written_in_torch(), **kwargs)
    kinks = tuple(spec.kinks(kwargs)) if by_hand else ()
    return Case(str(kwargs or "defaults"), [*tensors], ours, theirs, torchs_kinks=kinks)


def _element_cases(spec: Spec, dtype, device, seed, shape) -> Iterator[Case]:
    for kwargs in spec.samples:
        tensors = _elements(spec, shape, dtype, device, seed)
        yield (case := _element_case(spec, kwargs, tensors[:2]))
        yield Case(f"{case.words}, weighted", [*tensors], case.ours)


def _adversarial(spec: Spec, dtype, device, seed, count: int) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    for kwargs in spec.samples:
        for pair in adversarial(spec, kwargs, dtype, count // len(spec.samples), generator):
            tensors = [tensor.to(device) for tensor in pair]
            yield _element_case(spec, kwargs, tensors), of_elements(spec, kwargs, *tensors)


def _ordinary(spec: Spec, dtype, device, seed) -> Batches:
    for kwargs in spec.samples:
        tensors = _elements(spec, (7, 1013), dtype, device, seed)
        yield _element_case(spec, kwargs, tensors[:2]), of_elements(spec, kwargs, *tensors)


def _element_trials(spec: Spec, dtype, device, seed, full: bool) -> Iterator[Trial]:
    count = FULL_COUNT if full else COUNT
    count = count // 10 if dtype == torch.float64 else count  # extended precision is slow
    trial = functools.partial(
        Trial,
        alone=ALLOWED_ALONE + _slack(spec),
        torch_counts=spec.torch_function is not None,
        torch_decides=True,
    )
    yield trial(_adversarial(spec, dtype, device, seed, count), interpreter=False)
    few = _adversarial(spec, dtype, device, seed, COUNT_OF_INTERPRETER)
    yield trial(few, interpreter=True)
    yield trial(_ordinary(spec, dtype, device, seed), "ordinary values: ")


def _slack(spec: Spec) -> float:
    return max(spec.slack(kwargs) for kwargs in spec.samples)


def measure(
    spec: Spec, dtype: torch.dtype, count: int, seed: int = 0, device: str = "cpu"
) -> dict[str, Errors | None]:
    """Measures the errors of "lossops" and "torch" (None if it lacks a kernel) over ``count``
    adversarial values, which are split between the samples of hyperparameters."""
    ours, theirs = Errors(), Errors()
    for case, truth in _adversarial(spec, dtype, device, seed, count):
        ours.add(judge(case.ours, case, truth))
        try:
            theirs = theirs and theirs.add(judge(case.theirs, case, truth))
        except (NotImplementedError, RuntimeError):
            theirs = None
    return {"lossops": ours, "torch": theirs}


# Losses over rows of class scores.


def _row_call(spec: RowSpec, sample: Sample, x: Tensor, y: Tensor, options) -> Case:
    names = [name for name, value in options.items() if isinstance(value, Tensor)]

    def of(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(x: Tensor, *others: Tensor, reduction: str = "mean") -> Tensor:
            moved = dict(zip(names, others[sample.soft :], strict=True))
            return loss(x, others[0] if sample.soft else y, reduction, **options | moved)

        return call

    tensors = [x, *([y] if sample.soft else []), *(options[name] for name in names)]
    ours, theirs = of(spec.call(sample)), of(spec.torch_call(sample))
    return Case(str(sample), tensors, ours, theirs, other_modes=("none",))


def _row_cases(spec: RowSpec, dtype, device, seed, shape) -> Iterator[Case]:
    for sample in spec.samples:
        yield _row_call(spec, sample, *sample.tensors(shape, dtype, seed, device))


def _row_trials(spec: RowSpec, dtype, device, seed, full: bool) -> Iterator[Trial]:
    """Only the first two samples are tried with the largest number of classes."""
    for sample in spec.samples:
        for rows, classes in ROW_SHAPES:
            # With so many classes, nearly all probabilities are 0 in float16.
            known = dtype != torch.float16 or "probs" not in (sample.input, sample.target)
            if classes == HUGE and not (known and sample in spec.samples[:2]):
                continue
            shape = (20 * rows if full else rows, classes)
            tensors = sample.tensors(shape, dtype, seed, device)
            yield Trial(
                [(_row_call(spec, sample, *tensors), of_rows(spec, sample, *tensors))],
                f"{sample}, {classes} classes: ",
                alone=1.0,
                factor=2.0,
                interpreter=False if classes == HUGE else None,
            )


# Losses over rows of vectors.


def _vector_call(spec: VectorSpec, shape, dtype, device, seed, options) -> tuple[Case, list]:
    probs = options.get("input_form") == "probs"
    vectors, given = spec.tensors(shape, dtype, seed, device, probs)

    def of(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*vectors: Tensor, **reduction) -> Tensor:
            fixed = (t.to(vectors[0]) if t.is_floating_point() else t for t in given)
            return loss(*vectors, *fixed, **options, **reduction)

        return call

    words = str(options or "defaults")
    case = Case(words, vectors, of(spec.function), of(spec.torch_function), inputs=len(vectors))
    return case, given


def _vector_cases(spec: VectorSpec, dtype, device, seed, shape) -> Iterator[Case]:
    for options in spec.samples:
        yield _vector_call(spec, shape, dtype, device, seed, options)[0]


def _vector_trials(spec: VectorSpec, dtype, device, seed, full: bool) -> Iterator[Trial]:
    double = dtype == torch.float64
    for options in spec.samples:
        for rows, length in VECTOR_SHAPES:
            shape = (20 * rows if full else rows, length)
            case, given = _vector_call(spec, shape, dtype, device, seed, options)
            yield Trial(
                [(case, of_vectors(spec, case.tensors, given, options))],
                f"{case.words}, {shape}: ",
                # In float64 the exact values are torch's own, whose norm of 20,000 numbers is 5 to
                # 20 units off.
                alone=64.0 if double else ALLOWED_ALONE,
                torch_counts=not double,
                factor=2.0,
            )


# Losses without kernels of their own.


def _other_cases(spec: Other, dtype, device, seed, shape) -> Iterator[Case]:
    def call(module, **options):
        generator = torch.Generator().manual_seed(seed)
        loss = functools.partial(getattr(module, spec.name), **options)
        return spec.case(loss, generator, *shape)

    tensors, ours = call(functional, **spec.ours)
    # Older versions of torch lack linear_cross_entropy.
    theirs = call(torch_functional)[1] if hasattr(torch_functional, spec.name) else None
    tensors = [tensor.to(device, dtype) for tensor in tensors]
    yield Case("defaults", tensors, ours, theirs, len(tensors), spec.twice, other_modes=())


_PLAIN = (
    "A pass is, for each way to call the loss and each length, at most torch's own error plus one "
    "unit (for the reference, which is plain torch, twice that error plus one)"
)
FAMILIES: dict[type, Family] = {
    Spec: Family(
        "elementwise", "", "Largest errors over ordinary and adversarial values",
        "A unit is one in the last place of the exact result, or of the terms where it is a sum "
        "that cancels; 0.5 is perfect rounding. Wrong kind: NaN or infinite where the truth is "
        "not, or reversed. A pass is at most torch's own error plus one unit, or 8 where torch "
        "has no such loss.",
        _element_cases, _element_trials, small=(3, 2), large=(501,), slack=_slack,
        one_thread=False,
    ),
    RowSpec: Family(
        "softmax", "softmax_",
        "Losses over rows: largest errors with 10, 1,000 and 128,256 classes",
        "A unit is what cannot be avoided: rounding the result, and to first order what rounding "
        "each shifted logit, exponential and logarithm moves it by. In torch: its own function, "
        f"or what its users write. {_PLAIN}.",
        _row_cases, _row_trials, edges=row_edges.EDGES,
    ),
    VectorSpec: Family(
        "vectors", "vectors_",
        "Losses over vectors: largest errors, rows of 10, 1,000 and 20,000",
        "A unit of a value is relative to what it is made of: the norms of a triplet, 1 and the "
        "value for cosines and hinges; of a gradient, to the largest number of its row, or of the "
        f"terms of a cosine's. {_PLAIN}; in float64, where torch is the truth, 64 units.",
        _vector_cases, _vector_trials,
    ),
    Other: Family(
        "others", "", "", "", _other_cases, small=(5, 7), large=(5, 7),
    ),
}  # fmt: skip
