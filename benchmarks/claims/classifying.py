"""Trains a classifier on real data once per loss, with true and with wrong labels.

The data are scikit-learn's digits: 1,797 images of 8 × 8 pixels, in ten classes. All seeds train
side by side: their splits form a batch, as do the learning rates to try.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.claims.training import EVERY, Split, arrival, descend, generator
from lossops.specs.softmax import row_spec
from lossops.verify import optional
from lossops.verify.measure import one_thread

SEEDS = 8
STEPS = 600
WRONG = 0.3  # share of the training labels
BATCH, HIDDEN, CLASSES = 128, 128, 10
RATE = 3e-3  # learning rate of Adam, for every loss
SHARED = 0.2  # share of a soft label that goes to the other classes


@dataclass(frozen=True)
class Contender:
    """A loss, with the arguments used to train a classifier."""

    name: str
    loss: str  # name in lossops.functional
    kwargs: dict[str, Any] = field(default_factory=dict)
    soft: bool = False  # labels are distributions

    def __call__(self, logits: Tensor, target: Tensor, **kwargs) -> Tensor:
        if self.soft and row_spec(self.loss).takes_forms:
            kwargs["target_form"] = "probs"
        return row_spec(self.loss).function(logits, target, **self.kwargs, **kwargs)


CONTENDERS: tuple[Contender, ...] = (
    Contender("cross entropy", "cross_entropy"),
    Contender("cross entropy, smoothed", "cross_entropy", {"label_smoothing": 0.1}),
    Contender("cross entropy, soft labels", "cross_entropy", soft=True),
    Contender("L1", "l1_distribution_loss"),
    Contender("L1, soft labels", "l1_distribution_loss", soft=True),
    Contender("KL", "kl_divergence"),
    Contender("KL, soft labels", "kl_divergence", soft=True),
    Contender("Jensen-Shannon", "js_divergence"),
    Contender("total variation", "total_variation"),
    Contender("focal", "focal_loss"),
    Contender("poly", "poly_loss"),
)


def contender(name: str) -> Contender:
    return next(row for row in CONTENDERS if row.name == name)


class Digits(Split):
    """Labels are classes."""

    def with_wrong_labels(self) -> Digits:
        """A copy in which a share of the training labels is replaced by other classes."""

        def others(labels: Tensor, own: torch.Generator) -> Tensor:
            return (labels + torch.randint(1, CLASSES, labels.shape, generator=own)) % CLASSES

        return self.mislabeled(WRONG, 2000, others)

    def soft(self) -> Tensor:
        """Distributions to replace the training labels, [seeds, n, classes]. Most of the
        probability goes to the label, the rest to classes with similar mean images."""
        share = torch.zeros(len(self.train_y), CLASSES, CLASSES)
        for seed, (x, y) in enumerate(zip(self.train_x, self.train_y, strict=True)):
            means = torch.stack([x[y == label].mean(0) for label in range(CLASSES)])
            nearness = (-torch.cdist(means, means)).fill_diagonal_(-torch.inf)
            share[seed] = SHARED * nearness.softmax(1) + (1 - SHARED) * torch.eye(CLASSES)
        return torch.stack([row[y] for row, y in zip(share, self.train_y, strict=True)])


def digits(seeds: int = SEEDS) -> Digits:
    data = optional("sklearn.datasets").load_digits()
    x = torch.tensor(data.data, dtype=torch.float32) / 16
    return Digits.of(x, torch.tensor(data.target, dtype=torch.int64), seeds)


class Classifiers(torch.nn.Module):
    """One network with one hidden layer per seed. The initial weights are the same for every
    loss."""

    def __init__(self, count: int, features: int = 64):
        super().__init__()
        own = generator(5)

        def normal(*shape: int) -> torch.nn.Parameter:
            weights = torch.randn(*shape, generator=own) * (2 / shape[-2]) ** 0.5
            return torch.nn.Parameter(weights.expand(count, *shape[-2:]).clone())

        self.first, self.second = normal(features, HIDDEN), normal(HIDDEN, CLASSES)
        self.first_bias = torch.nn.Parameter(torch.zeros(count, 1, HIDDEN))
        self.second_bias = torch.nn.Parameter(torch.zeros(count, 1, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.baddbmm(self.first_bias, x, self.first).relu()
        return torch.baddbmm(self.second_bias, hidden, self.second)

    def accuracy(self, x: Tensor, y: Tensor) -> Tensor:
        """The accuracy per seed."""
        return (self(x).argmax(-1) == y).float().mean(1)


Optimizer = Callable[[Classifiers], torch.optim.Optimizer]


def _adam(model: Classifiers) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=RATE)


def fit(loss: Contender, data: Digits, steps: int, optimize: Optimizer = _adam) -> Tensor:
    """Test accuracies after every ``EVERY`` steps: [times, seeds]."""
    count = len(data.train_y)
    truth = data.soft() if loss.soft else data.train_y
    model = Classifiers(count)
    optimizer = optimize(model)
    own = generator(9)

    def of_a_batch() -> Tensor:
        batch = torch.randint(data.train_y.shape[1], (BATCH,), generator=own)
        logits = model(data.train_x[:, batch])
        # Normalised by the rows of one seed, so that each seed trains as if it were alone.
        return loss(logits.flatten(0, 1), truth[:, batch].flatten(0, 1), normalizer=BATCH)

    return descend(optimizer, steps, of_a_batch, lambda: model.accuracy(data.test_x, data.test_y))


def train(
    wanted: Iterable[Contender] = CONTENDERS,
    advance: Callable[[str], None] = lambda what: None,
    seeds: int = SEEDS,
    steps: int = STEPS,
) -> list[dict[str, Any]]:
    """Test accuracies per loss, with true and with wrong labels."""
    clean = digits(seeds)
    wrong = clean.with_wrong_labels()
    rows = []
    with one_thread():
        for loss in wanted:
            row: dict[str, Any] = {"name": loss.name, "loss": loss.loss, "soft": loss.soft}
            for labels, data in (("clean", clean), ("wrong", wrong)):
                found = fit(loss, data, steps)
                row[labels] = {
                    "accuracy": found[-1].tolist(),
                    "by_step": found.mean(1).tolist(),
                }
            rows.append(row)
            advance(loss.name)
    return rows


GOALS = (0.8, 0.9, 0.95)  # test accuracies
RATES = [10.0 ** (k / 3) for k in range(-6, 4)]
RACERS = ("cross entropy", "L1", "KL", "Jensen-Shannon", "focal", "poly")


def _descent(model: Classifiers, rates: Tensor) -> torch.optim.Optimizer:
    """Gradient descent with a separate rate for each of the models trained side by side."""
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: rates.view(-1, 1, 1) * gradient)
    return torch.optim.SGD(model.parameters(), lr=1.0)


def race(
    steps: int = 400, seeds: int = 3, advance: Callable[[str], None] = lambda what: None
) -> list[dict[str, Any]]:
    """The number of steps of stochastic gradient descent until the mean test accuracy reaches each
    goal. Each loss uses the best of the same learning rates."""
    one = digits(seeds)
    repeat = (tensor.repeat(len(RATES), *[1] * (tensor.dim() - 1)) for tensor in vars(one).values())
    data = Digits(*repeat)
    rates = torch.tensor(RATES).repeat_interleave(seeds)
    rows = []
    with one_thread():
        for name in RACERS:
            found = fit(contender(name), data, steps, lambda model: _descent(model, rates))
            means = found.view(len(found), len(RATES), seeds).mean(2)  # [times, rates]
            rows.append({"name": name, "steps": [_arrival(means, goal) for goal in GOALS]})
            advance(f"{name} at its best rate")
    return rows


def _arrival(means: Tensor, goal: float) -> int | None:
    """The first step from which some rate stays at the goal or above."""
    first = arrival(means >= goal)
    return first * EVERY if first < len(means) else None
