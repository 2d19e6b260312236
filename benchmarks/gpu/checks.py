"""Preparations for measuring contenders: a check of their results against torch, and separate
scores for those that overwrite them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.bench.cases import Case, Problem
from benchmarks.gpu.contenders import Contender, in_words

# The largest relative difference from torch's float32 result. It allows for log-probabilities
# rounded to bfloat16, but not for a wrong formula or reduction.
VALUE, GRADIENT = 0.05, 0.2


class Own(Problem):
    """The same problem with a separate copy of the scores, for a contender that overwrites them
    with the gradient.

    Each call must find the scores, not the gradient of the previous call, or its result would not
    be the loss. No other contender may find the scores overwritten. So they are copied again in the
    context that is entered before the cache is flushed and the clock starts: the copy is not timed,
    and its traces in the cache are flushed. Everything else is the same for this contender, which
    keeps the advantages of overwriting: less memory and no separate output tensor.
    """

    def __init__(self, problem: Problem):
        self.scores = problem.input.detach()
        super().__init__(
            [self.scores.clone().requires_grad_()], problem.others, problem.options, problem.pair
        )

    @contextlib.contextmanager
    def fresh(self) -> Iterator[None]:
        self.forget()  # the gradient may share memory with the scores
        with torch.no_grad():
            self.input.copy_(self.scores)
        yield


def of_torch(case: Case, problem: Problem) -> tuple[Tensor, Tensor]:
    """Value and gradient computed by torch, in at least float32."""
    input = _wide(problem.input.detach()).requires_grad_()
    others = [_wide(tensor) for tensor in problem.others]
    options = {name: _wide(option) for name, option in problem.options.items()}
    value = case.in_torch(input, *others, **options)
    (gradient,) = torch.autograd.grad(value, input)
    return value.detach(), gradient


def _wide(given):
    half = isinstance(given, Tensor) and given.is_floating_point() and given.itemsize < 4
    return given.float() if half else given


def wrong(contender: Contender, problem: Problem, expected: tuple[Tensor, Tensor]) -> str:
    """What is wrong with a contender's value or gradient, or "" if nothing is."""
    own = Own(problem) if contender.overwrites else problem
    own.forget()
    try:
        with contender.within():
            value = contender.loss(*own.leaves, *own.others, **own.options)
            value.backward()
        gradient = own.input.grad
        for name, ours, torchs, limit in zip(
            ("value", "gradient"), (value, gradient), expected, (VALUE, GRADIENT), strict=True
        ):
            if ours is None or ours.shape != torchs.shape:
                shape = "absent" if ours is None else f"of the shape {tuple(ours.shape)}"
                return f"wrong: its {name} is {shape}"
            # Sums over all elements: the large ones, at the labels, are few.
            off = float((ours.detach().float() - torchs).abs().sum() / torchs.abs().sum())
            if not off <= limit:  # also catches NaN
                return f"wrong: its {name} is {off:.1%} off torch's"
    except Exception as error:
        return in_words(error)
    finally:
        problem.forget()
    return ""
