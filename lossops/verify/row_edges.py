"""Edge cases of the losses over rows: infinite logits, certain and impossible classes, the largest
float16 numbers, a single class, no rows, and no row that counts.

Each is a function of a loss and a device that raises if the loss is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lossops.specs.softmax import RowSpec, Sample

Results = tuple[Tensor, Tensor]  # value and gradient


def _loss(spec: RowSpec, x: Tensor, y: Tensor, reduction: str) -> Tensor:
    """Calls the loss. A floating-point target is a distribution."""
    return spec.call(Sample(target="probs" if y.is_floating_point() else "labels"))(x, y, reduction)


def _results(spec: RowSpec, x: Tensor, y: Tensor, reduction: str = "none") -> Results:
    x = x.detach().requires_grad_()
    loss = _loss(spec, x, y, reduction)
    return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]


def _same(found: Results, right: Results, **tolerance) -> None:
    for name, ours, wanted in zip(("value", "gradient"), found, right, strict=True):
        numbers = f"{name} {ours.flatten().tolist()} instead of {wanted.flatten().tolist()}"
        torch.testing.assert_close(ours, wanted, equal_nan=True, msg=numbers, **tolerance)


def _expect(condition: bool, found: str) -> None:
    if not condition:
        raise AssertionError(found)


def _row(device: str, *numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64, device=device)


def _label(device: str, *labels: int) -> Tensor:
    return torch.tensor(labels, device=device)


def _targets(spec: RowSpec, label: int, classes: int, device: str) -> list[Tensor]:
    """The label as a target and, if the loss supports soft targets, a distribution in which the
    label has the largest probability."""
    targets = [_label(device, label)]
    if any(sample.soft for sample in spec.samples):
        soft = torch.zeros(1, classes, dtype=torch.float64, device=device)
        soft[0, label], soft[0, label - 1] = 0.75, 0.25
        targets.append(soft)
    return targets


def _scores(spec: RowSpec, row: Tensor) -> Tensor:
    return row.log_softmax(1) if _takes_log_probs(spec) else row


def _takes_log_probs(spec: RowSpec) -> bool:
    return spec.samples[0].input == "log_probs"


def impossible_class(spec: RowSpec, device: str) -> None:
    """A logit of -inf where the target is 0: the result is the same as without that class."""
    for target in _targets(spec, 1, 3, device):
        x = _scores(spec, _row(device, 0.3, -0.4, 0.9))
        value, gradient = _results(spec, x, target)
        if target.is_floating_point():
            target = torch.nn.functional.pad(target, (0, 1))
        wide = torch.nn.functional.pad(x, (0, 1), value=-math.inf)
        _same(_results(spec, wide, target), (value, torch.nn.functional.pad(gradient, (0, 1))))


def impossible_target(spec: RowSpec, device: str) -> None:
    """A logit of -inf where the target is 1: the loss is infinite unless it is bounded, and the
    gradient is not NaN."""
    value, gradient = _results(spec, _row(device, -math.inf, 0.0, 1.0), _label(device, 0))
    right = value.isfinite() if spec.bounded else value.isinf()
    _expect(bool(right), f"value {value.item()}")
    _expect(not gradient.isnan().any(), f"gradient {gradient.flatten().tolist()}")


def certain_class(spec: RowSpec, device: str) -> None:
    """A logit of +inf: the limit for a large logit, where torch returns NaN. A loss that grows
    without bound is infinite."""
    if _takes_log_probs(spec):
        return  # +inf is not the logarithm of a probability
    x = _row(device, math.inf, 0.0, 1.0)
    for target in (_label(device, 0), _label(device, 1)):
        limit, slope = _results(spec, x.nan_to_num(posinf=1e300), target)
        limit = torch.where(limit.abs() > 1e299, limit * math.inf, limit)
        _same(_results(spec, x, target), (limit, slope))


def nothing_possible(spec: RowSpec, device: str) -> None:
    """A row of -inf: the limit of equal logits, where torch returns NaN."""
    x, target = _row(device, *[-math.inf] * 3), _label(device, 1)
    if _takes_log_probs(spec):  # log-probabilities are not renormalised
        value = _loss(spec, x, target, "none")
        _expect(value.item() == math.inf, f"value {value.item()}")
    else:
        _same(_results(spec, x, target), _results(spec, torch.zeros_like(x), target))


def largest_halves(spec: RowSpec, device: str) -> None:
    """Logits of ±65504 in float16: the result is that of float64, rounded."""
    x = _row(device, 65504.0, -65504.0, 0.0)
    for label in (0, 1, 2):
        for target in _targets(spec, label, 3, device):
            value, slope = _results(spec, x, target)
            half = target.half() if target.is_floating_point() else target
            found = _results(spec, x.half(), half)
            _same(found, (value.half(), slope.half()), rtol=1e-3, atol=1e-6)


def one_class(spec: RowSpec, device: str) -> None:
    """A single class: the loss is 0, and so is the gradient, except that by a log-probability,
    which is -1."""
    slope = _row(device, -1.0 if _takes_log_probs(spec) else 0.0)
    found = _results(spec, _scores(spec, _row(device, 3.0)), _label(device, 0))
    _same(found, (torch.zeros_like(slope[0]), slope))


def _of_nothing(spec: RowSpec, x: Tensor, target: Tensor) -> None:
    """A sum and its gradient are 0, and a mean is NaN, as in torch."""
    total, gradient = _results(spec, x, target, "sum")
    _same((total, gradient), (torch.zeros_like(total), torch.zeros_like(x)))
    mean = _loss(spec, x, target, "mean")
    _expect(bool(mean.isnan()), f"mean {mean.item()}")


def no_rows(spec: RowSpec, device: str) -> None:
    _of_nothing(spec, torch.zeros(0, 5, device=device), _label(device).long())


def none_count(spec: RowSpec, device: str) -> None:
    """All labels are ignored."""
    if spec.name != "log_prob_of":
        _of_nothing(spec, torch.randn(4, 5, device=device), _label(device, *[-100] * 4))


def no_such_class(spec: RowSpec, device: str) -> None:
    """An out-of-range label: IndexError on the CPU, NaN in its row on a GPU."""
    x = torch.randn(4, 5, device=device)
    try:
        value = _loss(spec, x, _label(device, 1, 5, 0, 2), "none")
    except IndexError:
        return
    _expect(bool(value[1].isnan() and value.isnan().sum() == 1), f"value {value.tolist()}")


EDGES: dict[str, Callable[[RowSpec, str], None]] = {
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
