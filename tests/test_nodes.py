"""The autograd nodes in Python, which serve the other backends, give the bits of those in C++."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import cpu_only, make

import lossops.functional as F
from lossops.core import fused, plain
from lossops.elementwise.autograd import ElementwiseCall
from lossops.softmax.autograd import SoftmaxCall
from lossops.vectors.autograd import VectorsCall

pytestmark = cpu_only


def use_python(monkeypatch) -> list[str]:
    """Replaces the nodes of the extension. Returns the families of those that are then called."""
    called = []

    def node_of(kind):
        def node(*given):
            called.append(kind.family)
            count = len(kind.Arguments._fields)
            tensors, arguments = given[: -count - 1], kind.Arguments(*given[-count - 1 : -1])
            return fused.Fused.apply(kind("native", arguments, given[-1]), *tensors)[0]

        return node

    kinds = (ElementwiseCall, SoftmaxCall, VectorsCall)
    nodes = SimpleNamespace(**{f"fused_{kind.family}": node_of(kind) for kind in kinds})
    monkeypatch.setattr(fused, "native_extension", nodes)
    monkeypatch.setattr(plain, "native_extension", None)
    return called


def _labels(x):
    return make.arange(x.shape[0]) % x.shape[1]


CALLS = {
    "huber": (F.huber_loss, lambda x: (x + make.randn(x.shape[1]).to(x.dtype),)),
    "weighted mse": (F.mse_loss, lambda x: (x * 2,)),
    "bce": (F.binary_cross_entropy_with_logits, lambda x: (x.sigmoid(),)),
    "cross_entropy": (F.cross_entropy, lambda x: (_labels(x),)),
    "kl_divergence": (F.kl_divergence, lambda x: (x.flip(1).clone(),)),
    "multi_margin": (F.multi_margin_loss, lambda x: (_labels(x),)),
    "triplet_margin": (F.triplet_margin_loss, lambda x: (x.flip(0) + 1, x.flip(1) - 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "sample"])
def test_nodes_agree(name, dtype, reduction, monkeypatch):
    function, others = CALLS[name]
    x = make.randn(6, 5).to(dtype).requires_grad_()
    others = tuple(other.detach() for other in others(x.detach()))
    if others[0].is_floating_point() and name != "bce":
        others[0].requires_grad_()
    kwargs = {"weight": make.rand(6, 5).to(dtype)} if name == "weighted mse" else {}
    moving = [t for t in (x, *others) if t.requires_grad]

    def step(grad_output=None):
        loss = function(x, *others, reduction=reduction, **kwargs)
        if grad_output is None:
            grad_output = make.randn(loss.shape).to(loss.dtype)
        first = torch.autograd.grad(loss, moving, grad_output, retain_graph=True)
        first = [gradient.clone() for gradient in first]
        again = torch.autograd.grad(loss, moving, grad_output)
        return grad_output, loss.detach(), first, again

    grad_output, *expected = step()
    called = use_python(monkeypatch)
    _, *found = step(grad_output)
    assert called
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
