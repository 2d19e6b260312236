"""The contract of the raw vector ops, for checking any backend: random arguments, and the expected
results in float64 from the reference formulas."""

from __future__ import annotations

import math
import random

import pytest
import raw_ops
import torch
from raw_ops import FLOAT32, FLOAT64

from lossops.vectors.reference import FORMULAS, VECTOR_SIGNATURES

LABELS = {loss: takes.label for loss, takes in VECTOR_SIGNATURES.items()}
VECTORS = {loss: takes.vectors for loss, takes in VECTOR_SIGNATURES.items()}
PARAMS = {loss: [-0.1] * takes.params for loss, takes in VECTOR_SIGNATURES.items()} | {
    "triplet_margin": [1.5, 0.0, 1e-3],
    "triplet_margin_l1": [1.5, 1.0, 1e-3], "multi_margin": [0.75],
    "multi_margin_squared": [0.75], "tversky_of_logits": [0.3, 0.6, 1.5],
    "tversky": [0.3, 0.6, 1.5], "multilabel_margin": [],
}  # fmt: skip
# Error allowed for a sum of products and for the factors computed from it, in units of rounding.
SLACK = 24


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values in a different memory layout."""
    rows, length = tensor.shape
    if layout == "dense":
        return tensor.clone()
    if layout == "off its boundary":
        return (
            torch.empty(rows * length + 1, dtype=tensor.dtype)[1:].view(rows, length).copy_(tensor)
        )
    if layout == "part of wider rows":
        return torch.empty(rows, length + 5, dtype=tensor.dtype)[:, 2 : length + 2].copy_(tensor)
    if layout == "columns":
        return tensor.t().contiguous().t()
    return tensor[:1].expand(rows, length)  # the same row everywhere


LAYOUTS = ["dense", "off its boundary", "part of wider rows", "columns"]


class Case:
    """Random arguments and the expected results in float64."""

    def __init__(
        self, backend, loss, rows, length, dtype=FLOAT32, reduction="mean", layouts=("dense",),
        weighted=False, label_dtype=torch.int64, params=None,
    ):  # fmt: skip
        self.backend, self.loss, self.reduction, self.dtype = backend, loss, reduction, dtype
        self.params = PARAMS[loss] if params is None else params
        self.draw = raw_ops.generator()
        self.vectors = [self.normal(rows, length).to(dtype) for _ in range(VECTORS[loss])]
        if loss == "tversky":
            self.vectors = [v.sigmoid() for v in self.vectors]
        elif loss == "tversky_of_logits":
            self.vectors[1] = self.vectors[1].sigmoid()
        self.vectors = [laid_out(v, random.choice(layouts)) for v in self.vectors]
        self.label = self.row_weight = None
        if LABELS[loss] == "index":
            self.label = torch.randint(length, (rows,), generator=self.draw).to(label_dtype)
        elif LABELS[loss] == "list":
            self.label = laid_out(self.lists(rows, length, label_dtype), random.choice(layouts))
        elif LABELS[loss] == "number":
            choices = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0, math.nan])
            self.label = choices[torch.randint(6, (rows,), generator=self.draw)]
        if weighted:
            self.row_weight = self.normal(rows).to(FLOAT32)
        self.grad_output = self.normal(*(() if reduction != "none" else (rows,)))
        self.out_dtype = dtype

    def lists(self, rows, length, dtype):
        """Lists of no, some and many labels, with duplicates, and arbitrary values after the
        end."""
        labels = torch.randint(length, (rows, length), generator=self.draw).to(dtype)
        if dtype == torch.uint8:  # has no value to end a list
            return labels
        for row in labels:
            end = random.choice([0, 1, 2, 5, 20, 60 if length > 64 else length])
            row[end : end + 1] = -1
            row[: min(2, end)] = row[0].item()  # listed twice
        return labels

    def normal(self, *shape):
        return torch.randn(shape, generator=self.draw, dtype=FLOAT64)

    def call(self, tensor=None):
        where = self.backend.device
        moved = [t if t is None else t.to(where) for t in (self.label, self.row_weight)]
        return ([v.to(where) for v in self.vectors], *moved, self.loss, self.params, self.reduction)

    def reduced(self, rows):
        if self.reduction == "none":
            return rows
        return rows.mean() if self.reduction == "mean" else rows.sum()

    def rows(self, *vectors):
        rows = FORMULAS[self.loss](vectors, self.label, *self.params)
        return rows if self.row_weight is None else rows * self.row_weight

    def truth(self):
        """Value, gradients, and the sizes that rounding errors are relative to."""
        vectors = [v.double().requires_grad_() for v in self.vectors]
        value = self.reduced(self.exact_rows(*vectors))
        grads = torch.autograd.grad(value, vectors, self.grad_output, allow_unused=True)
        with torch.no_grad():
            sizes, by_element = self.sizes(*vectors)
        weight = 1 if self.row_weight is None else self.row_weight.double().abs()
        outer = weight * self.grad_output.abs()
        outer = outer / (len(sizes) if self.reduction == "mean" else 1)
        outer = torch.as_tensor(outer).expand(sizes.shape).unsqueeze(-1)
        return value, grads, self.reduced(weight * sizes), [outer * size for size in by_element]

    def sizes(self, *v):
        """The sizes of the rows' losses, and of the gradients' elements."""
        length = v[0].shape[1]
        if self.loss == "cosine_embedding":
            a, b = ((x * x).sum(1, keepdim=True) + 1e-12 for x in v)
            # However small the cosine is, its error is relative to the lengths.
            return torch.full(v[0].shape[:1], 2.0, dtype=FLOAT64), [
                v[1].abs() / (a * b).sqrt() + v[0].abs() / a,
                v[0].abs() / (a * b).sqrt() + v[1].abs() / b,
            ]
        if self.loss.startswith("triplet"):
            l1 = self.loss.endswith("l1")
            epsilon = self.params[2]
            value, parts = self.params[0], []
            for x, y in ((v[0], v[1]), (v[0], v[2]), (v[1], v[2])):
                d, scale = (x - y + epsilon).abs(), x.abs() + y.abs() + epsilon
                norm = d.sum(1) if l1 else d.square().sum(1).sqrt()
                scales = scale.sum(1) if l1 else scale.square().sum(1).sqrt()
                value = value + scales
                # An error in a difference changes the norm, and thereby the whole row.
                parts.append(
                    torch.ones_like(d)
                    if l1
                    else (scale + d * (scales / norm)[:, None]) / norm[:, None]
                )
            near, far, other = parts
            return value, [near + far, near + other, far + other]
        if self.loss.startswith("multi_margin"):
            own = v[0].gather(1, self.label.long()[:, None]).abs()
            scale = self.params[0] + own + v[0].abs()
            if self.loss == "multi_margin":
                by_element = torch.full_like(scale, 1 / length)
                by_element.scatter_(1, self.label.long()[:, None], 1.0)
                return scale.mean(1), [by_element]
            by_element = 2 * scale / length
            by_element.scatter_(1, self.label.long()[:, None], 2 * scale.mean(1, keepdim=True))
            return scale.square().mean(1), [by_element]
        if self.loss == "multilabel_margin":
            labels, pairs, _ = self.pairs(v[0])
            counts = pairs.sum(1).double().scatter_add(1, labels, pairs.sum(2).double()) / length
            largest = 1 + 2 * v[0].abs().amax(1)
            return pairs.sum((1, 2)) / length * largest, [counts]
        alpha, beta, smooth = self.params
        p = v[0].sigmoid() if self.loss == "tversky_of_logits" else v[0]
        y = v[1]
        found = (p * y).sum(1)
        total = found + alpha * (p * (1 - y)).sum(1) + beta * ((1 - p) * y).sum(1) + smooth
        most = (3 / total)[:, None].expand(p.shape)
        inner = p * (1 - p) if self.loss == "tversky_of_logits" else 1.0
        return torch.ones_like(total), [most * inner, most]

    def pairs(self, x):
        """The labels listed by the rows; and for each label and class, whether they form a pair,
        and the hinge before clamping at 0."""
        given = (self.label >= 0).cumprod(1)
        most = int(given.sum(1).max())
        listed, labels = given[:, :most, None] > 0, self.label[:, :most].long().clamp_min(0)
        is_label = torch.zeros_like(x).scatter_add(1, labels, given[:, :most].double()) > 0
        z = 1 - x.gather(1, labels)[:, :, None] + x[:, None, :]
        return labels, listed & ~is_label[:, None, :], z

    def exact_rows(self, *vectors):
        """Uses the formulas, except for the one that sorts and adds up more than the hinges."""
        if self.loss != "multilabel_margin":
            return self.rows(*vectors)
        _, pairs, z = self.pairs(*vectors)
        rows = torch.where(pairs, z.relu(), 0).sum((1, 2)) / vectors[0].shape[1]
        return rows if self.row_weight is None else rows * self.row_weight

    def uncertain(self):
        """Whether rounding may move a value across a kink."""
        v = [x.double() for x in self.vectors]
        if self.loss.startswith("multi_margin"):
            z = self.params[0] - v[0].gather(1, self.label.long()[:, None]) + v[0]
            return bool(((z != 0) & (z.abs() < 1e-5)).any())
        if self.loss == "multilabel_margin":
            _, pairs, z = self.pairs(v[0])
            return bool((pairs & (z != 0) & (z.abs() < 1e-6)).any())
        if self.loss == "triplet_margin_l1":
            pairs = ((v[0], v[1]), (v[0], v[2]), (v[1], v[2]))
            close = [(x - y + self.params[2]).abs() < 1e-6 for x, y in pairs]
            if any(bool(c.any()) for c in close):
                return True
        value, _ = self.sizes(*v)
        margin = 1e-4 * value
        if self.loss.startswith("triplet"):
            pairs = ((v[0], v[1]), (v[0], v[2]), (v[1], v[2]))
            p = 1 if self.loss.endswith("l1") else 2
            near, far, other = ((x - y + self.params[2]).norm(p, 1) for x, y in pairs)
            if self.params[1] and bool(((far - other).abs() < margin).any()):
                return True
            far = torch.minimum(far, other) if self.params[1] else far
            return bool(((self.params[0] + near - far).abs() < margin).any())
        if self.loss == "cosine_embedding":
            a, b = ((x * x).sum(1) + 1e-12 for x in v)
            cosine = (v[0] * v[1]).sum(1) / (a * b).sqrt()
            return bool(((cosine - self.params[0]).abs() < margin).any())
        return False

    def check(self):
        wanted, grads, size, sizes = self.truth()
        mask = [random.random() < 0.7 for _ in grads]
        three = mask + [False] * (3 - len(mask))
        nothing = [False] * 3
        single = self.reduction != "none"
        value, *found = self.backend.ops.vectors_forward(
            *self.call(), self.out_dtype, nothing if not single else three
        )
        self.compare(value, wanted, size)
        if single:
            # grad_output is 1 here, so the expected values are scaled before comparing.
            scale = self.grad_output
            self.compare_all(found, [g if g is None else g / scale for g in grads],
                             [s / scale.abs() for s in sizes], mask)  # fmt: skip
        upstream = self.grad_output.to(self.backend.device)
        found = self.backend.ops.vectors_backward(upstream, *self.call(), three)
        self.compare_all(found, grads, sizes, mask)

    def compare_all(self, found, grads, sizes, mask):
        for got, grad, size, wanted in zip(found, grads, sizes, mask, strict=False):
            assert (got is not None) == wanted
            if wanted:
                assert got.dtype == self.dtype
                self.compare(got, torch.zeros_like(size) if grad is None else grad, size)
        assert all(got is None for got in found[len(mask) :])

    def compare(self, got, wanted, size):
        error = SLACK / 2 * size.abs()
        raw_ops.compare(self.loss, self.backend, got, wanted, error, self.dtype == FLOAT64)


def certain(*args, **options) -> Case:
    while (case := Case(*args, **options)).uncertain():
        pass
    return case


def check_a_label_out_of_range(backend, loss):
    case = Case(backend, loss, 4, 9, reduction="none")
    case.label = torch.tensor([3, 9, -1, 0])
    if loss == "multilabel_margin":
        case.label = torch.tensor([[3, -1], [1, 9], [9, 9], [0, 0]])
        case.label = torch.nn.functional.pad(case.label, (0, 7), value=-1)
    case.vectors[0][0] = 0.0  # all hinges are open
    call = case.call()
    if backend.raises_index_errors:
        with pytest.raises(RuntimeError, match="target out of range: 9 of 9"):
            backend.ops.vectors_forward(*call, FLOAT32, [False] * 3)
    else:
        value = backend.ops.vectors_forward(*call, FLOAT32, [False] * 3)[0]
        assert value.isnan().tolist() == [False, True, True, False]
    ones = torch.ones(4, device=backend.device)
    grad = backend.ops.vectors_backward(ones, *call, [True, False, False])[0]
    assert not grad.isnan().any()
    assert (grad[1:3] == 0).all()
    assert (grad[0] != 0).all()


def check_a_label_that_is_listed_twice(backend, length):
    """Its hinges count twice. Its derivative is written once."""
    x = torch.zeros(2, length, device=backend.device)
    labels = torch.full((2, length), -1)
    labels[:, [0, 1, 2, 38]] = torch.tensor([7, 7, 5, 7])
    call = ([x], labels.to(backend.device), None, "multilabel_margin", [], "sum")
    value, grad, *_ = backend.ops.vectors_forward(*call, FLOAT32, [True, False, False])
    assert labels[0, 3] == -1  # the last label is not listed
    others = length - 2
    torch.testing.assert_close(value.item(), 2 * 3 * others / length)
    wanted = torch.full((2, length), 3 / length)
    wanted[:, [5, 7]] = torch.tensor([-others / length, -2 * others / length])
    torch.testing.assert_close(grad.cpu(), wanted)
