"""The contract of the raw vector ops (``lossops/vectors/ops.py``), for every engine, as in
test_raw_ops.py for the elementwise ops."""

from __future__ import annotations

import math
import random

import pytest
import torch
from conftest import cpu_only
from raw_ops import BFLOAT16, FLOAT16, FLOAT32, FLOAT64
from raw_vectors import (
    LABELS,
    LAYOUTS,
    PARAMS,
    VECTORS,
    Case,
    certain,
    check_a_label_out_of_range,
    check_a_label_that_is_listed_twice,
    laid_out,
)  # fmt: skip

LENGTHS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 1000, 1025, 2049, 4097]
REDUCTIONS = ["none", "mean", "sum"]

each_loss = pytest.mark.parametrize("loss", VECTORS)
each_dtype = pytest.mark.parametrize(
    "dtype", [FLOAT64, FLOAT32, BFLOAT16, FLOAT16], ids=lambda dtype: str(dtype)[6:]
)
pytestmark = pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")


@each_dtype
@each_loss
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_lengths_and_layouts(backend, loss, dtype, reduction):
    for length in LENGTHS:
        rows = random.randint(1, 12 if length < 100 else 3)
        certain(
            backend, loss, rows, length, dtype, reduction, LAYOUTS, random.random() < 0.5,
            random.choice([torch.int64, torch.int32, torch.uint8]) if length < 256 else torch.int64,
        ).check()  # fmt: skip


@each_loss
def test_many_rows(backend, loss):
    certain(backend, loss, 700, 5).check()
    certain(backend, loss, 40, 300, layouts=LAYOUTS, weighted=True).check()
    certain(backend, loss, 19, 1300).check()  # more than the blocks of a GPU of the tests' size


@each_loss
def test_one_row_for_all(backend, loss):
    """Rows of stride 0, with one label and one weight for all."""
    case = certain(backend, loss, 6, 20, reduction="none", weighted=True)
    case.vectors = [laid_out(v, "one for all") for v in case.vectors]
    if case.label is not None:
        case.label = case.label[:1].expand(6, *case.label.shape[1:])
    case.row_weight = case.row_weight[:1].expand(6)
    assert not case.uncertain()  # the first row was certain
    case.check()


@pytest.mark.parametrize("loss", ["multi_margin", "multi_margin_squared", "multilabel_margin"])
def test_a_label_out_of_range(backend, loss):
    check_a_label_out_of_range(backend, loss)


@pytest.mark.parametrize("label", [12, -2])
def test_what_is_behind_the_end_of_a_list(backend, label):
    """The kernels do not read it. On the CPU it must be a class or -1, as in torch."""
    case = Case(backend, "multilabel_margin", 300, 9, reduction="none")
    case.label = torch.full((300, 9), -1)
    case.label[:, 0] = 3
    call = case.call()
    wanted = backend.ops.vectors_forward(*call, FLOAT32, [False] * 3)[0]
    case.label[271, 8] = label
    if backend.raises_index_errors:
        with pytest.raises(RuntimeError, match=f"target out of range: {label} of 9"):
            backend.ops.vectors_forward(*case.call(), FLOAT32, [False] * 3)
    else:
        found = backend.ops.vectors_forward(*case.call(), FLOAT32, [False] * 3)[0]
        assert torch.equal(found, wanted)


def test_lists_of_all_classes_and_of_none(backend):
    x = torch.tensor([[0.5, 0.0, 1.0]] * 3, device=backend.device)
    ones = torch.ones(3, device=backend.device)
    labels = torch.tensor([[2, 0, 1], [-1, 0, 1], [1, 1, -1]], device=backend.device)
    for dtype in (torch.int64, torch.int32):
        call = ([x], labels.to(dtype), None, "multilabel_margin", [], "none")
        value = backend.ops.vectors_forward(*call, FLOAT32, [False] * 3)[0]
        torch.testing.assert_close(value.tolist(), [0.0, 0.0, 2 * (1.5 + 2) / 3])
        grad = backend.ops.vectors_backward(ones, *call, [True, False, False])[0]
        torch.testing.assert_close((3 * grad).tolist(), [[0.0] * 3, [0.0] * 3, [2.0, -4.0, 2.0]])


@pytest.mark.parametrize("length", [40, 1100])
def test_a_label_that_is_listed_twice(backend, length):
    check_a_label_that_is_listed_twice(backend, length)


def test_a_closed_hinge_of_zero(backend):
    """At the margin the derivative is 0, as in torch."""
    x = torch.tensor([[1.0, 0.0]], device=backend.device)
    labels = torch.tensor([[0, -1]], device=backend.device)
    call = ([x], labels, None, "multilabel_margin", [], "none")
    one = torch.ones(1, device=backend.device)
    grad = backend.ops.vectors_backward(one, *call, [True, False, False])[0]
    assert (grad == 0).all()


def test_norms_of_zero_and_ties(backend):
    """The derivative at a norm of 0 is 0. Two equal norms get half of the derivative each."""
    zero = torch.zeros(1, 3, device=backend.device)
    one = torch.tensor([[1.0, 0.0, 0.0]], device=backend.device)
    ones = torch.ones(1, device=backend.device)
    for loss in ("triplet_margin", "triplet_margin_l1"):
        call = ([zero, zero, one], None, None, loss, [2.0, 0.0, 0.0], "none")
        value = backend.ops.vectors_forward(*call, FLOAT32, [False] * 3)[0]
        assert value.tolist() == [1.0]
        a, p, n = backend.ops.vectors_backward(ones, *call, [True] * 3)
        assert a[0].tolist() == [1.0, 0.0, 0.0]
        assert p[0].tolist() == [0.0, 0.0, 0.0]
        assert n[0].tolist() == [-1.0, 0.0, 0.0]
        # |a - n| = |p - n| = 1: the derivative is shared.
        call = (*call[:4], [2.0, 1.0, 0.0], "none")
        a, p, n = backend.ops.vectors_backward(ones, *call, [True] * 3)
        assert a[0].tolist() == [0.5, 0.0, 0.0]
        assert p[0].tolist() == [0.5, 0.0, 0.0]
        assert n[0].tolist() == [-1.0, 0.0, 0.0]


def test_kinks(backend):
    """Derivatives at the margin are torch's: a hinge of 0 counts for pairs, but not for classes."""
    x = torch.tensor([[1.0, 0.5, 0.0]], device=backend.device)
    label, ones = torch.zeros(1, dtype=torch.int64, device=backend.device), torch.ones(1)
    ones = ones.to(backend.device)
    call = ([x], label, None, "multi_margin", [0.5], "none")
    grad = backend.ops.vectors_backward(ones, *call, [True, False, False])[0]
    assert (grad == 0).all()
    y = torch.tensor([[0.0, 1.0, 0.0]], device=backend.device)
    x = torch.tensor([[1.0, 0.0, 0.0]], device=backend.device)
    call = ([x, y], -ones, None, "cosine_embedding", [0.0], "none")
    grad = backend.ops.vectors_backward(ones, *call, [True, False, False])[0]
    torch.testing.assert_close(grad, y)


@each_loss
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity(backend, loss, number):
    """They affect only their own row, with the same results as in the formulas."""
    for place in range(VECTORS[loss]):
        case = certain(backend, loss, 3, 20, reduction="none")
        if loss == "cosine_embedding":
            case.label = torch.ones(3)
        case.vectors[place][1, 7] = number
        vectors = [v.double().requires_grad_() for v in case.vectors]
        wanted = case.rows(*vectors)
        value = backend.ops.vectors_forward(*case.call(), FLOAT32, [False] * 3)[0]
        torch.testing.assert_close(
            value.cpu().double(), wanted.detach(), rtol=1e-4, atol=1e-5, equal_nan=True
        )
        mask = [i < VECTORS[loss] for i in range(3)]
        ones = torch.ones(3, device=backend.device)
        grads = backend.ops.vectors_backward(ones, *case.call(), mask)
        truths = torch.autograd.grad(wanted.sum(), vectors)
        for grad, truth in zip(grads, truths, strict=False):
            # Where the formula gives NaN from infinity times 0, a number is allowed. If the loss is
            # NaN, anything is.
            known = ~truth.isnan() & ~wanted.isnan().unsqueeze(1)
            torch.testing.assert_close(
                grad.cpu().double()[known], truth[known], rtol=1e-3, atol=1e-5
            )
            assert grad[[0, 2]].isfinite().all()


@each_loss
def test_no_rows(backend, loss):
    empty = torch.empty(0, 4, device=backend.device)
    label = {
        "": None,
        "number": torch.empty(0, device=backend.device),
        "index": torch.empty(0, dtype=torch.int64, device=backend.device),
        "list": torch.empty(0, 4, dtype=torch.int64, device=backend.device),
    }[LABELS[loss]]
    for reduction, wanted in (("mean", math.nan), ("sum", 0.0), ("none", None)):
        call = ([empty] * VECTORS[loss], label, None, loss, PARAMS[loss], reduction)
        mask = [reduction != "none", False, False]
        value, grad, *_ = backend.ops.vectors_forward(*call, FLOAT32, mask)
        if wanted is None:
            assert value.shape == (0,)
        else:
            torch.testing.assert_close(value.item(), wanted, equal_nan=True)
            assert grad.shape == (0, 4)


@pytest.mark.parametrize("loss", [name for name in VECTORS if LABELS[name] in ("", "number")])
def test_no_elements(backend, loss):
    """Rows without elements, for which no memory is read. An index label would need a class."""
    empty = torch.empty(3, 0, device=backend.device)
    label = torch.ones(3, device=backend.device) if loss == "cosine_embedding" else None
    call = ([empty] * VECTORS[loss], label, None, loss, PARAMS[loss], "none")
    value = backend.ops.vectors_forward(*call, FLOAT32, [False] * 3)[0]
    wanted = {"cosine_embedding": 1.0, "tversky": 0.0, "tversky_of_logits": 0.0}.get(loss, 1.5)
    assert value.tolist() == [wanted] * 3


@cpu_only
@pytest.mark.parametrize("loss", ["triplet_margin", "multi_margin", "multilabel_margin"])
def test_the_same_bits_for_any_number_of_threads(loss):
    from raw_ops import Backend

    case = Case(Backend(torch.ops.lossops), loss, 30_000, 9)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            mask = [True] + [False] * 2
            found.append(torch.ops.lossops.vectors_forward(*case.call(), FLOAT32, mask)[:2])
    finally:
        torch.set_num_threads(threads)
    for value, grad in found[1:]:
        assert torch.equal(value, found[0][0])
        assert torch.equal(grad, found[0][1])
