"""Preparations for measuring losses over rows of class scores: a check against torch, and separate
scores for contenders that overwrite them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.bench.softmax_steps import Case, Rows
from benchmarks.gpu.contenders import Contender, in_words

# The largest relative difference from torch's float32 result. It allows for log-probabilities
# rounded to bfloat16, but not for a wrong formula or reduction.
VALUE, GRADIENT = 0.05, 0.2


class Own:
    """A separate copy of the scores, for a contender that overwrites them with the gradient.

    Each call must find the scores, not the gradient of the previous call, or its result would not
    be the loss. No other contender may find the scores overwritten. So they are copied again in the
    context that is entered before the cache is flushed and the clock starts: the copy is not timed,
    and its traces in the cache are flushed. Everything else is the same for this contender, which
    keeps the advantages of overwriting: less memory and no separate output tensor.
    """

    def __init__(self, tensors: Rows):
        self.scores = tensors.input.detach()
        self.input = self.scores.clone().requires_grad_()
        self.target = tensors.target

    @contextlib.contextmanager
    def fresh(self) -> Iterator[None]:
        self.input.grad = None  # may share memory with the scores
        with torch.no_grad():
            self.input.copy_(self.scores)
        yield


def of_torch(case: Case, tensors: Rows) -> tuple[Tensor, Tensor]:
    """Value and gradient computed by torch, in at least float32."""
    input = _wide(tensors.input.detach()).requires_grad_()
    target = _wide(tensors.target) if tensors.target.is_floating_point() else tensors.target
    options = {
        name: _wide(option) if isinstance(option, Tensor) else option
        for name, option in tensors.options.items()
    }
    value = case.spec.torch_call(case.sample)(input, target, **options)
    (gradient,) = torch.autograd.grad(value, input)
    return value.detach(), gradient


def _wide(numbers: Tensor) -> Tensor:
    return numbers if numbers.dtype == torch.float64 else numbers.float()


def wrong(contender: Contender, tensors: Rows, expected: tuple[Tensor, Tensor]) -> str:
    """What is wrong with a contender's value or gradient, or "" if nothing is."""
    scores = Own(tensors) if contender.overwrites else tensors
    scores.input.grad = None
    try:
        with contender.within():
            value = contender.loss(scores.input, scores.target)
            value.backward()
        gradient = scores.input.grad
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
        tensors.input.grad = None
    return ""
