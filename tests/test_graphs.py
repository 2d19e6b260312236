"""Uses of the autograd graph other than backward: gradients of zero gradients, torch.jit.trace,
functionalization, and inference tensors."""

from __future__ import annotations

import gc

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
    """As for a gradient penalty."""
    tensors, loss = ALL[name]()
    tensors = [t.detach().requires_grad_() for t in tensors]
    grads = torch.autograd.grad(loss(*tensors, reduction=reduction).sum(), tensors,
                                create_graph=True)  # fmt: skip
    assert all(grad.requires_grad for grad in grads)
    penalty = sum(grad.square().sum() for grad in grads)
    second = torch.autograd.grad(penalty, tensors)
    assert all(grad.isfinite().all() for grad in second)


@needs_kernels
@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "dice_loss"])
def test_differentiable_gradients_by_a_tensor_that_is_input_and_target(name):
    x = make.rand(4, 5).softmax(1).requires_grad_()
    loss = getattr(functional, name)
    (expected,) = torch.autograd.grad(loss(x, x), x)
    (found,) = torch.autograd.grad(loss(x, x), x, create_graph=True)
    torch.testing.assert_close(found.detach(), expected)


@needs_kernels
@pytest.mark.parametrize("name", ["nll_loss", "multilabel_margin_loss", "multi_margin_loss"])
def test_the_derivative_of_a_constant_gradient_is_zero(name):
    """Also with respect to infinite scores."""
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


@needs_kernels
@pytest.mark.parametrize("name", ALL)
def test_differentiable_gradients_leave_no_cycles(name):
    """Reference cycles would keep tensors of the input's size alive until the garbage collector
    runs."""
    tensors, loss = ALL[name]()
    tensors = [t.detach().requires_grad_() for t in tensors]

    def step():
        torch.autograd.grad(loss(*tensors), tensors, create_graph=True)

    def cycles() -> int:
        gc.collect()
        gc.disable()
        try:
            step()
            return gc.collect()
        finally:
            gc.enable()

    step()
    assert min(cycles() for _ in range(3)) == 0  # other code may occasionally leave some


# name: the output of a teacher, and the loss of x and that output.
TAUGHT = {
    **{
        name: (lambda name=name: (make.rand(6, 5) * 0.8 + 0.1, getattr(functional, name)))
        for name in (
            "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "log_cosh_loss", "kl_div",
            "binary_cross_entropy_with_logits", "sigmoid_focal_loss", "poisson_nll_loss",
            "soft_margin_loss", "cross_entropy", "kl_divergence", "js_divergence", "dice_loss",
        )
    },
    **{
        name: (lambda name=name: (_labels(rows=6), getattr(functional, name)))
        for name in ("cross_entropy", "nll_loss", "focal_loss", "multi_margin_loss", "log_prob_of")
    },
    "hinge": lambda: (make.randn(6, 5).sign(), functional.hinge_embedding_loss),
    "ranking": lambda: (
        make.randn(6, 5), lambda x, t: functional.margin_ranking_loss(x, t, t.sign())
    ),
    "gaussian": lambda: (make.rand(6, 5), lambda x, t: functional.gaussian_nll_loss(x, t, t)),
    "cosine": lambda: (
        make.randn(6, 5), lambda x, t: functional.cosine_embedding_loss(x, t, t[:, 0].sign())
    ),
    "triplet": lambda: (make.randn(6, 5), lambda x, t: functional.triplet_margin_loss(t, x, -t)),
    "lists": lambda: (
        torch.tensor([[2, 0, -1, 1, 1]] * 6, device=DEVICE), functional.multilabel_margin_loss
    ),
    "class weights": lambda: (
        make.rand(5), lambda x, w: functional.cross_entropy(x, _labels(rows=6), w, return_lse=True)
    ),
    "weight": lambda: (make.rand(6, 5), lambda x, w: functional.mse_loss(x, 0 * w, weight=w)),
    "normalizer": lambda: (
        make.rand(1),
        lambda x, n: functional.cross_entropy(x, _labels(rows=6), normalizer=n),
    ),
    "head": lambda: (
        make.randn(7, 5),
        lambda x, w: functional.linear_cross_entropy(x, w, _labels(rows=6), options=object()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAUGHT)
def test_what_inference_mode_gives_is_taken(name):
    """The outputs of a teacher model, which require no gradient."""
    given, loss = TAUGHT[name]()
    with torch.inference_mode():
        taught = given.clone()
    x = make.randn(6, 5).requires_grad_()
    for differentiable in (False, True):
        gradients = []
        for t in (taught, given):
            value = loss(x, t)
            value = value if isinstance(value, torch.Tensor) else value[0]
            (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=differentiable)
            gradients.append(gradient.detach())
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("lazy", ["negated", "conjugated"])
def test_inference_tensors_keep_lazy_operations(lazy):
    with torch.inference_mode():
        complexes = torch.complex(*make.randn(2, 6, 5)).conj()
        taught = complexes if lazy == "conjugated" else complexes.imag
    assert taught.is_neg() or taught.is_conj()
    x = make.randn(6, 5).requires_grad_()
    loss = functional.l1_loss if lazy == "conjugated" else functional.mse_loss
    expected = loss(x, taught.resolve_conj().resolve_neg().clone())
    torch.testing.assert_close(loss(x, taught), expected)
