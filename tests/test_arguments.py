"""Rarely used arguments, which must work as in torch, and arguments that make no sense."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as torch_functional
from conftest import cpu_only, make

from lossops import functional as F
from lossops.linear import cross_entropy as linear

NAN = float("nan")


def _labels():
    return make.arange(4) % 5


@pytest.mark.parametrize(
    "deprecated",
    [{"size_average": True}, {"size_average": False}, {"reduce": True}, {"reduce": False}, {}],
    ids=str,
)
def test_batchmean_beside_deprecated_arguments(deprecated):
    x, y = make.randn(4, 3).log_softmax(1), make.rand(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, expected = (
            f.kl_div(x, y, reduction="batchmean", **deprecated) for f in (F, torch_functional)
        )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "smooth_l1_loss"])
def test_a_number_beside_a_tensor_promotes(name):
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    for one, other in itertools.product(dtypes, repeat=2):
        for shapes in (((), (2,)), ((2,), ()), ((), ()), ((2,), (2,))):
            x, y = (make.ones(s, dtype=d) for s, d in zip(shapes, (one, other), strict=True))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found, expected = (getattr(f, name)(x, y).dtype for f in (F, torch_functional))
            assert found == expected, (one, other, shapes)


def test_targets_of_multilabel_soft_margin_broadcast_to_the_input_only():
    x, y = make.randn(2, 3), make.rand(3).round()
    found, expected = (f.multilabel_soft_margin_loss(x, y) for f in (F, torch_functional))
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="broadcast to it"):  # where torch averages over the rows
        F.multilabel_soft_margin_loss(x[0], y.expand(2, 3))


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda x, **k: F.hinge_embedding_loss(x, x.sign(), **k), "margin"),
        (lambda x, **k: F.margin_ranking_loss(x, x, x.sign(), **k), "margin"),
        (lambda x, **k: F.multi_margin_loss(x, _labels(), **k), "margin"),
        (lambda x, **k: F.cosine_embedding_loss(x, x, x[:, 0].sign(), **k), "margin"),
        (lambda x, **k: F.triplet_margin_loss(x, x, x, **k), "margin"),
        (lambda x, **k: F.triplet_margin_loss(x, x, x, **k), "p"),
        (lambda x, **k: F.triplet_margin_loss(x, x, x, **k), "eps"),
        (lambda x, **k: F.poisson_nll_loss(x, x.abs(), **k), "eps"),
        (lambda x, **k: F.gaussian_nll_loss(x, x, x.abs(), **k), "eps"),
        (lambda x, **k: F.focal_loss(x, _labels(), **k), "alpha"),
        (lambda x, **k: F.sigmoid_focal_loss(x, x.sigmoid(), **k), "alpha"),
    ],
)
def test_hyperparameters_are_numbers(call, argument):
    x = make.randn(4, 5)
    call(x)
    with pytest.raises(ValueError, match=argument):
        call(x, **{argument: NAN})


class TestLinear:
    """linear_cross_entropy accepts the dtypes that torch's linear accepts."""

    @pytest.fixture(autouse=True, params=["at once", "walked"])
    def walks(self, request, monkeypatch):
        if request.param == "walked":
            monkeypatch.setattr(linear, "_FEW_BYTES", -1)

    @staticmethod
    def tensors(dtype=torch.float32):
        x, w = (make.randn(*shape, dtype=dtype).requires_grad_() for shape in ((4, 3), (5, 3)))
        return x, w, _labels()

    @staticmethod
    def in_torch(x, w, y):
        return torch_functional.cross_entropy(torch_functional.linear(x, w), y)

    @pytest.mark.parametrize(
        ("one", "other"), [(torch.float32, torch.float64), (torch.bfloat16, torch.float32)]
    )
    def test_mixed_dtypes_are_refused(self, one, other):
        x, w, y = self.tensors()
        for a, b in ((one, other), (other, one)):
            with pytest.raises(RuntimeError, match="same dtype"):
                F.linear_cross_entropy(x.to(a), w.to(b), y)

    @cpu_only
    def test_autocast_leaves_float64_alone(self):
        x, w, y = self.tensors(torch.float64)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, expected = F.linear_cross_entropy(x, w, y), self.in_torch(x, w, y)
        torch.testing.assert_close(found, expected)
        grads = (torch.autograd.grad(loss, (x, w)) for loss in (found, expected))
        for ours, torchs in zip(*grads, strict=True):
            torch.testing.assert_close(ours, torchs)

    @cpu_only
    def test_autocast_makes_mixed_dtypes_one(self):
        x, w, y = self.tensors()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = F.linear_cross_entropy(x.bfloat16(), w, y)
            expected = self.in_torch(x.bfloat16(), w, y)
        assert found.dtype == expected.dtype
        # Logits are float32, and so are their factors if the CPU has no such product of other
        # dtypes.
        exact = self.in_torch(x.bfloat16().float(), w, y)
        torch.testing.assert_close(found, exact)

    def test_one_row_and_its_label(self):
        x, w, y = self.tensors()
        for label in (y[0], y[:1]):
            found = F.linear_cross_entropy(x[0], w, label)
            torch.testing.assert_close(found, self.in_torch(x[:1], w, y[:1]))
