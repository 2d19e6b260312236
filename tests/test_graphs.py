"""What is done with graphs of losses besides backward: gradients of gradients that are 0,
torch.jit.trace, and functionalization."""

from __future__ import annotations

import pytest
import torch
from conftest import DEVICE, make, needs_kernels
from test_drop_in import CASES

from lossops import functional


def _labels(classes=5, rows=4):
    return torch.arange(rows, device=DEVICE) % classes


def _lists():
    return torch.tensor([[2, 0, -1, 1, 1]] * 4, device=DEVICE)


ALL = CASES | {
    name: (lambda name=name, rest=rest: (
        [make.randn(4, 5)], lambda x, **k: getattr(functional, name)(x, *rest(), **k)
    ))
    for name, rest in {
        "l1_loss": lambda: (make.zeros(4, 5),),
        "nll_loss": lambda: (_labels(),),
        "cross_entropy": lambda: (_labels(),),
        "kl_div": lambda: (make.ones(4, 5),),
        "multi_margin_loss": lambda: (_labels(),),
        "multilabel_margin_loss": lambda: (_lists(),),
    }.items()
}  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_gradient_can_be_differentiated_where_it_is_constant(name, reduction):
    """As a gradient penalty does."""
    tensors, loss = ALL[name]()
    tensors = [t.detach().requires_grad_() for t in tensors]
    grads = torch.autograd.grad(loss(*tensors, reduction=reduction).sum(), tensors,
                                create_graph=True)  # fmt: skip
    assert all(grad.requires_grad for grad in grads)
    penalty = sum(grad.square().sum() for grad in grads)
    second = torch.autograd.grad(penalty, tensors)
    assert all(grad.isfinite().all() for grad in second)


@needs_kernels
@pytest.mark.parametrize("name", ["nll_loss", "multilabel_margin_loss", "multi_margin_loss"])
def test_the_derivative_of_a_constant_gradient_is_zero(name):
    """Also by infinite scores."""
    (x,), loss = ALL[name]()
    x[0, 4] = -torch.inf
    x = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(loss(x), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), x)
    assert (second == 0).all()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ALL)
def test_trace(name):
    tensors, loss = ALL[name]()
    traced = torch.jit.trace(loss, tuple(tensors))
    others = [0.5 * t for t in tensors]
    torch.testing.assert_close(traced(*others), loss(*others))


@pytest.mark.parametrize("name", ALL)
def test_functionalization(name):
    tensors, loss = ALL[name]()
    tensors = tuple(t.detach() for t in tensors)
    expected = torch.func.grad(loss)(*tensors)
    for transform in (
        lambda f: torch.func.functionalize(torch.func.grad(f)),
        lambda f: torch.func.grad(torch.func.functionalize(f)),
    ):
        torch.testing.assert_close(transform(loss)(*tensors), expected)
    value = torch.func.functionalize(loss)(*tensors)
    torch.testing.assert_close(value, loss(*tensors))
