"""Plots of the classification losses and of training with them."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.claims.classifying import EVERY, WRONG
from benchmarks.claims.plots import INK, PALETTE, QUIET, canvas, legend_below, mislabeled
from lossops import functional

Picture = tuple[str, str]  # file, caption
BLUE, RED, AMBER, GREEN, PINK, SKY = PALETTE[:6]
SOFT = 0.8  # what the soft label gives to the true class

# Label, function, colour, dashes. With hard labels, KL coincides with cross entropy.
_CURVES = (
    ("cross entropy", functional.soft_cross_entropy, BLUE, None),
    ("KL", functional.kl_divergence, AMBER, (3, 2)),
    ("L1", functional.l1_distribution_loss, RED, None),
    ("Jensen-Shannon", functional.js_divergence, GREEN, None),
)


def draw_losses(folder: Path) -> list[Picture]:
    """Plots the losses themselves, computed by lossops' own kernels. Returns (file, caption)
    pairs."""
    hard = "Hard label: KL is cross entropy, steep where it errs; L1 is as steep everywhere"
    soft = f"Soft label: all are least where Ŷ = Y = {SOFT}, cross entropy above 0"
    drawn = []
    for name, title, p in (("hard", hard, 1.0), ("soft", soft, SOFT)):
        path = folder / f"classification_{name}.png"
        with canvas(path, 2, title) as (left, right):
            _draw_curves(left, right, p)
        words = ": KL is that less the label's entropy, with the same derivative" if p < 1 else ""
        label = "(1, 0)" if p == 1 else f"({SOFT}, {1 - SOFT:.1f})"
        drawn.append((path.name, f"{title}{words}. Two classes, Y = {label}."))
    return [*drawn, _draw_symmetry(folder / "kl_symmetry.png")]


def _chances() -> Tensor:
    """Predicted probabilities of the true class, without the ends."""
    return torch.linspace(0.004, 0.996, 801, dtype=torch.float64)


def curve(function, q: Tensor, p: float, **kwargs) -> tuple[Tensor, Tensor]:
    """Value and derivative with respect to the predicted probability of the true class, for two
    classes. The label gives the true class the probability p; for p = 1 it is a hard label."""
    q = q.clone().requires_grad_()
    rows = torch.stack([q, 1 - q], 1)
    if p == 1:
        target = torch.zeros(len(q), dtype=torch.long)
    else:
        target = torch.tensor([p, 1 - p], dtype=q.dtype).expand(len(q), 2)
        kwargs = {"target_form": "probs"} | kwargs
    value = function(rows, target, input_form="probs", reduction="none", **kwargs)
    (slope,) = torch.autograd.grad(value.sum(), q)
    return value.detach(), slope


def _draw_curves(left: Any, right: Any, p: float) -> None:
    q = _chances()
    for label, function, color, dashes in _CURVES:
        value, slope = curve(function, q, p)
        style = {"color": color, "dashes": dashes or (None, None), "label": label}
        left.plot(q, value, **style)
        # No line is drawn across the jump of L1's derivative.
        right.plot(q, torch.where((q - p).abs() < 2e-3, torch.nan, slope), **style)
    left.set_title("loss")
    right.set_title("derivative")
    for axes in (left, right):
        axes.set_xlabel("predicted probability of the true class")
        axes.axhline(0, color=QUIET, linewidth=0.7, zorder=0.5)
        axes.set_xlim(0, 1)
        if p < 1:
            axes.axvline(p, color=QUIET, linewidth=1, dashes=(2, 2))
    left.set_ylim(-0.1, 4)
    right.set_ylim(-8.5, 1 if p == 1 else 6)
    if p < 1:
        right.annotate("Y", (p, 5.1), xytext=(-5, 0), textcoords="offset points", ha="right",
                       color=QUIET)  # fmt: skip
    legend_below(left)


def _draw_symmetry(path: Path) -> Picture:
    title = "KL(Y, Ŷ) covers all of Y, KL(Ŷ, Y) settles on one of its modes"
    q, colors = _chances(), (BLUE, RED)
    with canvas(path, 2, title) as (left, right):
        for reverse, name in enumerate(("KL(Y, Ŷ)", "KL(Ŷ, Y)")):
            value, _ = curve(functional.kl_divergence, q, SOFT, reverse=bool(reverse))
            left.plot(q, value, color=colors[reverse], label=name)
        left.axvline(SOFT, color=QUIET, linewidth=1, dashes=(2, 2))
        left.set_xlim(0, 1)
        left.set_ylim(-0.05, 2)
        left.set_xlabel("predicted probability of the true class")
        left.set_title(f"loss for Y = ({SOFT}, {1 - SOFT:.1f})")
        x, target, fits = bell_fits()
        right.fill_between(x, target, color="#dddddd", linewidth=0, label="Y, two bells")
        for reverse, fitted in enumerate(fits):
            right.plot(x, fitted, color=colors[reverse])
        right.set_ylim(0)
        right.set_xlabel("class")
        right.set_title("one bell Ŷ, fitted to Y by either")
        handles, _ = left.get_legend_handles_labels()
        others, _ = right.get_legend_handles_labels()
        legend_below(left, [*handles, *others])
    return path.name, (
        f"{title}. Left: the two as functions of the prediction; right: gradient descent on mean "
        "and width of a bell over 161 classes. Which mode the latter settles on depends on where "
        "it starts: here between the two."
    )


def bell_fits(steps: int = 800) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The classes, a target distribution with two bells, and the single bells fitted to it by KL
    and by reverse KL."""
    classes = torch.arange(161, dtype=torch.float64)
    x = (classes - 80) / 20
    bells = torch.stack([-((x + 2) ** 2) / 0.4, -((x - 1.8) ** 2) / 0.7 - 0.6])
    target = bells.logsumexp(0)
    fits = []
    for reverse in (False, True):
        place = torch.tensor([-0.5, -0.5], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([place], lr=0.02)
        for _ in range(steps):
            optimizer.zero_grad()
            logits = -((x - place[0]) ** 2) / (2 * torch.exp(2 * place[1]))
            functional.kl_divergence(logits, target, reverse=reverse).backward()
            optimizer.step()
        fits.append(logits.detach().softmax(0))
    return classes, target.softmax(0), fits


# Name, colour and dashes of the plotted losses. KL coincides with cross entropy, and total
# variation (half of L1) with L1.
_SERIES = (
    ("cross entropy", BLUE, None),
    ("KL", AMBER, (3, 2)),
    ("cross entropy, smoothed", SKY, None),
    ("focal", "#999999", None),
    ("poly", PINK, None),
    ("Jensen-Shannon", GREEN, None),
    ("L1", RED, None),
    ("total variation", "#000000", (3, 2)),
)


def _color(name: str) -> str:
    known = {row[0]: row[1] for row in _SERIES}
    return known.get(name, known.get(name.partition(",")[0], INK))


def draw_training(path: Path, rows: list[dict[str, Any]]) -> Picture:
    """Plots the experiment with wrong labels: test accuracy with true and with wrong labels, one
    curve per loss."""
    by_name = {row["name"]: row for row in rows}
    ends = {
        name: 100 * statistics.fmean(by_name[name]["wrong"]["accuracy"])
        for name in ("cross entropy", "L1")
    }
    title = (
        f"Digits with {100 * WRONG:.0f}% wrong labels: cross entropy learns the errors "
        f"({ends['cross entropy']:.0f}% right at the end), L1 does not ({ends['L1']:.0f}%)"
    )
    bars = [
        (row["name"], _color(row["name"]), *(
            [100 * share for share in row[labels]["accuracy"]] for labels in ("clean", "wrong")
        ))
        for row in rows
    ]  # fmt: skip
    curves = [
        (*series, [100 * mean for mean in by_name[series[0]]["wrong"]["by_step"]])
        for series in _SERIES
    ]
    words = f"{100 * WRONG:.0f}%", "test accuracy, %"
    with mislabeled(path, title, bars, curves, EVERY, *words, width=5.4, height=4.3) as (_, right):
        right.set_ylim(80, 100)
        right.set_yticks(range(80, 101, 5))
    return path.name, f"{title}. Means over the splits, bars: standard deviation."
