"""The losses over rows of class scores as torch users write them, as a baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from lossops.softmax import reference
from lossops.specs.spec import reduced

Loss = Callable[..., Tensor]


def cross_entropy(
    input, target, reduction="mean", *, z_loss=0.0, softcap=None, temperature=1.0, **kwargs
) -> Tensor:
    if softcap is not None:
        input = softcap * torch.tanh(input / softcap)
    if temperature != 1:
        input = input / temperature
    loss = torch_functional.cross_entropy(input, target, reduction=reduction, **kwargs)
    if z_loss:
        loss = loss + z_loss * reduced(input.logsumexp(1).square(), reduction)
    return loss


def nll_loss(input, target, reduction="mean", **kwargs) -> Tensor:
    return torch_functional.nll_loss(input, target, reduction=reduction, **kwargs)


def log_prob_of(logits, index, reduction="mean", *, temperature=1.0) -> Tensor:
    log_probs = (logits / temperature if temperature != 1 else logits).log_softmax(1)
    return reduced(log_probs.gather(1, index.unsqueeze(1)).squeeze(1), reduction)


def focal_loss(
    input, target, reduction="mean", *, alpha=None, gamma=2.0, ignore_index=-100
) -> Tensor:
    kept = {"ignore_index": ignore_index, "reduction": "none"}
    u = torch_functional.cross_entropy(input, target, **kept)
    loss = (1 - torch.exp(-u)) ** gamma * u
    if alpha is not None:
        loss = loss * (alpha[target.clamp(min=0)] if isinstance(alpha, Tensor) else alpha)
    return loss.sum() / (target != ignore_index).sum() if reduction == "mean" else (
        reduced(loss, reduction)
    )  # fmt: skip


def _log_probs(numbers: Tensor, form: str, temperature: float) -> Tensor:
    if form == "probs":
        return numbers.log()
    if form == "log_probs":
        return numbers
    return (numbers / temperature if temperature != 1 else numbers).log_softmax(1)


def _probs(numbers: Tensor, form: str, temperature: float) -> Tensor:
    if form == "probs":
        return numbers
    if form == "log_probs":
        return numbers.exp()
    return (numbers / temperature if temperature != 1 else numbers).softmax(1)


@dataclass(frozen=True)
class _Distribution:
    """The input's distribution. Computes only what a loss uses, as its users would."""

    numbers: Tensor
    form: str
    temperature: float

    def log_probs(self) -> Tensor:
        return _log_probs(self.numbers, self.form, self.temperature)

    def probs(self) -> Tensor:
        return _probs(self.numbers, self.form, self.temperature)


def by_distributions(formula: Callable[..., Tensor]) -> Loss:
    """Makes a loss of ``formula``, which takes the input's distribution q and the target's
    probabilities p and returns one number per class."""

    def loss(
        input, target, reduction="mean", *, input_form="logits", target_form="logits",
        temperature=1.0, **kwargs,
    ) -> Tensor:  # fmt: skip
        if target_form == "labels":
            p = torch_functional.one_hot(target, input.shape[1]).to(input.dtype)
        else:
            p = _probs(target, target_form, temperature)
        q = _Distribution(input, input_form, temperature)
        return reduced(formula(q, p, **kwargs).sum(1), reduction)

    return loss


def kl_divergence(q: _Distribution, p: Tensor, reverse: bool = False) -> Tensor:
    if reverse:
        return torch_functional.kl_div(p.log(), q.probs(), reduction="none")
    return torch_functional.kl_div(q.log_probs(), p, reduction="none")


def js_divergence(q: _Distribution, p: Tensor) -> Tensor:
    probs = q.probs()
    log_m = (0.5 * (p + probs)).log()
    to_p = torch_functional.kl_div(log_m, p, reduction="none")
    return 0.5 * (to_p + torch_functional.kl_div(log_m, probs, reduction="none"))


def total_variation(q: _Distribution, p: Tensor) -> Tensor:
    return 0.5 * (p - q.probs()).abs()


def l1_distribution_loss(q: _Distribution, p: Tensor) -> Tensor:
    return (p - q.probs()).abs()


def soft_cross_entropy(q: _Distribution, p: Tensor) -> Tensor:
    return -p * q.log_probs()


def _label_loss(formula: Callable[..., Tensor], parameter: str | None) -> Loss:
    """A label loss whose ``formula`` is a function of the cross entropy of a row."""

    def loss(
        input, target, reduction="mean", *, weight=None, ignore_index=-100, **own
    ) -> Tensor:  # fmt: skip
        kept = {"ignore_index": ignore_index, "reduction": "none"}
        u = torch_functional.cross_entropy(input, target, **kept)
        value = formula(u, *([own.get(parameter, 1.0)] if parameter else []))
        counts = (target != ignore_index).to(value.dtype)
        if weight is not None:
            counts = counts * weight[target.clamp(min=0)]
        value = value * counts
        return value.sum() / counts.sum() if reduction == "mean" else reduced(value, reduction)

    return loss


def _divergence(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda q, p: formula(p, p.log(), q.probs(), q.log_probs())


def written(name: str, kernel: str, parameter: str | None) -> Loss:
    """The loss of this module with that name, or else the reference formula of the kernel."""
    own = globals().get(name)
    if kernel in reference.LABEL_LOSSES:
        return own or _label_loss(reference.LABEL_LOSSES[kernel], parameter)
    return by_distributions(own or _divergence(reference.DIVERGENCES[kernel]))
