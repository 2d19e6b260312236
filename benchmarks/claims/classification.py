"""Claims about the classification losses, each tested by a measurement."""

from __future__ import annotations

import math
import operator
import statistics
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks.claims.classifying import EVERY, GOALS, RATES, SHARED, WRONG
from benchmarks.claims.regression import Finding, faster, margin
from lossops import functional
from lossops.specs.softmax import ROW_SPECS
from lossops.verify.tables import Table, number

Row = dict[str, Any]
ROBUST = 0.03  # of the test set: the most that a robust loss may lose to wrong labels
_EQUAL = 1e-12  # tolerance for equality in float64
_SHARE = f"{100 * WRONG:.0f}%"
_WITHIN = f"to {', '.join(f'{100 * goal:.0f}%' for goal in GOALS)} test accuracy"


def findings(training: list[Row], race: list[Row]) -> list[dict[str, Any]]:
    """Tests all claims."""
    rows = {row["name"]: row for row in training}
    steps = {row["name"]: [n or math.inf for n in row["steps"]] for row in race}
    found = (
        _robust(rows["L1"]),
        _slower(rows),
        _faster(steps),
        _sensitive(rows),
        _as_cross_entropy(),
        _asymmetric(),
        _both_labels(),
    )
    return [asdict(finding) for finding in found]


def _drop(row: Row) -> list[float]:
    """How much wrong labels lower the test accuracy, for each seed."""
    return list(map(operator.sub, row["clean"]["accuracy"], row["wrong"]["accuracy"]))


def _robust(row: Row) -> Finding:
    clean, wrong = (statistics.fmean(row[labels]["accuracy"]) for labels in ("clean", "wrong"))
    return Finding(
        "L1 over distributions is robust to wrong labels",
        f"{_SHARE} wrong training labels lower its test accuracy by less than "
        f"{100 * ROBUST:.0f} points",
        f"{100 * clean:.1f}% → {100 * wrong:.1f}%",
        clean - wrong < ROBUST,
    )


def _sensitive(rows: dict[str, Row]) -> Finding:
    drops = _drop(rows["cross entropy"])
    mean, error = margin(drops, _drop(rows["L1"]))
    drop = statistics.fmean(drops)
    return Finding(
        "Cross entropy is sensitive to label noise",
        "wrong labels lower its test accuracy by more than that of L1 (by two standard errors)",
        f"-{100 * drop:.1f} points, {100 * mean:.1f} ± {100 * error:.1f} more than L1",
        mean > 2 * error,
    )


def _first(row: Row, goal: float) -> float:
    """The first step from which the mean test accuracy stays at the goal or above."""
    below = [i for i, mean in enumerate(row["clean"]["by_step"]) if mean < goal]
    first = below[-1] + 1 if below else 0
    return first * EVERY if first < len(row["clean"]["by_step"]) else math.inf


def _slower(rows: dict[str, Row]) -> Finding:
    return faster(
        "L1 over distributions learns more slowly than cross entropy",
        f"Adam at the same rate, true labels: cross entropy takes fewer steps {_WITHIN}",
        ((_first(rows["cross entropy"], goal), _first(rows["L1"], goal)) for goal in GOALS),
    )


def _faster(steps: dict[str, list[float]]) -> Finding:
    return faster(
        "Cross entropy learns faster than L1 over distributions",
        f"stochastic gradient descent, each at its best rate, arrives in fewer steps {_WITHIN}",
        zip(steps["cross entropy"], steps["L1"], strict=True),
    )


def _slope(loss, logits: Tensor, target: Tensor, **kwargs) -> tuple[Tensor, Tensor]:
    x = logits.clone().requires_grad_()
    value = loss(x, target, reduction="none", **kwargs)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def _random(rows: int = 256, classes: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Random logits, labels and distributions."""
    generator = torch.Generator().manual_seed(1)
    logits, others = 2 * torch.randn(2, rows, classes, dtype=torch.float64, generator=generator)
    return logits, torch.randint(classes, (rows,), generator=generator), others.softmax(1)


def _as_cross_entropy() -> Finding:
    logits, labels, soft = _random()
    apart = []
    for target, forms in ((labels, {}), (soft, {"target_form": "probs"})):
        kl, kl_slope = _slope(functional.kl_divergence, logits, target, **forms)
        other, slope = _slope(functional.cross_entropy, logits, target)
        entropy = -(soft * soft.log()).sum(1) if forms else torch.zeros_like(kl)
        apart.append((kl_slope - slope).abs().max().item())
        apart.append((kl - (other - entropy)).abs().max().item())
    return Finding(
        "KL is as cross entropy",
        "the kernels give the same gradient, for hard and for soft labels; the values differ by "
        "the labels' entropy, which is 0 for hard ones",
        f"gradients apart by {number(apart[0])} (hard), {number(apart[2])} (soft), "
        f"values by {number(apart[1])} and {number(apart[3])}",
        max(apart) <= _EQUAL,
    )


def _asymmetric() -> Finding:
    logits, _, soft = _random()
    log_q = logits.log_softmax(1)
    forms = {"target_form": "probs", "reduction": "none"}
    there = functional.kl_divergence(logits, soft, **forms)
    back = functional.kl_divergence(logits, soft, reverse=True, **forms)
    swapped = functional.kl_divergence(soft.log(), log_q, reduction="none")
    ratio = (there / back).log2().abs().exp2().median().item()
    wrong = (back - swapped).abs().max().item()
    return Finding(
        "KL is not symmetric",
        "KL(Y, Ŷ) and KL(Ŷ, Y) of random distributions; the latter with reverse=True is the former "
        "with its arguments swapped",
        f"median ratio of the two {ratio:.2f}; swapped and reversed apart by {number(wrong)}",
        ratio > 1.05 and wrong <= 1e-10,
    )


def _both_labels() -> Finding:
    """Compares a label with the one-hot distribution of that label."""
    logits, labels, _ = _random()
    certain = torch.nn.functional.one_hot(labels, logits.shape[1]).double()
    apart, tried = [], []
    for spec in ROW_SPECS:
        if any(sample.target == "probs" for sample in spec.samples):
            forms = {"target_form": "probs"} if spec.takes_forms else {}
            hard = _slope(spec.function, logits, labels)
            soft = _slope(spec.function, logits, certain, **forms)
            apart += [(h - s).abs().max().item() for h, s in zip(hard, soft, strict=True)]
            tried.append(spec.name)
    return Finding(
        "The losses of the lecture take hard and soft labels",
        "a label gives the value and the gradient of the distribution that is certain of it",
        f"{len(tried)} losses, apart by at most {number(max(apart))}",
        {"cross_entropy", "l1_distribution_loss", "kl_divergence"} <= set(tried)
        and max(apart) <= _EQUAL,
    )


def tables(training: list[Row], race: list[Row]) -> list[Table]:
    """A table of the test accuracies."""
    seeds = len(training[0]["clean"]["accuracy"])
    table = Table(
        "Test accuracy on the digits, mean ± standard deviation",
        ("loss", "true labels", f"{_SHARE} wrong labels", "drop, points", "steps at best rate"),
        note=f"A network of one hidden layer on {seeds} random splits, Adam at the same rate for "
        "every loss; test labels are always true. A soft label gives "
        f"{100 * SHARED:.0f}% to the classes whose mean pictures are like its own. Steps: of "
        f"stochastic gradient descent at the best of {len(RATES)} rates, {_WITHIN}.",
    )
    steps = {row["name"]: row["steps"] for row in race}
    for row in training:
        cells = [
            f"{100 * statistics.fmean(v):.1f} ± {100 * statistics.pstdev(v):.1f}"
            for v in (row[labels]["accuracy"] for labels in ("clean", "wrong"))
        ]
        taken = ", ".join(number(n, 0) for n in steps.get(row["name"], [None]))
        table.add(row["name"], *cells, f"{100 * statistics.fmean(_drop(row)):.1f}", taken)
    return [table]
