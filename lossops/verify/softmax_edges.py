"""Edge cases of the losses over rows: infinite logits, certain and impossible classes, the largest
float16 numbers, a single class, no rows, and no row that counts."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lossops.specs.softmax import RowSpec, Sample

Edge = Callable[[RowSpec, str], str]  # (loss, device) -> what is wrong, or an empty string


def problems(spec: RowSpec, device: str) -> list[str]:
    """Describes each edge case in which the loss is wrong."""
    found = []
    for name, edge in EDGES.items():
        try:
            wrong = edge(spec, device)
        except Exception as error:
            wrong = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if wrong:
            found.append(f"{name}: {wrong}")
    return found


def _value_and_gradient(
    spec: RowSpec, x: Tensor, y: Tensor, reduction: str = "none"
) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    loss = _loss(spec, x, y, reduction)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach(), gradient


def _loss(spec: RowSpec, x: Tensor, y: Tensor, reduction: str) -> Tensor:
    """Calls the loss. A floating-point target is a distribution."""
    return spec.call(Sample(target="probs" if y.is_floating_point() else "labels"))(x, y, reduction)


def _targets(spec: RowSpec, label: int, classes: int, device: str) -> list[Tensor]:
    """The label as a target and, if the loss supports soft targets, a distribution in which the
    label has the largest probability."""
    targets = [torch.tensor([label], device=device)]
    if any(sample.soft for sample in spec.samples):
        soft = torch.zeros(1, classes, dtype=torch.float64, device=device)
        soft[0, label], soft[0, label - 1] = 0.75, 0.25
        targets.append(soft)
    return targets


def _scores(spec: RowSpec, numbers: list[float], device: str) -> Tensor:
    row = torch.tensor([numbers], dtype=torch.float64, device=device)
    return row.log_softmax(1) if spec.samples[0].input == "log_probs" else row


def _differ(what: str, found: Tensor, right: Tensor, **tolerance) -> str:
    if torch.allclose(found, right, equal_nan=True, **tolerance):
        return ""
    return f"{what} {found.flatten().tolist()} instead of {right.flatten().tolist()}"


def impossible_class(spec: RowSpec, device: str) -> str:
    """A logit of -inf where the target is 0: the result is the same as without that class."""
    for target in _targets(spec, 1, 3, device):
        x = _scores(spec, [0.3, -0.4, 0.9], device)
        value, gradient = _value_and_gradient(spec, x, target)
        wide = torch.cat([x, torch.full_like(x[:, :1], -math.inf)], 1)
        if target.is_floating_point():
            target = torch.cat([target, torch.zeros_like(target[:, :1])], 1)
        found, slope = _value_and_gradient(spec, wide, target)
        wrong = _differ("value", found, value) or _differ("gradient", slope[:, :3], gradient)
        if wrong or slope[0, 3] != 0:
            return wrong or f"gradient {slope[0, 3].item()} at -inf"
    return ""


BOUNDED = ("js_divergence", "total_variation", "l1_distribution_loss")


def impossible_target(spec: RowSpec, device: str) -> str:
    """A logit of -inf where the target is 1: the loss is infinite unless it is bounded, and the
    gradient is not NaN."""
    x = torch.tensor([[-math.inf, 0.0, 1.0]], dtype=torch.float64, device=device)
    value, gradient = _value_and_gradient(spec, x, torch.tensor([0], device=device))
    if math.isinf(value.item()) == (spec.name in BOUNDED) or value.isnan().any():
        return f"value {value.item()}"
    return f"gradient {gradient.flatten().tolist()}" if gradient.isnan().any() else ""


def certain_class(spec: RowSpec, device: str) -> str:
    """A logit of +inf: the limit for a large logit, where torch returns NaN. A loss that grows
    without bound is infinite."""
    if spec.samples[0].input == "log_probs":
        return ""  # +inf is not the logarithm of a probability
    for label in (0, 1):
        target = torch.tensor([label], device=device)
        x = torch.tensor([[math.inf, 0.0, 1.0]], dtype=torch.float64, device=device)
        value, gradient = _value_and_gradient(spec, x, target)
        limit, slope = _value_and_gradient(spec, x.nan_to_num(posinf=1e300), target)
        limit = torch.where(limit.abs() > 1e299, limit * math.inf, limit)
        if wrong := _differ("value", value, limit) or _differ("gradient", gradient, slope):
            return wrong
    return ""


def nothing_possible(spec: RowSpec, device: str) -> str:
    """A row of -inf: the limit of equal logits, where torch returns NaN."""
    x = torch.full((1, 3), -math.inf, dtype=torch.float64, device=device)
    target = torch.tensor([1], device=device)
    if spec.samples[0].input == "log_probs":
        value = _loss(spec, x, target, "none")  # log-probabilities are not renormalised
        return "" if value.item() == math.inf else f"value {value.item()}"
    value, gradient = _value_and_gradient(spec, x, target)
    limit, slope = _value_and_gradient(spec, torch.zeros_like(x), target)
    return _differ("value", value, limit) or _differ("gradient", gradient, slope)


def largest_halves(spec: RowSpec, device: str) -> str:
    """Logits of ±65504 in float16: the result is that of float64, rounded."""
    for label in (0, 1, 2):
        for target in _targets(spec, label, 3, device):
            x = torch.tensor([[65504.0, -65504.0, 0.0]], dtype=torch.float16, device=device)
            half = target.half() if target.is_floating_point() else target
            value, gradient = _value_and_gradient(spec, x, half)
            right, slope = _value_and_gradient(spec, x.double(), target)
            close = {"rtol": 1e-3, "atol": 1e-6}
            wrong = _differ("value", value, right.half(), **close)
            if wrong or (wrong := _differ("gradient", gradient, slope.half(), **close)):
                return wrong
    return ""


def one_class(spec: RowSpec, device: str) -> str:
    """A single class: the loss is 0, and so is the gradient, except that of nll_loss, which is
    -1."""
    x = _scores(spec, [3.0], device)
    value, gradient = _value_and_gradient(spec, x, torch.tensor([0], device=device))
    slope = torch.full_like(gradient, -1.0 if spec.name == "nll_loss" else 0.0)
    return _differ("value", value, torch.zeros_like(value)) or _differ("gradient", gradient, slope)


def no_rows(spec: RowSpec, device: str) -> str:
    """No rows: a sum is 0, a mean is NaN, and the gradient is empty."""
    x = torch.zeros(0, 5, device=device)
    target = torch.zeros(0, dtype=torch.long, device=device)
    total, gradient = _value_and_gradient(spec, x, target, "sum")
    mean = _loss(spec, x, target, "mean")
    if gradient.shape != x.shape or total.item() != 0 or not mean.isnan():
        return f"sum {total.item()}, mean {mean.item()}, gradient of {tuple(gradient.shape)}"
    return ""


def none_count(spec: RowSpec, device: str) -> str:
    """All labels ignored: a sum and the gradient are 0, and a mean is NaN, as in torch."""
    if spec.name == "log_prob_of":
        return ""
    x = torch.randn(4, 5, device=device)
    target = torch.full((4,), -100, device=device)
    total, gradient = _value_and_gradient(spec, x, target, "sum")
    mean = _loss(spec, x, target, "mean")
    if total.item() != 0 or gradient.any() or not mean.isnan():
        return f"sum {total.item()}, mean {mean.item()}, gradient {gradient.abs().max().item()}"
    return ""


def no_such_class(spec: RowSpec, device: str) -> str:
    """An out-of-range label: IndexError on the CPU, NaN in its row on a GPU."""
    x = torch.randn(4, 5, device=device)
    target = torch.tensor([1, 5, 0, 2], device=device)
    try:
        value = _loss(spec, x, target, "none")
    except IndexError:
        return ""
    return "" if value[1].isnan() and value.isnan().sum() == 1 else f"value {value.tolist()}"


EDGES: dict[str, Edge] = {
    "logit -inf, target 0": impossible_class,
    "logit -inf, target 1": impossible_target,
    "logit +inf": certain_class,
    "all logits -inf": nothing_possible,
    "±65504 in float16": largest_halves,
    "one class": one_class,
    "no rows": no_rows,
    "all ignored": none_count,
    "no such class": no_such_class,
}
