"""Trains a regressor on real data once per loss, with true and with corrupted labels.

The data are scikit-learn's diabetes set: 442 patients, ten measurements each, and the progression
of the disease after one year. All seeds train side by side: their splits form a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.claims.curves import plain
from lossops.specs.elementwise import REGRESSION, Spec
from lossops.verify import optional
from lossops.verify.measure import one_thread

SEEDS = 20
STEPS = 500
EVERY = 10  # steps between two evaluations on the test set
CORRUPTED = 0.1  # share of the training labels
FACTOR = 10.0  # a shifted decimal point

Mislabel = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Split:
    """Training and test sets for every seed, with a random fifth of the samples for the test."""

    train_x: Tensor  # [seeds, n, features]
    train_y: Tensor  # [seeds, n]
    test_x: Tensor  # [seeds, m, features]
    test_y: Tensor  # [seeds, m]

    @classmethod
    def of(cls, x: Tensor, y: Tensor, seeds: int) -> Split:
        orders = torch.stack([torch.randperm(len(y), generator=generator(s)) for s in range(seeds)])
        cut = len(y) // 5
        test, train = orders[:, :cut], orders[:, cut:]
        return cls(x[train], y[train], x[test], y[test])

    def mislabeled(self, share: float, first_seed: int, wrong: Mislabel) -> Split:
        """A copy in which a share of the training labels is replaced by what ``wrong`` makes of
        them."""
        labels = self.train_y.clone()
        for seed, row in enumerate(labels, first_seed):
            own = generator(seed)
            chosen = torch.randperm(len(row), generator=own)[: round(share * len(row))]
            row[chosen] = wrong(row[chosen], own)
        return replace(self, train_y=labels)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def corrupted(split: Split) -> Split:
    """A copy in which a share of the training labels is ten times too large."""
    return split.mislabeled(CORRUPTED, 1000, lambda labels, own: FACTOR * labels)


def diabetes(seeds: int = SEEDS) -> Split:
    """The data in the original units, with standardised features."""
    data = optional("sklearn.datasets").load_diabetes(scaled=False)
    x = torch.tensor(data.data, dtype=torch.float32)
    x = (x - x.mean(0)) / x.std(0)
    return Split.of(x, torch.tensor(data.target, dtype=torch.float32), seeds)


class LinearModels(torch.nn.Module):
    """One linear model per seed, initialised to zero."""

    def __init__(self, seeds: int, features: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(seeds, features, 1))
        self.bias = torch.nn.Parameter(torch.zeros(seeds, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight).squeeze(-1)


def descend(
    optimizer: torch.optim.Optimizer,
    steps: int,
    loss: Callable[[], Tensor],
    evaluate: Callable[[], Tensor],
    decay: float = 1.0,
) -> Tensor:
    """What is found after every ``EVERY`` steps."""
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
    found = []
    for step in range(steps + 1):
        if step % EVERY == 0:
            with torch.no_grad():
                found.append(evaluate())
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()
    return torch.stack(found)


def fit(spec: Spec, split: Split, steps: int = STEPS, rate: float = 0.02) -> Tensor:
    """Predictions for the test sets after every ``EVERY`` steps: [times, seeds, m].

    Labels are scaled by the median and the median deviation of the training labels, which outliers
    barely affect.
    """
    center = split.train_y.median(1, keepdim=True).values
    scale = 1.4826 * (split.train_y - center).abs().median(1, keepdim=True).values
    truth = (split.train_y - center) / scale
    model = LinearModels(len(truth), split.train_x.shape[-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    loss_fn = spec.module(**spec.defaults)
    return descend(
        optimizer,
        steps,
        lambda: loss_fn(model(split.train_x), truth),
        lambda: model(split.test_x) * scale + center,
    )


def train(
    wanted: Iterable[Spec] = REGRESSION,
    advance: Callable[[str], None] = lambda what: None,
    seeds: int = SEEDS,
    steps: int = STEPS,
) -> list[dict[str, Any]]:
    """Test errors per loss and seed, with true and with corrupted labels."""
    clean = diabetes(seeds)
    rows = []
    with one_thread():
        for spec in wanted:
            row: dict[str, Any] = {"loss": spec.name}
            for labels, split in (("clean", clean), ("corrupted", corrupted(clean))):
                errors = fit(spec, split, steps) - split.test_y
                row[labels] = {
                    "mae": errors[-1].abs().mean(1).tolist(),
                    "rmse": errors[-1].square().mean(1).sqrt().tolist(),
                    "mae_by_step": errors.abs().mean((1, 2)).tolist(),
                }
            rows.append(row)
            advance(plain(spec.name))
    return rows


RATES = [10.0 ** (k / 4) for k in range(-12, 5)]
# Remaining share of the distance to the smallest training loss. There are several, because which
# loss is faster depends on the required distance to the minimum.
GAPS = (0.01, 0.001, 0.0001)


def convergence(steps: int = 1500) -> list[dict[str, Any]]:
    """The number of gradient descent steps until the training loss is within each gap of its
    minimum. Each loss uses the best of the same learning rates. The model is linear, on the
    diabetes set. All rates run side by side."""
    split = diabetes(1)
    y = split.train_y[0]
    y = (y - y.mean()) / y.std()
    x = torch.nn.functional.pad(split.train_x[0], (0, 1), value=1.0)
    with one_thread():
        return [_fastest(spec, x, y, steps) for spec in REGRESSION]


def _fastest(spec: Spec, x: Tensor, y: Tensor, steps: int) -> dict[str, Any]:
    history = _descend(spec, x, y, steps)  # [steps, rates]
    least = min(history.nan_to_num(math.inf).min().item(), _polished(spec, x, y))
    return {"loss": spec.name, "steps": [_arrival(history, least, gap) for gap in GAPS]}


def arrival(there: Tensor) -> int:
    """The first time, of [times, rates], from which some rate stays there. A rate that oscillates
    around its goal has not arrived."""
    away = torch.where(there, -1, torch.arange(len(there))[:, None])
    return int((away.amax(0) + 1).min())


def _arrival(history: Tensor, least: float, gap: float) -> int | None:
    """The step from which the loss stays within the gap of the least, for a while."""
    first = arrival(history <= least + gap * (history[0, 0].item() - least))
    return first if first < 0.95 * len(history) else None


def _descend(spec: Spec, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """The training loss for every rate, before each step."""
    rates = torch.tensor(RATES)[:, None]
    weights = torch.zeros(len(RATES), x.shape[1], requires_grad=True)
    truth = y.expand(len(RATES), -1).contiguous()
    history = []
    for _ in range(steps):
        losses = spec.function(weights @ x.T, truth, reduction="sample", **spec.defaults)
        (gradient,) = torch.autograd.grad(losses.sum(), weights)
        history.append(losses.detach())
        with torch.no_grad():
            weights -= rates * gradient
    return torch.stack(history)


def _polished(spec: Spec, x: Tensor, y: Tensor) -> float:
    """The smallest loss that Adam finds with a decaying rate."""
    weights = torch.zeros(x.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.05)

    def loss() -> Tensor:
        return spec.function(x @ weights, y, **spec.defaults)

    return descend(optimizer, 1500, loss, loss, decay=0.995)[-1].item()


def outlier_fit(steps: int = 800) -> dict[str, Any]:
    """Fits a curve to points of which some are wrong, once per loss."""
    own = generator(7)
    x = torch.linspace(-3, 3, 120)
    truth = torch.sin(1.4 * x) + 0.3 * x
    y = truth + 0.12 * torch.randn(len(x), generator=own)
    wrong = torch.randperm(len(x), generator=own)[:14]
    y[wrong] += 2.5 + 3.5 * torch.rand(len(wrong), generator=own)
    # Gaussian features: the model is linear in its weights, so every loss finds its optimum.
    features = torch.exp(-((x[:, None] - torch.linspace(-3.5, 3.5, 10)) ** 2))
    fits = {}
    with one_thread():
        for spec in REGRESSION:
            fitted = _curve(spec, features, y, steps)
            off = (fitted - truth).abs().mean().item()
            fits[spec.name] = {"fit": fitted.tolist(), "mean_error": off}
    points = {"x": x.tolist(), "y": y.tolist(), "truth": truth.tolist(), "wrong": wrong.tolist()}
    return points | {"fits": fits}


def _curve(spec: Spec, features: Tensor, y: Tensor, steps: int) -> Tensor:
    model = torch.nn.Linear(features.shape[1], 1)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    loss_fn = spec.module(**spec.defaults)

    def curve() -> Tensor:
        return model(features).squeeze(-1)

    return descend(optimizer, steps, lambda: loss_fn(curve(), y), curve, decay=0.995)[-1]
