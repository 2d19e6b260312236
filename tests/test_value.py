"""The value of every loss, judged against float64 and against torch's own error."""

from __future__ import annotations

import pytest
import torch
from conftest import DTYPES, each_case, each_dtype, each_reduction, expect_ops

from lossops import reference, specs

# Around every vector width, block (1024) and piece (16384) of the CPU engine.
SIZES = (
    1,
    3,
    7,
    8,
    9,
    15,
    16,
    17,
    31,
    33,
    63,
    65,
    1023,
    1024,
    1025,
    8191,
    8193,
    16383,
    16385,
    40000,
)


def truth(spec, kwargs, input, target, reduction, weight=None):
    """The loss in float64, from the very numbers that the tensors hold."""
    mode, keep = ("mean", 1) if reduction == "sample" else (reduction, 0)
    normalizer = None
    if weight is not None:
        weight = weight.double()
        if spec.divides_by_weight and mode == "mean":
            normalizer = weight.sum(tuple(range(keep, weight.dim())))
    return reference.elementwise(
        input.double(), target.double(), weight, normalizer, spec.kernel,
        spec.params(kwargs), mode, keep, torch.float64,
    )  # fmt: skip


def ulps(value: torch.Tensor, true: torch.Tensor) -> float:
    """The largest error in units of the last place that the dtype has at the true value."""
    info = torch.finfo(value.dtype)
    true = true.double().clamp(-info.max, info.max)
    spacing = true.abs().clamp_min(info.tiny) * info.eps
    error = (value.double() - true).abs() / spacing
    return error.nan_to_num(nan=torch.inf).max().item()


@each_case
@each_dtype
@each_reduction
def test_value_is_as_right_as_torch(spec, kwargs, dtype, reduction):
    input, target = torch.randn(2, 6, 5, 37).to(dtype).unbind(0)
    with expect_ops("lossops::elementwise_forward"):
        value = spec.function(input, target, reduction=reduction, **kwargs)
    assert value.dtype == dtype
    true = truth(spec, kwargs, input, target, reduction)
    assert value.shape == true.shape
    comparison = 1.0
    if reduction != "sample":
        comparison += ulps(spec.in_torch(input, target, reduction=reduction, **kwargs), true)
    # In float64 the truth is itself rounded, a few times.
    assert ulps(value, true) <= comparison + (4.0 if dtype == torch.float64 else 0.0)


@each_case
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_every_size(spec, kwargs, dtype):
    for size in SIZES:
        input, target = torch.randn(2, size).to(dtype).unbind(0)
        for reduction in ("none", "sum"):
            value = spec.function(input, target, reduction=reduction, **kwargs)
            true = truth(spec, kwargs, input, target, reduction)
            assert ulps(value, true) <= 6, (size, reduction)


@each_case
@each_reduction
@each_dtype
def test_weight(spec, kwargs, reduction, dtype):
    input, target = torch.randn(2, 9, 33).to(dtype).unbind(0)
    weight = torch.rand(9, 33).to(dtype)
    value = spec.function(input, target, reduction=reduction, weight=weight, **kwargs)
    true = truth(spec, kwargs, input, target, reduction, weight)
    assert ulps(value, true) <= 8
    if spec.torch_function is not None and spec.name != "smooth_l1_loss" and reduction != "sample":
        own = spec.torch_function(
            input.double(), target.double(), reduction=reduction, weight=weight.double(), **kwargs
        )
        torch.testing.assert_close(true, own)


@each_case
def test_every_branch_and_its_border(spec, kwargs):
    """Differences at, just below and just above every kink, of both signs; and the extremes."""
    steps = [0.0, 5e-324, 1e-300, 1e-8, 1e-3, 0.5, 1.0, 2.0, 30.0, 1e4, 1e150]
    points = [s * d for d in steps for s in (1.0, -1.0)]
    for kink in spec.kinks(kwargs):
        k = torch.tensor(kink, dtype=torch.float64)
        points += [kink, *(torch.nextafter(k, k + s).item() for s in (1, -1))]
    difference = torch.tensor(points, dtype=torch.float64)
    zero = torch.zeros_like(difference)
    value = spec.function(difference, zero, reduction="none", **kwargs)
    true = truth(spec, kwargs, difference, zero, "none")
    torch.testing.assert_close(value, true, rtol=1e-14, atol=0)
    torch.testing.assert_close(
        spec.function(zero, difference, reduction="none", **kwargs),
        truth(spec, kwargs, zero, difference, "none"),
        rtol=1e-14,
        atol=0,
    )


@each_case
@each_dtype
def test_infinity_and_nan(spec, kwargs, dtype):
    inf, nan = torch.inf, torch.nan
    input = torch.tensor([inf, -inf, inf, nan, 0.0, nan, 1.0], dtype=dtype)
    target = torch.tensor([0.0, 0.0, inf, 0.0, nan, inf, inf], dtype=dtype)
    value = spec.function(input, target, reduction="none", **kwargs)
    expected = torch.tensor([inf, inf, nan, nan, nan, nan, inf], dtype=dtype)
    torch.testing.assert_close(value, expected, equal_nan=True)
    assert spec.function(input[3:4].expand(99), target[3:4].expand(99), **kwargs).isnan()


@each_case
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)], ids=str)
def test_empty(spec, kwargs, shape):
    input, target = torch.empty(shape, requires_grad=True), torch.empty(shape)
    assert spec.function(input, target, reduction="none", **kwargs).shape == shape
    total = spec.function(input, target, reduction="sum", **kwargs)
    assert total.item() == 0
    assert spec.function(input, target, **kwargs).isnan()
    assert spec.function(input, target, reduction="sample", **kwargs).shape == shape[:1]
    (grad,) = torch.autograd.grad(total, input)
    assert grad.shape == shape


@each_case
def test_scalar_tensor(spec, kwargs):
    input = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    target = torch.tensor(0.25, dtype=torch.float64)
    for reduction in ("none", "mean", "sum"):
        value = spec.function(input, target, reduction=reduction, **kwargs)
        expected = truth(spec, kwargs, input, target, reduction)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(
            torch.autograd.grad(value, input), torch.autograd.grad(expected, input)
        )


@each_case
def test_mixed_dtypes(spec, kwargs):
    input = torch.randn(40, 9).bfloat16()
    for other in DTYPES:
        target = torch.randn(40, 9).to(other)
        value = spec.function(input, target, **kwargs)
        assert value.dtype == torch.promote_types(torch.bfloat16, other)
        assert ulps(value, truth(spec, kwargs, input, target, "mean")) <= 3
    assert spec.function(input, torch.zeros(40, 9, dtype=torch.long), **kwargs).dtype == input.dtype
    number = torch.tensor(0.5, dtype=torch.float64)
    with pytest.warns(UserWarning, match="different to the input size"):
        assert spec.function(input, number, **kwargs).dtype == torch.bfloat16


@each_case
def test_error_does_not_grow_with_size(spec, kwargs):
    input, target = torch.rand(2, 1 << 21).unbind(0)
    value = spec.function(input, target, reduction="sum", **kwargs)
    assert ulps(value, truth(spec, kwargs, input, target, "sum")) <= 2


def test_sample_is_the_mean_of_each_row():
    for shape in ((5,), (4, 3), (7, 2, 3), (3, 20000), (2, 9000, 2), (5000, 3)):
        input, target = torch.randn(2, *shape).unbind(0)
        value = specs.spec("huber_loss").function(input, target, reduction="sample")
        rows = specs.spec("huber_loss").function(input, target, reduction="none")
        expected = rows.double().reshape(shape[0], -1).mean(1)
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)


def test_same_bits_every_time_and_for_any_number_of_threads():
    input, target = torch.randn(2, 300_001).unbind(0)
    threads = torch.get_num_threads()
    for spec in specs.SPECS:
        first = spec.function(input, target)
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                assert torch.equal(first, spec.function(input, target)), (spec.name, count)
        finally:
            torch.set_num_threads(threads)
