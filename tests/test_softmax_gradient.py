"""Gradients of the losses over rows of class scores: of every order, with respect to input, target
and weight, from the additional outputs of a call, and in place."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as torch_functional
import torch.utils.checkpoint
from conftest import (
    BACKEND,
    DEVICE,
    NAMESPACE,
    cpu_only,
    each_dtype,
    each_reduction,
    expect_ops,
    expect_softmax_kernels,
    make,
    needs_kernels,
    ran,
    random_grad_like,
)
from softmax_losses import (
    CASES,
    EVERYTHING,
    Case,
    each_softmax_case,
    leaves,
    scaled_ulps,
    some_weights,
    truth,
)

import lossops
from lossops import functional
from lossops.core import backends


def differentiable(case, shape, dtype=torch.float64):
    """Leaves to differentiate with respect to, the other tensors, and the keyword arguments."""
    input, target, kwargs = case.tensors(shape, dtype)
    moving = leaves(input, target) if case.soft else leaves(input)
    still = () if case.soft else (target,)
    return moving, still, kwargs


@each_softmax_case
@each_reduction
def test_gradcheck(case, reduction):
    for shape in ((4, 3), (2, 3, 2)):
        moving, still, kwargs = differentiable(case, shape)
        if reduction == "sample" and case.ignored:
            still = (torch.zeros_like(still[0]),)  # a sample with only ignored rows would be NaN

        def loss(*moving, still=still, kwargs=kwargs):
            return case(*moving, *still, reduction, **kwargs)

        assert torch.autograd.gradcheck(
            loss, moving, check_forward_ad=True, check_batched_grad=True,
            check_batched_forward_grad=True,
        )  # fmt: skip
        assert torch.autograd.gradgradcheck(
            loss, moving, check_fwd_over_rev=True, check_batched_grad=True
        )


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "temperature": 0.7}], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("target_kind", ["labels", "probs"])
def test_gradcheck_through_all_outputs(target_kind, reduction, options):
    case = Case("cross_entropy", target_kind, {"z_loss": 1e-2, **options})
    moving, still, kwargs = differentiable(case, (4, 3))
    if still:
        still[0][1] = -100  # its log-sum-exp and entropy are differentiable like any other row's

    def outputs(*moving):
        return functional.cross_entropy(
            *moving, *still, reduction=reduction, return_lse=True, return_entropy=True, **kwargs
        )

    assert torch.autograd.gradcheck(outputs, moving, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(outputs, moving, check_batched_grad=True)


def test_gradcheck_of_log_prob_of():
    index = torch.randint(3, (4, 2), device=DEVICE)
    (logits,) = leaves(make.randn(4, 3, 2, dtype=torch.float64))

    def outputs(logits):
        return functional.log_prob_of(logits, index, dim=1, temperature=0.7, return_entropy=True)

    assert torch.autograd.gradcheck(outputs, logits, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(outputs, logits)


@needs_kernels
@each_softmax_case
@each_dtype
@each_reduction
def test_gradient(case, dtype, reduction):
    """Compares the kernels' gradients for a random cotangent with float64, within a few roundings
    of the terms."""
    for shape in ((6, 37), (3, 70, 5)):
        moving, still, kwargs = differentiable(case, shape, dtype)
        loss = case(*moving, *still, reduction, **kwargs)
        grad_output = random_grad_like(loss)
        with expect_ops() as names:
            found = torch.autograd.grad(loss, moving, grad_output)
        assert ran(names, f"{NAMESPACE}::"), names
        assert not ran(names, "aten::_log_softmax"), names  # the gradient is the kernel's own
        exact = leaves(*(t.double() for t in moving))
        true_loss = case.truth(*exact, *still, reduction, **kwargs)
        true = torch.autograd.grad(true_loss, exact, grad_output.double())
        for grad, expected in zip(found, true, strict=True):
            assert grad.dtype == dtype
            compute = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
            info = torch.finfo(dtype)
            within = expected.abs() * info.eps + 64 * compute * expected.abs().amax()
            within = within + 2 * info.eps * info.smallest_normal
            # The terms that cancel in a row's derivatives are as large as its cotangent.
            inner = math.prod(shape[2:])
            rows = {"mean": shape[0] * inner, "sample": inner}.get(reduction, 1)
            within = within + 8 * compute * grad_output.double().abs().amax() / rows
            error = (grad.double() - expected).abs()
            assert ((error <= within) | (expected.isnan() & grad.isnan())).all()


@needs_kernels
@each_dtype
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize(
    "options",
    [{}, {"weight": True}, {"label_smoothing": 0.2}, {"weight": True, "label_smoothing": 0.1}],
    ids=str,
)
def test_gradient_is_as_right_as_torchs(options, classes, reduction, dtype):
    options = dict(options)
    if options.get("weight"):
        options["weight"] = (make.rand(classes) + 0.25).to(dtype)
    x = (2 * make.randn(60, classes)).to(dtype)
    target = torch.randint(classes, (60,), device=DEVICE)
    target[::7] = -100
    grads, grad_output = [], None
    for function, kind in (
        (functional.cross_entropy, dtype), (torch_functional.cross_entropy, dtype),
        (torch_functional.cross_entropy, torch.float64),
    ):  # fmt: skip
        (leaf,) = leaves(x.to(kind))
        wide = {k: v.to(kind) if torch.is_tensor(v) else v for k, v in options.items()}
        loss = function(leaf, target, reduction=reduction, **wide)
        grad_output = random_grad_like(loss) if grad_output is None else grad_output
        grads.append(torch.autograd.grad(loss, leaf, grad_output.to(kind))[0])
    ours, theirs, true = grads
    # Differences such as p - 1 are compared relative to the size of their terms.
    size = true.abs().amax().item()
    double = 32.0 if dtype == torch.float64 else 0.0  # the expected value, torch's, is off by 17
    assert scaled_ulps(ours, true, size) <= 1 + scaled_ulps(theirs, true, size) + double
    assert (ours[::7] == 0).all()


@each_softmax_case
@each_dtype
def test_backward_again_and_again(case, dtype):
    """retain_graph: a second backward, after the fused gradient is gone, gives the same result."""
    moving, still, kwargs = differentiable(case, (5, 33), dtype)
    loss = case(*moving, *still, **kwargs)
    first = torch.autograd.grad(loss, moving, retain_graph=True)
    second = torch.autograd.grad(loss, moving, retain_graph=True)
    third = torch.autograd.grad(loss, moving, torch.full_like(loss, -2.0))
    for a, b, c in zip(first, second, third, strict=True):
        assert a.data_ptr() != b.data_ptr()
        assert torch.equal(a, b)
        torch.testing.assert_close(c, -2 * a)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, moving)


def second_gradients(grad, moving):
    """All 0 if the gradient is constant."""
    if not grad.requires_grad:
        return tuple(torch.zeros_like(t) for t in moving)
    return torch.autograd.grad(grad.square().sum(), moving, materialize_grads=True)


@each_softmax_case
def test_create_graph_first_or_last(case):
    moving, still, kwargs = differentiable(case, (3, 5))
    expected = None
    for order in ((True, False), (False, True), (True, True)):
        loss = case(*moving, *still, **kwargs)
        grads = [
            torch.autograd.grad(loss, moving[0], create_graph=graph, retain_graph=True)[0]
            for graph in order
        ]
        torch.testing.assert_close(grads[0], grads[1])
        differentiated = grads[order.index(True)]
        second = second_gradients(differentiated, moving)
        if expected is not None:
            torch.testing.assert_close(second, expected)
        expected = second
    own = leaves(*moving)
    (grad,) = torch.autograd.grad(case.truth(*own, *still, **kwargs), own[0], create_graph=True)
    torch.testing.assert_close(expected, second_gradients(grad, own))


def test_third_order():
    (input,) = leaves(make.randn(2, 4, dtype=torch.float64))
    target = torch.randint(4, (2,), device=DEVICE)
    results = []
    for function in (functional.cross_entropy, torch_functional.cross_entropy):
        grad = function(input, target)
        for _ in range(3):
            (grad,) = torch.autograd.grad((grad * input.detach().sum()).sum(), input,
                                          create_graph=True)  # fmt: skip
        results.append(grad)
    torch.testing.assert_close(*results)


INF = math.inf
DIVERGENCES = {
    "kl": functional.kl_divergence,
    "reverse": functools.partial(functional.kl_divergence, reverse=True),
    "js": functional.js_divergence,
    "total variation": functional.total_variation,
    "l1": functional.l1_distribution_loss,
    "soft cross entropy": functional.soft_cross_entropy,
}


@each_dtype
@pytest.mark.parametrize("temperature", [1.0, 0.1, 4.0])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_classes_that_underflow_have_derivatives(name, temperature, dtype):
    """First and second derivatives agree with float64, and none is NaN."""
    for input, target in (
        ([100.0, 0.0, -100.0], [100.0, 1.0, -50.0]),
        ([0.0, 5.0, -150.0], [1.0, 0.0, -160.0]),
        ([0.0, 0.0, -1000.0], [0.0, 0.1, -1000.0]),
        ([0.0, 1.0, -INF], [0.0, 2.0, -INF]),
    ):
        found = []
        # Even when computed in float32 or better, a logit divided by the temperature has an error
        # of one ulp.
        cooled = max(abs(z) for z in input + target if math.isfinite(z)) / temperature
        unit = torch.finfo(dtype).eps + cooled * min(torch.finfo(dtype).eps, 2.0**-23)
        for wide in (dtype, torch.float64):
            given = (make.tensor([row], dtype=dtype) for row in (input, target))
            x, y = leaves(*(tensor.to(wide) for tensor in given))
            loss = DIVERGENCES[name](x, y, temperature=temperature)
            grads = torch.autograd.grad(loss, (x, y), retain_graph=True)
            again = torch.autograd.grad(loss, (x, y), create_graph=True)
            total = sum((g * (1 + i)).square().sum() for i, g in enumerate(again))
            found.append((loss, *grads, *again, *torch.autograd.grad(total, (x, y))))
        for got, right in zip(*found, strict=True):
            assert not right.isnan().any()
            off = 8 * unit * max(1.0, right.abs().max().item())
            torch.testing.assert_close(got.double(), right, rtol=0, atol=off)


@cpu_only  # a GPU may flush denormal numbers to 0
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_js_divergence_of_the_least_numbers(dtype):
    """In p log(2p/(p + q)), the sum of two denormal numbers is not 0."""
    least = math.ulp(0.0) if dtype == torch.float64 else 2.0**-149
    p, q = (make.tensor([[1.0, k * least, least]], dtype=dtype) for k in (1, 3))
    x, y = leaves(q, p)
    loss = functional.js_divergence(x, y, input_form="probs", target_form="probs")
    grads = torch.autograd.grad(loss, (x, y))
    assert 0 <= loss.item() <= 8 * least
    for grad, ratio in zip(grads, (1.5, 0.5), strict=True):
        expected = make.tensor([[0.0, 0.5 * math.log(ratio), 0.0]], dtype=dtype)
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["logits", "log_probs", "probs"])
@pytest.mark.parametrize("backend", backends.backends_for(DEVICE.type))
def test_js_divergence_of_close_distributions(backend, form, dtype):
    """With p = m (1 + s) and q = m (1 - s), it is m s² / 2 for small s, and its derivative with
    respect to log q is -q s / 2. Computed from terms that cancel, a difference would have lost as
    many digits."""
    eps = torch.finfo(dtype).eps
    for distance in (1e-3, 1e-2, 0.1, 0.3, 0.5, 1.0, 2.0):
        x = 2 * make.randn(4, 30, dtype=torch.float64)
        y = (x + distance * make.randn(4, 30, dtype=torch.float64)).log_softmax(1)
        x = x.log_softmax(1)
        x, y = ((z.exp() if form == "probs" else z).to(dtype) for z in (x, y))
        with lossops.backend(backend):
            forms = {"input_form": form, "target_form": form}
            found = functional.js_divergence(*leaves(x, y), reduction="none", **forms)
        q, p = (z.double() if form == "probs" else z.double().exp() for z in (x, y))
        if form == "logits":
            q, p = q / q.sum(1, keepdim=True), p / p.sum(1, keepdim=True)
        s = (p - q) / (p + q)
        right = 0.5 * (p * torch.log1p(s) + q * torch.log1p(-s)).sum(1)
        off = ((found - right).abs() / right).max().item()
        assert off <= 8 * eps / min(distance, 1), (distance, off / eps)


@each_softmax_case
def test_sum_of_losses_and_loss_scale(case):
    """Losses added, scaled, and applied to an intermediate, alongside another loss of it."""
    input, target, kwargs = case.tensors((4, 7))
    grads = []
    for function in (case, case.truth):
        (leaf,) = leaves(input)
        hidden = leaf * 1.5 if case.input_form == "logits" else leaf * 1
        loss = (
            function(hidden, target, **kwargs) * 1024
            + function(leaf, target, **kwargs)
            - 3 * function(hidden, target.flip(0), **kwargs)
        )
        loss.backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


def test_float16_gradient_survives_loss_scaling():
    """A gradient of 1e-8 is 0 in float16. Multiplied by a loss scale of 2^15, it is not."""
    x = make.randn(1 << 14, 64).half()
    target = torch.randint(64, (1 << 14,), device=DEVICE)
    (input,) = leaves(x)
    (functional.cross_entropy(input, target).float() * 2**15).backward()
    (exact,) = leaves(x.double())
    (torch_functional.cross_entropy(exact, target) * 2**15).backward()
    assert scaled_ulps(input.grad, exact.grad, exact.grad.abs().amax().item()) <= 1


def test_backward_hands_out_a_gradient_of_its_own():
    (input,) = leaves(make.randn(4, 64))
    loss = functional.cross_entropy(input, torch.randint(64, (4,), device=DEVICE))
    loss.backward(retain_graph=True)
    kept = input.grad.clone()
    loss.backward(make.tensor(5.0))
    torch.testing.assert_close(input.grad, kept * 6)


@pytest.mark.parametrize("use_reentrant", [False, True])
@each_softmax_case
def test_checkpoint(case, use_reentrant):
    input, target, kwargs = case.tensors((6, 5), torch.float32)
    (x,) = leaves(input)

    def block(x):
        return case(x * 1, target, **kwargs) * 3

    torch.utils.checkpoint.checkpoint(block, x, use_reentrant=use_reentrant).backward()
    torch.testing.assert_close(x.grad, torch.autograd.grad(block(x), x)[0])


# ---------------------------------------------------------------------------------------------
# Outputs besides the loss.


@each_dtype
@pytest.mark.parametrize("parts", ["loss", "lse", "entropy", "lse entropy", "loss lse entropy"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "sample"])
def test_cotangents_of_every_output(parts, reduction, dtype):
    input = make.randn(4, 33, 3).to(dtype)
    target = torch.randint(33, (4, 3), device=DEVICE)
    target[0, 1] = -100
    options = {"z_loss": 1e-2, "temperature": 1.5, "reduction": reduction}
    (leaf,) = leaves(input)
    found = functional.cross_entropy(
        leaf, target, return_lse=True, return_entropy=True, return_accuracy=True, **options
    )
    loss, lse, entropy, accuracy = found
    assert not accuracy.requires_grad
    (exact,) = leaves(input.double())
    z = exact / 1.5
    log_q = z.log_softmax(1)
    true = {
        "loss": truth("cross_entropy", exact, target, **options),
        "lse": z.logsumexp(1),
        "entropy": -(log_q.exp() * log_q).sum(1),
    }
    outputs = {"loss": loss, "lse": lse, "entropy": entropy}
    cotangents = {name: random_grad_like(outputs[name]) for name in parts.split()}
    # The largest of the terms of the gradient; those from the entropy cancel.
    terms = sum(
        torch.autograd.grad(true[name], exact, g.double(), retain_graph=True)[0].abs()
        for name, g in cotangents.items()
    )
    if "entropy" in cotangents:
        by = cotangents["entropy"].double().abs().unsqueeze(1) / 1.5
        terms = terms + by * log_q.exp() * (log_q.abs() + true["entropy"].unsqueeze(1))
    terms = terms.amax().item()
    for repeat in range(2):
        (grad,) = torch.autograd.grad(
            [outputs[name] for name in cotangents], leaf, list(cotangents.values()),
            retain_graph=repeat == 0,
        )  # fmt: skip
        (expected,) = torch.autograd.grad(
            [true[name] for name in cotangents], exact,
            [g.double() for g in cotangents.values()], retain_graph=repeat == 0,
        )  # fmt: skip
        assert scaled_ulps(grad, expected, terms) <= (16 if dtype == torch.float64 else 6)


def test_outputs_are_used_apart():
    """Each with a separate backward, before and after the others."""
    (input,) = leaves(make.randn(5, 9, dtype=torch.float64))
    target = torch.randint(9, (5,), device=DEVICE)
    loss, lse, entropy = functional.cross_entropy(
        input, target, return_lse=True, return_entropy=True
    )
    for output, true in (
        (entropy.sum(), lambda x: torch.distributions.Categorical(logits=x).entropy().sum()),
        (lse.square().sum(), lambda x: x.logsumexp(1).square().sum()),
        (loss, lambda x: torch_functional.cross_entropy(x, target)),
    ):
        (grad,) = torch.autograd.grad(output, input, retain_graph=True)
        (own,) = leaves(input)
        torch.testing.assert_close(grad, torch.autograd.grad(true(own), own)[0])


# ---------------------------------------------------------------------------------------------
# Gradients with respect to target and weight.


def test_a_one_hot_target_has_a_gradient():
    """The gradient is -log q, also for probabilities that are 0, from the kernels and when
    differentiated again."""
    input = make.randn(4, 6, dtype=torch.float64)
    hot = torch_functional.one_hot(torch.arange(4, device=DEVICE), 6).double()
    grads = []
    for function in (functional.cross_entropy, torch_functional.cross_entropy):
        x, target = leaves(input, hot)
        loss = function(x, target)
        first = torch.autograd.grad(loss, (x, target), retain_graph=True)
        again = torch.autograd.grad(loss, (x, target), create_graph=True)
        second = torch.autograd.grad(again[1].square().sum(), x)
        grads.append((*first, *again, *second))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss", "poly_loss"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_gradient_by_class_weights(name, reduction):
    """The gradient is either computed or rejected, but never silently missing."""
    input = make.randn(6, 5, dtype=torch.float64)
    target = torch.randint(5, (6,), device=DEVICE)
    target[2] = -100
    x, weight = leaves(input.log_softmax(1), some_weights(5))
    loss = getattr(functional, name)(x, target, weight=weight, reduction=reduction)
    true = truth(name, x, target, reduction, weight=weight)
    grad_output = random_grad_like(loss)
    found = torch.autograd.grad(loss, (x, weight), grad_output)
    torch.testing.assert_close(found, torch.autograd.grad(true, (x, weight), grad_output))


def test_gradient_by_class_weights_with_probabilities():
    x, target, weight = leaves(
        make.randn(6, 5, dtype=torch.float64), make.randn(6, 5, dtype=torch.float64).softmax(1),
        some_weights(5),
    )  # fmt: skip

    def loss(x, target, weight):
        return functional.cross_entropy(x, target, weight, label_smoothing=0.1)

    assert torch.autograd.gradcheck(loss, (x, target, weight))
    assert torch.autograd.gradgradcheck(loss, (x, target, weight))


# ---------------------------------------------------------------------------------------------
# In place, and the cost of a step.


IN_PLACE = [case for case in CASES if case.name == "cross_entropy"]


@pytest.mark.parametrize("case", IN_PLACE, ids=lambda case: case.id)
@each_dtype
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("scale", [1.0, -3.0])
def test_in_place(case, dtype, reduction, scale):
    """The gradient is correct, and uses the memory of the logits."""
    input, target, kwargs = case.tensors((5, 33, 3), dtype)
    results = []
    for inplace in (True, False):
        (leaf,) = leaves(input)
        hidden = leaf * 1
        memory = hidden.data_ptr()
        loss = case(hidden, target, reduction, inplace=inplace, **kwargs)
        (grad,) = torch.autograd.grad(loss * scale, hidden, retain_graph=True)
        if NAMESPACE:
            assert (grad.data_ptr() == memory) == inplace
        results.append((loss.detach(), grad.clone()))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


VIEWS = {
    "transposed": lambda x: x.t().contiguous().t(),
    "every second": lambda x: torch.stack((x, x), 2).flatten(1)[:, ::2],
    "a slice": lambda x: torch.cat((x, x), 1)[:, : x.shape[1]],
    "some rows": lambda x: torch.stack((x, x), 1).flatten(0, 1)[1::2],
    "more dimensions": lambda x: (
        torch.stack((x, x), 0)[0].view(2, 3, 7, 5)[:, :, :5, 1:].movedim(3, 1)
    ),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("scale", [1.0, -3.0])
@each_dtype
def test_in_place_on_other_layouts(view, scale, dtype):
    leaf = make.randn(6, 35, dtype=torch.float64).to(dtype).requires_grad_()
    results = []
    for inplace in (True, False):
        hidden = VIEWS[view](leaf * 1)
        kept = hidden.detach().clone()
        target = torch.arange(kept.select(1, 0).numel(), device=DEVICE) % kept.shape[1]
        target = target.view(kept.select(1, 0).shape)
        loss = functional.cross_entropy(hidden, target, inplace=inplace)
        results.append((loss.detach(), *torch.autograd.grad(loss * scale, leaf)))
        assert torch.equal(hidden.detach(), kept) == (not inplace or not NAMESPACE)
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("rows", [(5,), (5, 3), (0,), ()])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@each_dtype
def test_no_classes(rows, reduction, dtype):
    """As in torch, where torch has the loss; and an empty sum is 0."""
    shape = (*rows[:1], 0, *rows[1:])
    input, soft = leaves(make.rand(shape).to(dtype), make.rand(shape).to(dtype))
    targets = [soft]
    if len(rows) == 1:  # torch does not accept other shapes of labels
        targets.append(torch.full(rows, -100, device=DEVICE))
    for target in targets:
        expected = torch_functional.cross_entropy(input, target, reduction=reduction)
        loss, lse = functional.cross_entropy(input, target, reduction=reduction, return_lse=True)
        torch.testing.assert_close(loss, expected, equal_nan=True)
        assert lse.shape == rows
        assert (lse == -math.inf).all()
        for grad in torch.autograd.grad(loss.sum(), [input, soft], materialize_grads=True):
            assert grad.shape == shape
    zero = functional.cross_entropy(input, soft, reduction=reduction, empty="zero")
    assert (zero == 0).all()
    labels = torch.zeros(rows, dtype=torch.int64, device=DEVICE)
    if labels.numel() and DEVICE.type == "cpu" and BACKEND != "triton":
        with pytest.raises(IndexError, match="Target 0 is out of bounds"):
            functional.cross_entropy(input, labels)
    for name in ("kl_divergence", "js_divergence", "total_variation", "soft_cross_entropy"):
        loss = getattr(functional, name)(input, soft, reduction=reduction)
        nothing = reduction == "mean" and 0 in rows
        assert loss.shape == (rows if reduction == "none" else ())
        assert loss.isnan().all() if nothing else (loss == 0).all()
        grads = torch.autograd.grad(loss.sum(), [input, soft])
        assert [grad.shape for grad in grads] == [shape] * 2


@needs_kernels
def test_in_place_is_noticed_by_what_needs_the_logits():
    target = torch.randint(9, (4,), device=DEVICE)
    (input,) = leaves(make.randn(4, 9))

    hidden = input * 1
    other = hidden.square().sum()  # saves the logits for its own backward
    loss = functional.cross_entropy(hidden, target, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + other).backward()

    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        functional.cross_entropy(input, target, inplace=True)

    hidden = input * 1
    loss = functional.cross_entropy(hidden, target, inplace=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="it can be had once"):
        loss.backward()

    hidden = input * 1
    loss = functional.cross_entropy(hidden, target, inplace=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        torch.autograd.grad(loss, input, create_graph=True)

    hidden = input * 1
    loss = functional.cross_entropy(hidden, target, inplace=True)
    with torch.no_grad():
        hidden.mul_(2)  # which is the gradient by now
    with pytest.raises(RuntimeError, match="whose place the gradient has taken"):
        loss.backward()


def test_in_place_without_a_gradient_leaves_the_logits_alone():
    target = torch.randint(9, (4,), device=DEVICE)
    x = make.randn(4, 9)
    kept = x.clone()
    assert torch.equal(
        functional.cross_entropy(x, target, inplace=True), functional.cross_entropy(x, target)
    )
    with torch.no_grad():
        functional.cross_entropy(x.requires_grad_(), target, inplace=True)
    assert torch.equal(x.detach(), kept)


@needs_kernels
@each_softmax_case
def test_training_step_is_one_pass(case):
    """One forward kernel, and one launch in backward that checks grad_output. There is no other
    pass."""
    input, target, kwargs = case.tensors((4, 32), torch.float32)
    (leaf,) = leaves(input)
    with (
        expect_softmax_kernels("forward"),
        expect_ops(f"{NAMESPACE}::elementwise_rescale_") as names,
    ):
        case(leaf, target, **kwargs).backward()
    bookkeeping = {
        "aten::ones_like", "aten::detach", "aten::full", "aten::expand", "aten::promote_types"
    }  # fmt: skip
    assert set(ran(names, "aten::")) <= bookkeeping, names
    assert not [name for name in ran(names, f"{NAMESPACE}::softmax") if "backward" in name]


@needs_kernels
@each_softmax_case
def test_no_gradient_no_work(case):
    input, target, kwargs = case.tensors((4, 32), torch.float32)
    with expect_softmax_kernels("forward"):
        assert not case(input, target, **kwargs).requires_grad
    input.requires_grad_()
    with torch.no_grad():
        assert case(input, target, **kwargs).grad_fn is None


def peak_memory(step) -> int:
    """Peak memory, from the allocator's own records."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    alive = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


@cpu_only
@each_softmax_case
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_peak_memory_is_one_gradient(case, scale):
    rows, classes = 64, 4096
    input, target, kwargs = case.tensors((rows, classes), torch.float32)
    (leaf,) = leaves(input)
    size = 4 * rows * classes
    peak = peak_memory(lambda: (case(leaf, target, **kwargs) * scale).backward())
    assert peak >= size, "the gradient itself was not seen: the measurement is broken"
    assert peak <= size + size // 16


@cpu_only
@pytest.mark.parametrize("case", IN_PLACE, ids=lambda case: case.id)
def test_in_place_needs_nothing_of_the_logits_size(case):
    rows, classes = 64, 4096
    input, target, kwargs = case.tensors((rows, classes), torch.float32)
    (leaf,) = leaves(input)
    hidden = leaf * 1
    size = 4 * rows * classes

    def step():
        loss = case(hidden, target, inplace=True, **kwargs) * 2
        torch.autograd.grad(loss, hidden)

    assert peak_memory(step) <= size // 16


def test_everything_at_once_in_half_precision():
    case = Case("cross_entropy", kwargs=EVERYTHING, ignored=True)
    for dtype in (torch.bfloat16, torch.float16):
        input, target, kwargs = case.tensors((40, 300), dtype)
        (leaf,) = leaves(input)
        case(leaf, target, "sum", **kwargs).backward()
        (exact,) = leaves(input.double())
        case.truth(exact, target, "sum", **kwargs).backward()
        assert scaled_ulps(leaf.grad, exact.grad, 1e-2) <= 1


@cpu_only
@pytest.mark.parametrize("classes", [5, 64, 100, 4096])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_in_place_of_logits_that_are_the_target_too(classes, smoothing):
    """Soft targets that share the memory that the gradient overwrites."""
    scores = make.randn(3, classes).softmax(1)
    expected = make.zeros(3, classes).copy_(scores).requires_grad_()
    functional.cross_entropy(expected * 1, scores, label_smoothing=smoothing).backward()
    leaf = scores.clone().requires_grad_()
    logits = leaf * 1
    functional.cross_entropy(
        logits, logits.detach(), label_smoothing=smoothing, inplace=True
    ).backward()
    torch.testing.assert_close(leaf.grad, expected.grad)
