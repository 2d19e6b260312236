"""Gradients of every order, with respect to every differentiable input, for all ways to call
backward."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as torch_functional
import torch.utils.checkpoint
from conftest import (
    DEVICE,
    NAMESPACE,
    away_from_kinks,
    each_case,
    each_dtype,
    each_reduction,
    each_spec,
    expect_kernels,
    expect_ops,
    make,
    needs_kernels,
    pair,
    ran,
    random_grad_like,
    raw_ops,
)
from test_value import truth, ulps

import lossops
from lossops import functional
from lossops.core import backends
from lossops.elementwise import reference
from lossops.specs import elementwise as specs

# On the CPU, binary_cross_entropy looks at its arguments in order to reject non-probabilities.
LOOK = {"binary_cross_entropy": ("aten::sum", "aten::_local_scalar_dense")}


def leaves(*tensors):
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


@each_case
@each_reduction
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_gradcheck(spec, kwargs, reduction, weighted):
    tensors = leaves(*away_from_kinks(spec, kwargs, 4, 3))
    if weighted:
        tensors += leaves(make.rand(4, 3, dtype=torch.float64) + 0.2)

    def loss(input, target, weight=None):
        return spec.function(input, target, reduction=reduction, weight=weight, **kwargs)

    assert torch.autograd.gradcheck(
        loss,
        tensors,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    if spec.differentiable >= 2 or weighted:
        assert torch.autograd.gradgradcheck(
            loss, tensors, check_fwd_over_rev=True, check_batched_grad=True
        )


@needs_kernels
@each_case
@each_dtype
@each_reduction
def test_gradient_is_as_right_as_torch(spec, kwargs, dtype, reduction):
    input, target = leaves(*away_from_kinks(spec, kwargs, 6, 37, dtype=dtype))
    loss = spec.function(input, target, reduction=reduction, **kwargs)
    grad_output = random_grad_like(loss)
    with expect_ops() as names:
        found = torch.autograd.grad(loss, (input, target), grad_output)
    assert ran(names, f"{NAMESPACE}::"), names
    assert not ran(names, "aten::sub"), names  # the gradient is the kernel's own
    exact = leaves(input.double(), target.double())
    true_loss = truth(spec, kwargs, *exact, reduction)
    true = torch.autograd.grad(true_loss, exact, grad_output.double())
    sizes = sizes_of_terms(spec, kwargs, exact, grad_output, reduction)
    for grad, expected, size in zip(found, true, sizes, strict=True):
        assert grad.dtype == dtype
        # In eps relative to the result, the kernel's derivative may have an error of 5/2, and the
        # three factors (1/n, their product, grad_output) half of one each. In float64 the expected
        # value has the same rounding error.
        allowed = (2 if dtype == torch.float64 else 1) * (4.0 + spec.slack(kwargs))
        if spec.torch_function is None or reduction == "sample":
            assert ulps(grad, expected, relative=True, size=size) <= allowed
            continue
        own = leaves(input)[0]
        own_loss = spec.in_torch(own, target.detach(), reduction=reduction, **kwargs)
        (own_grad,) = torch.autograd.grad(own_loss, own, grad_output)
        theirs = ulps(own_grad, true[0], size=sizes[0])
        assert ulps(grad, expected, size=size) <= max(allowed, 1 + theirs)


def sizes_of_terms(spec, kwargs, exact, grad_output, reduction):
    """For input and target: the derivatives of the terms of the loss, added as absolute values. If
    the terms cancel, rounding errors are relative to this."""
    if spec.kernel not in reference.TERMS:
        return 0, 0
    terms = reference.TERMS[spec.kernel](*exact, *spec.params(kwargs))
    mode, keep = ("mean", 1) if reduction == "sample" else (reduction, 0)
    sizes = [0, 0]
    for term in terms:
        loss = reference.reduce(term, mode, keep)
        grads = torch.autograd.grad(
            loss, exact, grad_output.double(), retain_graph=True, materialize_grads=True
        )
        sizes = [size + grad.abs() for size, grad in zip(sizes, grads, strict=True)]
    return sizes


each_backend = pytest.mark.parametrize("backend", backends.backends_for(DEVICE.type))


def open_at_zero_in_torch() -> bool:
    """Whether torch's hinge losses have derivative 1 at 0, as up to 2.13, or 0."""
    zero = make.zeros((), requires_grad=True)
    return torch.autograd.grad(zero.clamp_min(0), zero)[0].item() == 1


@each_backend
@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0])
def test_at_the_margin(margin, backend):
    """Exactly at the margin, the derivative is that of the side with a loss, in every version of
    torch. One ulp to either side it is as in torch. Also for invalid labels."""
    numbers = [margin, -margin, 0.0, math.nextafter(margin, 2), math.nextafter(margin, -2)]
    at = make.tensor(numbers, dtype=torch.float64)
    x = torch.cat((at, at, at))
    y = torch.cat((make.ones(5), -make.ones(5), make.full((5,), 0.25))).double()
    zero = torch.zeros_like(x)
    apart = torch.where(y == 1, zero, torch.where(margin - x >= 0, -1.0, zero))
    for ours, theirs, others, left, convention in (
        (
            functional.hinge_embedding_loss, torch_functional.hinge_embedding_loss, (),
            torch.where(y == 1, 1.0, margin - x), apart + torch.where(y == -1, zero, 1.0),
        ),
        (
            functional.margin_ranking_loss, torch_functional.margin_ranking_loss, (0.5 * x,),
            margin - (x - 0.5 * x) * y, torch.where(margin - (x - 0.5 * x) * y >= 0, -y, zero),
        ),
    ):  # fmt: skip
        with lossops.backend(backend):
            own = x.clone().requires_grad_()
            found, again, expected = (
                torch.autograd.grad(loss(own, *others, y, margin, reduction="sum"), own, **graph)[0]
                for loss, graph in ((ours, {}), (ours, {"create_graph": True}), (theirs, {}))
            )
        assert torch.equal(found, convention), (ours, found, convention)
        assert torch.equal(again, convention), (ours, again, convention)
        same = (left != 0) | open_at_zero_in_torch()
        assert torch.equal(found[same], expected[same]), (ours, found, expected)


@each_backend
def test_rows_of_vectors_at_the_margin(backend):
    """The same for a cosine of 0, and for a triplet exactly at the margin."""
    x, right, apart = ([[0.0, 1.0]], [[1.0, 0.0]], [-1])
    a, p, n = [[0.0]], [[1.0]], [[-2.0]]
    for name, vectors, label, options, convention in (
        ("cosine_embedding_loss", (x, right), apart, {"margin": 0.0}, [[1.0, 0.0]]),
        ("triplet_margin_loss", (a, p, n), None, {"margin": 1.0, "eps": 0.0}, [[-2.0]]),
    ):
        first, *others = (make.tensor(v, dtype=torch.float64) for v in vectors)
        others += [] if label is None else [make.tensor(label)]
        first.requires_grad_()
        with lossops.backend(backend):
            for module in (functional, *([torch_functional] * open_at_zero_in_torch())):
                loss = getattr(module, name)(first, *others, reduction="sum", **options)
                assert loss == 0
                for graph in (False, True):
                    (grad,) = torch.autograd.grad(
                        loss, first, create_graph=graph, retain_graph=True
                    )
                    expected = make.tensor(convention, dtype=torch.float64)
                    torch.testing.assert_close(grad, expected, msg=f"{name} {graph}")


@each_case
def test_at_kinks_as_torch(spec, kwargs):
    if not spec.regression:
        pytest.skip("it has no kinks")
    if spec.torch_function is None:
        points = make.zeros(3)
        (grad,) = torch.autograd.grad(
            spec.function(points.requires_grad_(), make.zeros(3), **kwargs), points
        )
        assert torch.equal(grad, make.zeros(3))
        return
    kinks = make.tensor([*spec.kinks(kwargs), 0.0], dtype=torch.float64)
    ours, theirs = leaves(kinks, kinks)
    target = torch.zeros_like(kinks)
    for point, function in ((ours, spec.function), (theirs, spec.torch_function)):
        (grad,) = torch.autograd.grad(
            function(point, target, reduction="sum", **kwargs), point, create_graph=True
        )
        point.first = grad.detach()
        if spec.differentiable >= 2 and kwargs.get("beta") != 0:
            (point.second,) = torch.autograd.grad(grad.sum(), point)
    torch.testing.assert_close(ours.first, theirs.first)
    if hasattr(ours, "second"):
        torch.testing.assert_close(ours.second, theirs.second)


@each_spec
@each_dtype
def test_backward_again_and_again(spec, dtype):
    """retain_graph: a second backward, after the fused gradient is gone, gives the same result."""
    input, target = leaves(*away_from_kinks(spec, spec.defaults, 3, 50, dtype=dtype))
    loss = spec.function(input, target, **spec.defaults)
    first = torch.autograd.grad(loss, (input, target), retain_graph=True)
    second = torch.autograd.grad(loss, (input, target), retain_graph=True)
    third = torch.autograd.grad(loss, (input, target), torch.full_like(loss, -2.0))
    for a, b, c in zip(first, second, third, strict=True):
        assert a.data_ptr() != b.data_ptr()
        assert torch.equal(a, b)
        torch.testing.assert_close(c, -2 * a)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, input)


@each_spec
def test_create_graph_first_or_last(spec):
    if spec.differentiable < 2 or spec.slope_without_input:
        pytest.skip("its second derivative is 0 wherever it exists")
    input, target = leaves(*away_from_kinks(spec, spec.defaults, 3, 5))
    expected = None
    for order in ((True, False), (False, True), (True, True)):
        loss = spec.function(input, target, **spec.defaults)
        grads = [
            torch.autograd.grad(loss, input, create_graph=graph, retain_graph=True)[0]
            for graph in order
        ]
        torch.testing.assert_close(grads[0], grads[1])
        differentiable = grads[order.index(True)]
        (second,) = torch.autograd.grad(differentiable.square().sum(), input)
        if expected is not None:
            torch.testing.assert_close(second, expected)
        expected = second
    own = input.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(
        truth(spec, spec.defaults, own, target.detach(), "mean"), own, create_graph=True
    )
    torch.testing.assert_close(expected, torch.autograd.grad(grad.square().sum(), own)[0])


def test_third_order():
    spec = specs.spec("log_cosh_loss")
    (input,) = leaves(make.randn(5, dtype=torch.float64))
    target = make.randn(5, dtype=torch.float64)
    grad = spec.function(input, target, reduction="sum")
    for _ in range(3):
        (grad,) = torch.autograd.grad(grad.sum(), input, create_graph=True)
    t = torch.tanh(input - target)
    torch.testing.assert_close(grad, -2 * t * (1 - t * t))


@each_spec
def test_sum_of_losses_and_loss_scale(spec):
    """Losses added, scaled, and applied to an intermediate, alongside another loss of it."""
    factor = 1.5 if spec.regression else 0.75  # probabilities stay probabilities
    x, y = away_from_kinks(spec, spec.defaults, 4, 8)
    grads = []
    for function in (
        spec.function,
        lambda *args, **kwargs: truth(spec, kwargs, *args, "mean"),
    ):
        (input,) = leaves(x)
        hidden = input * factor
        loss = (
            function(hidden, y, **spec.defaults) * 1024
            + function(input, y, **spec.defaults)
            - 3 * function(hidden, y * 0.99, **spec.defaults)
        )
        loss.backward()
        grads.append(input.grad)
    torch.testing.assert_close(*grads)


@each_spec
def test_float16_gradient_survives_loss_scaling(spec):
    """A gradient of 1e-8 is 0 in float16. Multiplied by a loss scale of 2^15, it is not."""
    x, y = away_from_kinks(spec, spec.defaults, 1 << 20, dtype=torch.float16)
    (input,) = leaves(x)
    loss = spec.function(input.double().half(), y, **spec.defaults)
    (loss.float() * 2**15).backward()
    exact = x.double().requires_grad_()
    (truth(spec, spec.defaults, exact, y, "mean") * 2**15).backward()
    grad_output = make.tensor(2.0**15)
    size, _ = sizes_of_terms(
        spec, spec.defaults, leaves(x.double(), y.double()), grad_output, "mean"
    )
    assert ulps(input.grad, exact.grad, size=size) <= 2


@each_spec
def test_backward_hands_out_a_gradient_of_its_own(spec):
    """Detects a second use of the memory of the returned gradient."""
    input, target = pair(spec, 64)
    input.requires_grad_()
    loss = spec.function(input, target, **spec.defaults)
    loss.backward(retain_graph=True)
    kept = input.grad.clone()
    loss.backward(make.tensor(5.0))
    torch.testing.assert_close(input.grad, kept * 6)


@each_spec
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(spec, use_reentrant):
    x, y = pair(spec, 6)
    x.requires_grad_()

    def block(x):
        return spec.function(x * 0.9, y, **spec.defaults) * 3

    torch.utils.checkpoint.checkpoint(block, x, use_reentrant=use_reentrant).backward()
    torch.testing.assert_close(x.grad, torch.autograd.grad(block(x), x)[0])


def test_exceptions_keep_their_type():
    x = make.randn(4, requires_grad=True)

    def refuse(tensor):
        raise ValueError("not to be saved")

    with (
        torch.autograd.graph.saved_tensors_hooks(refuse, lambda t: t),
        pytest.raises(ValueError, match="not to be saved"),
    ):
        specs.spec("mse_loss").function(x, make.zeros(4))


@each_spec
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_grad_output_with_a_tangent(spec, reduction):
    """Backward is linear in grad_output, so its tangent is propagated, in both forward modes."""
    x, y = pair(spec, 5, dtype=torch.float64)
    x.requires_grad_()
    for repeat in range(2):
        loss = spec.function(x, y, reduction=reduction, **spec.defaults)
        one, two = torch.ones_like(loss), torch.full_like(loss, 2)
        if repeat:
            _, tangent = torch.func.jvp(
                lambda g, loss=loss: torch.autograd.grad(loss, x, g, retain_graph=True)[0],
                (one,),
                (two,),
            )
        else:
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(one, two)
                (grad,) = torch.autograd.grad(loss, x, dual, retain_graph=True)
                tangent = torch.autograd.forward_ad.unpack_dual(grad).tangent
        expected = torch.autograd.grad(loss, x, two)[0]
        torch.testing.assert_close(tangent, expected)


@each_spec
def test_second_order_with_constant_weights(spec):
    """The denominator of the mean is then a number that the kernels divide by."""
    tensors = leaves(*away_from_kinks(spec, spec.defaults, 4, 3))
    weight = make.rand(4, 3, dtype=torch.float64) + 0.2
    for reduction in ("mean", "sample"):

        def loss(x, y, reduction=reduction):
            return spec.function(x, y, reduction=reduction, weight=weight, **spec.defaults)

        torch.autograd.gradcheck(loss, tensors, check_batched_grad=True)
        if spec.differentiable >= 2:
            torch.autograd.gradgradcheck(loss, tensors)


@needs_kernels
def test_inputs_changed_after_forward_are_noticed():
    input = make.randn(8, requires_grad=True)
    hidden = input * 2
    loss = specs.spec("mse_loss").function(hidden, make.zeros(8))
    with torch.no_grad():
        hidden.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_kernels
def test_raw_ops_refuse_to_be_differentiated():
    input = make.randn(8, requires_grad=True)
    value, *_ = raw_ops().elementwise_forward(
        input, make.zeros(8), None, None, "mse", (), "sum", 0, torch.float32, (False,) * 3
    )
    with pytest.raises(RuntimeError, match="not implemented"):
        value.backward()


@each_spec
def test_no_gradient_no_work(spec):
    input, target = pair(spec, 32)
    with expect_kernels("forward"):
        assert not spec.function(input, target, **spec.defaults).requires_grad
    input.requires_grad_()
    with torch.no_grad():
        assert spec.function(input, target, **spec.defaults).grad_fn is None


@needs_kernels
@each_spec
def test_training_step_reads_twice_and_writes_once(spec):
    """One forward kernel, and one launch in backward that checks grad_output. There is no other
    pass."""
    input, target = pair(spec, 32)
    input.requires_grad_()
    with expect_kernels("forward", "rescale_") as names:
        spec.function(input, target, **spec.defaults).backward()
    # grad_output, and the tensor that becomes input.grad. On the CPU, also a check whether a loss
    # is NaN.
    bookkeeping = {"aten::ones_like", "aten::detach", *LOOK.get(spec.name, ())}
    assert set(ran(names, "aten::")) <= bookkeeping, names
