"""The public losses over rows of class scores: their arguments in tests, and the expected results
in float64. These are written with torch's own operations, and are differentiable. The terms of most
losses are written from their definitions, those of others are the reference's."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from conftest import make
from torch import Tensor

from lossops import functional
from lossops.softmax import reference
from lossops.specs.softmax import ROW_SPECS

# Properties such as the symmetry of a divergence are not used. Each entry is only the term that is
# summed over classes, as a function of p, log p, q and log q.
_BY_DEFINITION: dict[str, Callable[..., Tensor]] = {
    "kl_divergence": lambda p, log_p, q, log_q: torch.special.xlogy(p, p) - p * log_q,
    "reverse": lambda p, log_p, q, log_q: q * (log_q - log_p),
    "js_divergence": lambda p, log_p, q, log_q: 0.5 * (
        torch.special.xlogy(p, p) + torch.special.xlogy(q, q)
        - (p + q) * (0.5 * (p + q)).log()
    ),
    "total_variation": lambda p, log_p, q, log_q: 0.5 * (p - q).abs(),
    "l1_distribution_loss": lambda p, log_p, q, log_q: (p - q).abs(),
    "soft_cross_entropy": lambda p, log_p, q, log_q: -p * log_q,
}  # fmt: skip
ROWS = {row.name: row for row in ROW_SPECS if row.name != "log_prob_of"}
DIVERGENCES = {
    row.name: reference.DIVERGENCES[row.kernel]
    for row in ROWS.values()
    if row.kernel in reference.DIVERGENCES
} | _BY_DEFINITION
LABEL_LOSSES = [name for name in ROWS if name not in DIVERGENCES]
WEIGHTED = [n for n in LABEL_LOSSES if "weight" in inspect.signature(ROWS[n].function).parameters]


def cooled(logits: Tensor, softcap=None, temperature=1.0) -> Tensor:
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits / temperature


def log_distribution(numbers: Tensor, form: str, dim: int, temperature=1.0) -> Tensor:
    if form == "probs":
        return numbers.log()
    return numbers if form == "log_probs" else (numbers / temperature).log_softmax(dim)


def reduce_rows(values, units, reduction, normalizer=None, empty="nan"):
    """Reduces the losses of rows. A mean divides by the units of the rows that count."""
    if reduction == "none":
        return values
    kept = 1 if reduction == "sample" else 0
    total = values.reshape(*values.shape[:kept], -1).sum(-1)
    if reduction == "sum" and normalizer is None:
        return total
    if normalizer is None:
        normalizer = units.reshape(*units.shape[:kept], -1).sum(-1)
        if empty == "zero":
            normalizer = torch.where(normalizer == 0, 1.0, normalizer)
    return total / normalizer


def truth(name: str, input: Tensor, target: Tensor, reduction: str = "mean", **kwargs) -> Tensor:
    """The loss in float64."""
    input = input.double()
    normalizer, empty = kwargs.get("normalizer"), kwargs.get("empty", "nan")
    if name in LABEL_LOSSES:
        rows = label_rows(name, input, target, **kwargs)
    else:
        rows = divergence_rows(name, input, target, **kwargs)
    if isinstance(normalizer, Tensor):
        normalizer = normalizer.double()
    return reduce_rows(*rows, reduction, normalizer, empty)


def label_rows(
    name, input, target, *, weight=None, ignore_index=-100, label_smoothing=0.0, z_loss=0.0,
    softcap=None, temperature=1.0, alpha=None, gamma=2.0, **own,
):  # fmt: skip
    dim = min(1, input.dim() - 1)
    classes = input.shape[dim]
    z = input if name == "nll_loss" else cooled(input, softcap, temperature)
    log_q = input if name == "nll_loss" else z.log_softmax(dim)
    w = alpha if name == "focal_loss" else weight
    if w is None:
        w = 1.0
    w = torch.as_tensor(w, dtype=torch.float64, device=input.device).expand(classes)
    wide = w.reshape([-1 if d == dim else 1 for d in range(input.dim())])
    if target.is_floating_point():
        counts = torch.ones_like(input.sum(dim), dtype=torch.bool)
        soft = (1 - label_smoothing) * target.double() + label_smoothing / classes
        values, units = -(wide * soft * log_q).sum(dim), counts.double()
    else:
        counts = target != ignore_index
        label = torch.where(counts, target, 0).long()
        u = -log_q.gather(dim, label.unsqueeze(dim)).squeeze(dim)
        if name == "focal_loss":
            u = (-torch.expm1(-u)) ** gamma * u
        elif ROWS[name].parameter is not None:
            u = reference.LABEL_LOSSES[ROWS[name].kernel](u, ROWS[name].own_parameter(own))
        values = (1 - label_smoothing) * w[label] * u
        if label_smoothing:
            values = values - label_smoothing / classes * (wide * log_q).sum(dim)
        units = counts * (torch.ones_like(w) if name == "focal_loss" else w)[label]
    if z_loss:
        values = values + z_loss * z.logsumexp(dim).square()
    return torch.where(counts, values, 0.0), units


def divergence_rows(
    name, input, target, *, input_form="logits", target_form=None, dim=None, temperature=1.0,
    ignore_index=-100, reverse=False, **_,
):  # fmt: skip
    dim = min(1, input.dim() - 1) if dim is None else dim % input.dim()
    log_q = log_distribution(input, input_form, dim, temperature)
    q = input if input_form == "probs" else log_q.exp()
    if target.is_floating_point():
        counts = torch.ones_like(input.sum(dim), dtype=torch.bool)
        form = target_form or input_form
        log_p = log_distribution(target.double(), form, dim, temperature)
        p = target.double() if form == "probs" else log_p.exp()
    else:
        counts = target != ignore_index
        label = torch.where(counts, target, 0).long()
        classes = torch.arange(input.shape[dim], device=input.device)
        p = (label.unsqueeze(-1) == classes).double().movedim(-1, dim)
        log_p = p.log()
    value = DIVERGENCES["reverse" if reverse else name](p, log_p, q, log_q).sum(dim)
    return torch.where(counts, value, 0.0), counts.double()


@dataclass(frozen=True)
class Case:
    """A loss, the kind of its target, and its keyword arguments. Tensor arguments are given as
    functions of the number of classes."""

    name: str
    target: str = "labels"  # or "probs", "logits", "log_probs"
    kwargs: dict = field(default_factory=dict)
    input_form: str = "logits"
    ignored: bool = False

    @property
    def function(self):
        return getattr(functional, self.name)

    @property
    def id(self) -> str:
        options = (f"{k}={'…' if callable(v) else v}" for k, v in self.kwargs.items())
        form = [] if self.input_form == "logits" else [f"from {self.input_form}"]
        return "-".join([self.name, self.target, *form, *options])

    @property
    def soft(self) -> bool:
        return self.target != "labels"

    def numbers(self, shape, form, dtype):
        x = 1.5 * make.randn(shape, dtype=torch.float64)
        dim = min(1, len(shape) - 1)
        if form == "probs":  # away from the ends, so that finite differences are accurate
            x = 0.9 * x.softmax(dim) + 0.1 / shape[dim]
        if form == "log_probs":
            x = x.log_softmax(dim)
        return x.to(dtype)

    def tensors(self, shape, dtype=torch.float64):
        """Input, target, and the keyword arguments including tensors."""
        input = self.numbers(shape, self.input_form, dtype)
        dim = min(1, len(shape) - 1)
        if self.soft:
            target = self.numbers(shape, self.target, dtype)
        else:
            rows = (*shape[:dim], *shape[dim + 1 :])
            target = torch.randint(shape[dim], rows, device=input.device)
            index = self.kwargs.get("ignore_index", -100)
            if self.ignored:
                target = torch.where(make.rand(rows) < 0.3, index, target)
                if (target == index).all():  # no row counts: a mean would be NaN
                    target = torch.where(target == index, (index + 1) % shape[dim], target)
        kwargs = {k: v(shape[dim]).to(dtype) if callable(v) else v for k, v in self.kwargs.items()}
        return input, target, kwargs

    def __call__(self, input, target, reduction="mean", **kwargs):
        return self.function(input, target, reduction=reduction, **self.forms, **kwargs)

    def truth(self, input, target, reduction="mean", **kwargs):
        return truth(self.name, input, target, reduction, **self.forms, **kwargs)

    @property
    def forms(self):
        if self.name in LABEL_LOSSES:
            return {}
        forms = {} if self.target in ("labels", "logits") else {"target_form": self.target}
        return forms | ({} if self.input_form == "logits" else {"input_form": self.input_form})


def some_weights(classes):
    return make.rand(classes, dtype=torch.float64) + 0.25


EVERYTHING = {
    "weight": some_weights, "ignore_index": 1, "label_smoothing": 0.2, "z_loss": 1e-2,
    "softcap": 4.0, "temperature": 0.8,
}  # fmt: skip
CASES = [
    Case("cross_entropy"),
    Case("cross_entropy", ignored=True),
    Case("cross_entropy", kwargs={"weight": some_weights, "label_smoothing": 0.1}),
    Case("cross_entropy", kwargs={"z_loss": 1e-2}),
    Case("cross_entropy", kwargs={"softcap": 3.0, "temperature": 2.0}),
    Case("cross_entropy", kwargs=EVERYTHING, ignored=True),
    Case("cross_entropy", "probs"),
    Case("cross_entropy", "probs", {"weight": some_weights, "label_smoothing": 0.1}),
    Case("nll_loss", kwargs={"weight": some_weights}, input_form="log_probs", ignored=True),
    Case("focal_loss"),
    Case("focal_loss", kwargs={"alpha": 0.25, "gamma": 0.5}, ignored=True),
    Case("focal_loss", kwargs={"alpha": some_weights, "gamma": 3.0}),
    *(Case(name, target) for name in DIVERGENCES if name != "reverse"
      for target in ("logits", "probs", "labels")),
    Case("kl_divergence", "logits", {"reverse": True}),
    Case("kl_divergence", "logits", {"temperature": 2.0}),
    Case("kl_divergence", "labels", ignored=True),
    Case("kl_divergence", "log_probs", input_form="log_probs"),
    Case("js_divergence", "probs", {"temperature": 3.0}),
    Case("js_divergence", "probs", input_form="probs"),
    Case("total_variation", "probs", input_form="probs"),
    Case("soft_cross_entropy", "probs", input_form="log_probs"),
]  # fmt: skip


def declared(row, sample) -> Case:
    """The case of a declaration's sample, whose ignored labels are the default -100."""
    kwargs = {k: v for k, v in sample.kwargs.items() if k != "ignore_index"}
    kwargs |= {sample.per_class: some_weights} if sample.per_class else {}
    return Case(row.name, sample.target, kwargs, sample.input, sample.ignored)


CASES += [
    declared(row, sample)
    for row in ROWS.values()
    if row.name not in {case.name for case in CASES}
    for sample in row.samples
]
each_softmax_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def leaves(*tensors):
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def scaled_ulps(value: Tensor, true: Tensor, scale: float = 0.0) -> float:
    """The largest error in units in the last place of the true value, or of ``scale`` if that is
    larger: the size of the terms that cancel in the value."""
    info = torch.finfo(value.dtype)
    true = true.double().clamp(-info.max, info.max)
    size = true.abs().clamp_min(max(scale, info.tiny))
    error = (value.double() - true).abs() / (size.log2().floor().exp2() * info.eps)
    error = torch.where(value.isnan() & true.isnan(), 0.0, error)
    return error.nan_to_num(nan=math.inf).max().item() if error.numel() else 0.0
