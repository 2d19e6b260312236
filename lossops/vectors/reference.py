"""Formulas of the losses over rows of vectors in plain torch: one number per row.

They mirror ``csrc/losses/vectors.h``, and are used for higher-order derivatives, ``torch.func`` and
tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def hinge(x: Tensor) -> Tensor:
    """max(0, x) with derivative 1 at 0. That of torch.clamp_min depends on the torch version."""
    return torch.where(x < 0, 0, x)


def cosine_embedding(vectors, label: Tensor, margin: float) -> Tensor:
    x1, x2 = vectors
    tiny = 1e-12  # the constant of torch
    squares = ((x1 * x1).sum(-1) + tiny) * ((x2 * x2).sum(-1) + tiny)
    cosine = (x1 * x2).sum(-1) / squares.sqrt()
    zero = torch.zeros((), dtype=cosine.dtype, device=cosine.device)
    together = torch.where(label == 1, 1 - cosine, zero)
    return together + torch.where(label == -1, hinge(cosine - margin), zero)


def triplets(distance, vectors, margin: float, swap: bool) -> Tensor:
    """The triplet margin loss of any distance."""
    anchor, positive, negative = vectors
    near, far = distance(anchor, positive), distance(anchor, negative)
    if swap:
        far = torch.minimum(far, distance(positive, negative))
    return hinge(margin + near - far)


def triplet_margin(vectors, label, margin: float, swap: float, epsilon: float, p=2.0) -> Tensor:
    def distance(x: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.pairwise_distance(x, y, p, epsilon)

    return triplets(distance, vectors, margin, bool(swap))


def triplet_margin_l1(vectors, label, margin: float, swap: float, epsilon: float) -> Tensor:
    return triplet_margin(vectors, label, margin, swap, epsilon, 1.0)


def multi_margin(vectors, label: Tensor, margin: float, squared: bool = False) -> Tensor:
    (x,) = vectors
    classes, label = x.shape[-1], label.long()  # as uint8, 291 classes would be 35
    inside = (label >= 0) & (label < classes)
    index = torch.where(inside, label, 0).unsqueeze(-1)
    z = torch.relu(x + (margin - x.gather(-1, index))).scatter(-1, index, 0.0)
    loss = (z.square() if squared else z).sum(-1) / classes
    return torch.where(inside, loss, torch.nan)


def multi_margin_squared(vectors, label: Tensor, margin: float) -> Tensor:
    return multi_margin(vectors, label, margin, True)


def tversky(vectors, label, alpha: float, beta: float, smooth: float, logits=False) -> Tensor:
    x, y, *weight = vectors
    p, q = (torch.sigmoid(x), torch.sigmoid(-x)) if logits else (x, 1 - x)
    wanted, unwanted = y, 1 - y
    if weight:
        wanted, unwanted = y * weight[0], unwanted * weight[0]
    found, wrong, missed = ((p * wanted).sum(-1), (p * unwanted).sum(-1), (q * wanted).sum(-1))
    lost = alpha * wrong + beta * missed  # not 1 - (…) / (…), which cancels near 0
    return lost / (found + lost + smooth)


def tversky_of_logits(vectors, label, alpha: float, beta: float, smooth: float) -> Tensor:
    return tversky(vectors, label, alpha, beta, smooth, True)


def multilabel_margin(vectors, labels: Tensor) -> Tensor:
    """Sorts the scores of a row to avoid storing all pairs of classes."""
    (x,) = vectors
    classes = x.shape[-1]
    labels = labels.long()
    given = (labels >= 0).cumprod(-1).bool()  # those before the first negative one
    outside = (given & (labels >= classes)).any(-1)
    safe = torch.where(given & (labels < classes), labels, 0)
    hits = torch.zeros_like(labels).scatter_add(-1, safe, given.long()) > 0
    # Only differences of scores matter, and those of smaller numbers have more correct digits.
    largest = x.detach().amax(-1, keepdim=True)
    x = x - torch.where(largest.isfinite(), largest, 0)
    # The hinges of a label are positive for the `count` highest scores of other classes. The sum of
    # these hinges is `total`.
    others = torch.where(hits, -math.inf, x).sort(-1, descending=True).values
    left = 1 - x.gather(-1, safe)
    count = torch.searchsorted((-others.detach()).contiguous(), left.detach().contiguous())
    sums = torch.where(others > -math.inf, others, 0).cumsum(-1)
    total = sums.gather(-1, (count - 1).clamp_min(0)) + count * left
    loss = torch.where(given & (count > 0), total, 0).sum(-1) / classes
    return torch.where(outside | _no_difference(x, hits), torch.nan, loss)


def _no_difference(x: Tensor, hits: Tensor) -> Tensor:
    """Whether some pair of a label and another class has a NaN, or the same infinity twice."""

    def both(where: Tensor) -> Tensor:
        return (where & hits).any(-1) & (where & ~hits).any(-1)

    pairs = hits.any(-1) & ~hits.all(-1)
    return x.isnan().any(-1) & pairs | both(x == math.inf) | both(x == -math.inf)


class VectorSignature(NamedTuple):
    """A loss over rows of vectors and the arguments that it takes."""

    formula: Callable[..., Tensor]
    vectors: int  # number of vectors per row
    params: int
    label: str = ""  # per row: a "number", an "index", or a "list" of indices


VECTOR_SIGNATURES = {
    "cosine_embedding": VectorSignature(cosine_embedding, 2, 1, "number"),
    "triplet_margin": VectorSignature(triplet_margin, 3, 3),
    "triplet_margin_l1": VectorSignature(triplet_margin_l1, 3, 3),
    "multi_margin": VectorSignature(multi_margin, 1, 1, "index"),
    "multi_margin_squared": VectorSignature(multi_margin_squared, 1, 1, "index"),
    "tversky_of_logits": VectorSignature(tversky_of_logits, 2, 3),
    "tversky": VectorSignature(tversky, 2, 3),
    "multilabel_margin": VectorSignature(multilabel_margin, 1, 0, "list"),
}
FORMULAS = {loss: takes.formula for loss, takes in VECTOR_SIGNATURES.items()}
