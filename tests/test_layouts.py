"""Every layout gives the correct results. Dense layouts are processed without a copy."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from conftest import (
    each_dtype,
    each_reduction,
    each_spec,
    expect_kernels,
    expect_ops,
    make,
    needs_kernels,
    pair,
    ran,
)
from test_gradient import LOOK, sizes_of_terms
from test_value import size_of_terms, truth, ulps

from lossops.specs import elementwise as specs

LAYOUTS = {
    "contiguous": lambda t: t,
    "channels last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(1, 3).contiguous().transpose(1, 3),
    "permuted": lambda t: t.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2),
    "sliced": lambda t: torch.cat((t, t + 1), 3)[..., : t.shape[3]],
    "stepped": lambda t: torch.cat((t, t), 3).reshape(*t.shape[:3], 2, -1).transpose(3, 4)[..., 0],
    "misaligned": lambda t: torch.cat((t.flatten()[:1], t.flatten()))[1:].view(t.shape),
    "expanded": lambda t: t[:, :1].expand(t.shape),
    "expanded batch": lambda t: t[:1].expand(t.shape),
    "one number": lambda t: t[:1, :1, :1, :1].expand(t.shape),
}


def tensors(dtype=torch.float32, count=3, shape=(4, 3, 8, 5)):
    return [make.randn(shape).to(dtype) for _ in range(count)]


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
@each_reduction
def test_pairs_of_layouts(left, right, reduction):
    spec = specs.spec("huber_loss")
    x, y, w = tensors()
    x, y, w = LAYOUTS[left](x), LAYOUTS[right](y), LAYOUTS[right](w.abs() + 0.1)
    kwargs = {"delta": 0.7}
    x, y, w = (t.detach().requires_grad_() for t in (x, y, w))
    with expect_kernels("forward"):
        value = spec.function(x, y, reduction=reduction, weight=w, **kwargs)
    exact = [t.detach().double().requires_grad_() for t in (x, y, w)]
    true = truth(spec, kwargs, exact[0], exact[1], reduction, exact[2])
    assert value.shape == true.shape
    assert ulps(value, true.detach()) <= 4
    grad_output = torch.randn_like(value)
    found = torch.autograd.grad(value, (x, y, w), grad_output)
    expected = torch.autograd.grad(true, exact, grad_output.double())
    for grad, right_grad in zip(found, expected, strict=True):
        torch.testing.assert_close(grad.double(), right_grad, rtol=1e-5, atol=1e-6)


@needs_kernels
@each_spec
@pytest.mark.parametrize("layout", ["channels last", "transposed", "permuted", "misaligned"])
def test_dense_layouts_are_processed_as_they_lie(spec, layout):
    """No copy is made, and loss and gradient have the input's strides."""
    x, y = (LAYOUTS[layout](t) for t in spec.inner(*tensors(count=2)))
    x = x.detach().requires_grad_()
    with expect_ops() as names:
        value = spec.function(x, y, reduction="none", **spec.defaults)
        total = spec.function(x, y, **spec.defaults)
        (grad,) = torch.autograd.grad(total, x)
    assert value.stride() == grad.stride() == x.stride()
    look = LOOK.get(spec.name, ())
    assert set(ran(names, "aten::")) <= {"aten::ones_like", "aten::detach", *look}, names


@each_dtype
@each_spec
def test_one_element_off_alignment(spec, dtype):
    for size in (1, 15, 64, 1031, 20000):
        base = pair(spec, size + 3, dtype=dtype)
        x, y = base[0][1 : size + 1], base[1][2 : size + 2]
        x = x.detach().requires_grad_()
        value = spec.function(x, y, **spec.defaults)
        size_ = size_of_terms(spec, spec.defaults, x.detach(), y, "mean")
        assert ulps(value, truth(spec, spec.defaults, x.detach(), y, "mean"), size=size_) <= 8
        (grad,) = torch.autograd.grad(value, x)
        aligned = x.detach().clone().requires_grad_()
        (same,) = torch.autograd.grad(spec.function(aligned, y.clone(), **spec.defaults), aligned)
        assert torch.equal(grad, same)


@contextlib.contextmanager
def no_such_warning(words):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=words)
        yield


@each_spec
@pytest.mark.parametrize(
    ("left", "right"),
    [((4, 1), (4,)), ((3, 1, 5), (2, 1)), ((7,), ()), ((), (2, 3)), ((1,), (5, 4, 3))],
    ids=str,
)
def test_broadcast_warns_and_is_right(spec, left, right):
    x, _ = pair(spec, *left, dtype=torch.float64)
    _, y = pair(spec, *right, dtype=torch.float64)
    for t in (x, y):
        t.requires_grad_()
    if spec.other_shapes == "raises":
        with pytest.raises(ValueError, match=r"[tT]arget size .* input size"):
            spec.function(x, y, **spec.defaults)
        return
    words = "Using a target size .* different to the input size"
    with (
        pytest.warns(UserWarning, match=words)
        if spec.other_shapes == "warns"
        else no_such_warning(words)
    ):
        value = spec.function(x, y, **spec.defaults)
    wide = torch.broadcast_tensors(x, y)
    true = truth(spec, spec.defaults, *wide, "mean")
    torch.testing.assert_close(value, true)
    torch.testing.assert_close(
        torch.autograd.grad(value, (x, y)), torch.autograd.grad(true, (x, y))
    )


@each_dtype
def test_many_dimensions(dtype):
    shape = (2,) * 12
    for spec in specs.SPECS:
        x, y = pair(spec, *shape, dtype=dtype)
        x = x.permute(*range(0, 12, 2), *range(1, 12, 2)).detach().requires_grad_()
        for reduction in ("none", "mean", "sample"):
            value = spec.function(x, y, reduction=reduction, **spec.defaults)
            exact = x.detach().double().requires_grad_()
            true = truth(spec, spec.defaults, exact, y, reduction)
            grad_output = torch.randn_like(value)
            size = size_of_terms(spec, spec.defaults, exact.detach(), y, reduction)
            slack = spec.slack(spec.defaults)
            assert ulps(value.detach(), true.detach(), size=size) <= 8 + slack
            (grad,) = torch.autograd.grad(value, x, grad_output)
            (expected,) = torch.autograd.grad(true, exact, grad_output.double())
            both = exact, y.double().requires_grad_()
            size, _ = sizes_of_terms(spec, spec.defaults, both, grad_output, reduction)
            assert ulps(grad, expected, size=size) <= 8 + slack


def test_large_strided_input_crosses_many_blocks():
    x, y = make.randn(300, 700).t(), make.randn(700, 300)
    spec = specs.spec("mse_loss")
    x = x.detach().requires_grad_()
    value = spec.function(x, y)
    assert ulps(value, truth(spec, {}, x.detach(), y, "mean")) <= 1
    (grad,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(grad, (x - y).detach() * 2 / x.numel())
