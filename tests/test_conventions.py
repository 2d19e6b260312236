"""What torch does beside the formula: dtypes, NaN, and what it refuses."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as torch_functional
from conftest import DEVICE, cpu_only, make, pair

from lossops import functional, specs
from lossops.softmax_specs import ROW_SPECS
from lossops.vectors_specs import VECTOR_SPECS

F32, F64, HALF = torch.float32, torch.float64, torch.float16


@cpu_only
@pytest.mark.parametrize("name", ["soft_margin_loss", "hinge_embedding_loss"])
@pytest.mark.parametrize("dtypes", [(F32, F64), (F64, F32), (HALF, F32), (F32, torch.int32)])
def test_the_input_has_the_dtype(name, dtypes):
    input, target = make.tensor([0.5, -2.0, 1.0]), make.tensor([1.0, -1.0, 1.0])
    arguments = [tensor.to(dtype) for tensor, dtype in zip((input, target), dtypes, strict=True)]
    found, expected = (getattr(m, name)(*arguments) for m in (functional, torch_functional))
    torch.testing.assert_close(found, expected)


@cpu_only
def test_dtypes_of_gaussian_nll_loss():
    """A variance without dimensions, and autocast, which does not widen torch's on the CPU."""
    var = make.tensor(0.5, dtype=F64)
    for arguments in (
        (make.randn(3), make.randn(3), var),
        (make.randn(1)[0], make.randn(3), var),
        (make.randn(1)[0], make.randn(1)[0].double(), var.float()),
    ):
        found, expected = (m.gaussian_nll_loss(*arguments) for m in (functional, torch_functional))
        torch.testing.assert_close(found, expected)
    half = make.randn(3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for loss in (functional.gaussian_nll_loss, torch_functional.gaussian_nll_loss):
            assert loss(half, half, half.abs()).dtype == torch.bfloat16


def test_nan_as_a_label_of_a_ranking():
    x1, x2 = make.tensor([1.0, 2.0, 0.0], requires_grad=True), make.zeros(3)
    label = make.tensor([1.0, math.nan, -1.0])
    loss = functional.margin_ranking_loss(x1, x2, label, margin=0.5, reduction="sum")
    (grad,) = torch.autograd.grad(loss, x1)
    assert loss.isnan()
    assert grad.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("epsilon", [1e-3, 1e-40, 5e-324])
def test_charbonnier_at_its_bottom(epsilon):
    """However small epsilon is, the root there is no 0 to divide by."""
    x = make.tensor([0.0, 3.0], requires_grad=True)
    loss = functional.charbonnier_loss(x, make.zeros(2), epsilon, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), x)
    torch.testing.assert_close(loss, make.tensor([epsilon, 3.0]), rtol=1e-6, atol=1e-37)
    torch.testing.assert_close(grad, make.tensor([0.0, 1.0]))


def _calls():
    """Of all losses that have kernels: batches, rows alone, what is broadcast."""
    for spec in specs.SPECS:
        x, y = pair(spec, 4, 3)
        for tensors in ((x, y), (x[0], y[0]), (x[:1], y[:1]), (x[:1].expand(4, 3), y)):
            yield spec.function, tensors, spec.defaults
    for row in ROW_SPECS:
        x = make.randn(4, 3, 2).log_softmax(1)
        labels = torch.randint(3, (4, 2), device=DEVICE)
        for tensors in ((x, labels), (x[..., 0], labels[:, 0]), (x[0, :, 0], labels[0, 0])):
            dim = {"dim": min(1, tensors[0].dim() - 1)} if row.name == "log_prob_of" else {}
            yield row.function, tensors, dim
            if row.takes_forms:
                yield row.function, (tensors[0], tensors[0].exp()), {}
    for row in VECTOR_SPECS:
        for kwargs in row.samples:
            for shape in ((4, 3), (1, 3)):
                vectors, given = row.tensors(shape, torch.float32, device=DEVICE)
                yield row.function, (*vectors, *given), kwargs
                if not row.name.startswith(("dice", "tversky")):
                    yield row.function, [t[0] for t in (*vectors, *given)], kwargs
    x, a, b = make.randn(5, 4), make.randn(3, 4), make.randn(3)
    labels = torch.randint(3, (5,), device=DEVICE)
    for options in (None, SimpleNamespace(batch_chunk_size=2)):
        for tensors in ((x, a, labels), (x[0], a, labels[0])):
            yield functional.linear_cross_entropy, tensors, {"linear_bias": b, "options": options}


def test_no_result_is_a_view():
    """Which could not be changed in place, and would hold on to another tensor."""
    for function, tensors, kwargs in _calls():
        for reduction in ("none", "mean", "sum", "sample"):
            if reduction == "sample" and tensors[0].dim() < 2:
                continue
            for requires_grad in (False, True):
                moving = [
                    t.detach().requires_grad_(requires_grad) if t.is_floating_point() else t
                    for t in tensors
                ]
                if function is functional.log_prob_of:
                    loss = function(*moving, **kwargs)
                else:
                    loss = function(*moving, **kwargs, reduction=reduction)
                assert not loss._is_view(), (function, kwargs, reduction, tensors[0].shape)
                loss.mul_(2)


def test_a_row_alone_is_no_batch():
    for name in ("multilabel_soft_margin_loss", "multilabel_margin_loss"):
        target = make.tensor([1, 0, -1])
        target = target if "soft" not in name else target.abs().float()
        with pytest.raises(ValueError, match="needs a batch dimension"):
            getattr(functional, name)(make.randn(3), target, reduction="sample")


LISTS = {
    "mse_loss": 2, "charbonnier_loss": 2, "poisson_nll_loss": 2, "gaussian_nll_loss": 3,
    "soft_margin_loss": 2, "hinge_embedding_loss": 2, "margin_ranking_loss": 3,
    "multi_margin_loss": 2, "multilabel_margin_loss": 2, "multilabel_soft_margin_loss": 2,
    "cosine_embedding_loss": 3, "triplet_margin_loss": 3, "triplet_margin_with_distance_loss": 3,
    "dice_loss": 2, "tversky_loss": 2, "cross_entropy": 2, "linear_cross_entropy": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_lists_are_no_tensors(name):
    tensors = [torch.ones(1, 2, device=DEVICE)] * (LISTS[name] - 1)
    with pytest.raises(TypeError, match="should be a Tensor, got list"):
        getattr(functional, name)([[1.0, 2.0]], *tensors)
