"""What losses over rows of class scores need before they are measured: a check against torch, and
for those that overwrite the scores, scores of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.bench.softmax_steps import Case, Rows
from benchmarks.gpu.contenders import Contender, in_words

# The most by which a result may differ from torch's in float32, relative to it. Wide enough for
# log-probabilities that were rounded to bfloat16, far too narrow for a wrong formula or reduction.
VALUE, GRADIENT = 0.05, 0.2


class Own:
    """Scores of its own for a contender that writes the gradient over them.

    Each call has to find the scores, not the gradient of the call before, or what it computes is
    no loss, and nobody else may find them spoilt. So they are copied anew in the context that is
    entered before the cache is flushed and the clock starts: the copy is not timed, and what it
    leaves in the cache is flushed. Nothing else is different for this contender. What overwriting
    saves, memory and a tensor to write to, is its to keep.
    """

    def __init__(self, tensors: Rows):
        self.scores = tensors.input.detach()
        self.input = self.scores.clone().requires_grad_()
        self.target = tensors.target

    @contextlib.contextmanager
    def fresh(self) -> Iterator[None]:
        self.input.grad = None  # may be the memory of the scores themselves
        with torch.no_grad():
            self.input.copy_(self.scores)
        yield


def of_torch(case: Case, tensors: Rows) -> tuple[Tensor, Tensor]:
    """Value and gradient by torch, in float32 at least."""
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
    """What is wrong with a contender's value or gradient; empty where nothing is."""
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
            # The sum over all elements: the largest, those of the labels, are few.
            off = float((ours.detach().float() - torchs).abs().sum() / torchs.abs().sum())
            if not off <= limit:  # NaN is no less
                return f"wrong: its {name} is {off:.1%} off torch's"
    except Exception as error:
        return in_words(error)
    finally:
        tensors.input.grad = None
    return ""
