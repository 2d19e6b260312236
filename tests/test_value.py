"""The value of every loss, compared with float64 and with torch's own error."""

from __future__ import annotations

import inspect
import math
import warnings
from fractions import Fraction

import pytest
import torch
from conftest import (
    DTYPES,
    cpu_only,
    each_case,
    each_dtype,
    each_reduction,
    expect_kernels,
    make,
    needs_kernels,
    pair,
)

from lossops import functional
from lossops.elementwise import reference
from lossops.specs import elementwise as specs

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
    """The loss in float64, from the exact values of the tensors."""
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


def size_of_terms(spec, kwargs, input, target, reduction, weight=None):
    """The loss with all terms taken as absolute values, because rounding errors are relative to
    them if they cancel. A differentiable tensor of the loss's shape."""
    if spec.kernel not in reference.TERMS:
        return 0
    terms = reference.TERMS[spec.kernel](input.double(), target.double(), *spec.params(kwargs))
    mode, keep = ("mean", 1) if reduction == "sample" else (reduction, 0)
    size = sum(term.abs() for term in terms)
    return reference.reduce(size if weight is None else size * weight.double(), mode, keep)


def ulps(value: torch.Tensor, true: torch.Tensor, relative: bool = False, size=0) -> float:
    """The largest error in units in the last place of the true value, or of the size of its terms.
    With ``relative``, in eps times that size, which is up to twice as large a unit."""
    info = torch.finfo(value.dtype)
    true = true.double().clamp(-info.max, info.max)
    size = torch.maximum(true.abs(), torch.as_tensor(size, device=true.device)).clamp_min(info.tiny)
    unit = size if relative else size.log2().floor().exp2()
    error = (value.double() - true).abs() / (unit * info.eps)
    return error.nan_to_num(nan=torch.inf).max().item()


@each_case
@each_dtype
@each_reduction
def test_value_is_as_right_as_torch(spec, kwargs, dtype, reduction):
    input, target = pair(spec, 6, 5, 37, dtype=dtype)
    with expect_kernels("forward"):
        value = spec.function(input, target, reduction=reduction, **kwargs)
    assert value.dtype == dtype
    true = truth(spec, kwargs, input, target, reduction)
    size = size_of_terms(spec, kwargs, input, target, reduction)
    assert value.shape == true.shape
    comparison = 1.0
    if reduction != "sample":
        theirs = spec.in_torch(input, target, reduction=reduction, **kwargs)
        comparison += ulps(theirs, true, size=size)
    # In float64 the expected value has itself a few rounding errors.
    assert ulps(value, true, size=size) <= (
        comparison + spec.slack(kwargs) + (4.0 if dtype == torch.float64 else 0.0)
    )


@each_case
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_every_size(spec, kwargs, dtype):
    for size in SIZES:
        input, target = pair(spec, size, dtype=dtype)
        each = spec.function(input, target, reduction="none", **kwargs)
        true = truth(spec, kwargs, input, target, "none")
        terms = (size_of_terms(spec, kwargs, input, target, r) for r in ("none", "sum"))
        assert ulps(each, true, size=next(terms)) <= 6 + spec.slack(kwargs), size
        total = spec.function(input, target, reduction="sum", **kwargs)
        exact = make.tensor(math.fsum(true.tolist()), dtype=torch.float64)
        assert ulps(total, exact, size=next(terms)) <= 6 + spec.slack(kwargs), size


@each_case
@each_reduction
@each_dtype
@pytest.mark.parametrize("shape", [(9, 33), (11,), (5, 1)], ids=str)
def test_weight(spec, kwargs, reduction, dtype, shape):
    input, target = pair(spec, *shape, dtype=dtype)
    weight = make.rand(shape).to(dtype)
    value = spec.function(input, target, reduction=reduction, weight=weight, **kwargs)
    each = truth(spec, kwargs, input, target, "none") * weight.double()
    true = each
    if reduction == "sample":
        rows = each.reshape(shape[0], -1)
        per_row = weight.double().reshape(shape[0], -1).sum(1)
        true = rows.sum(1) / (per_row if spec.divides_by_weight else rows.shape[1])
    elif reduction != "none":
        mean = weight.double().sum() if spec.divides_by_weight else each.numel()
        true = each.sum() / (mean if reduction == "mean" else 1)
    assert value.shape == true.shape
    size = size_of_terms(spec, kwargs, input, target, reduction, weight)
    assert ulps(value, true, size=size) <= 16
    weight.requires_grad_()  # the mean's denominator then needs a gradient as well
    value = spec.function(input, target, reduction=reduction, weight=weight, **kwargs)
    assert ulps(value.detach(), true, size=size) <= 16
    weight = weight.detach()
    torchs_own = (
        spec.torch_function and "weight" in inspect.signature(spec.torch_function).parameters
    )
    if torchs_own and reduction != "sample":
        double = (t.double() for t in (input, target))
        own = spec.in_torch(*double, reduction=reduction, weight=weight.double(), **kwargs)
        torch.testing.assert_close(true, own)


@each_case
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_branch_and_its_border(spec, kwargs, dtype):
    """Differences at, just below and just above every kink, of both signs, and the extremes."""
    info = torch.finfo(dtype)
    large = math.sqrt(info.max) / 2  # its square is in range
    steps = [0.0, info.smallest_normal / 4, info.tiny, info.eps, 1e-3, 0.5, 1.0, 2.0, 30.0, large]
    points = make.tensor([s * d for d in steps for s in (1.0, -1.0)], dtype=dtype)
    kinks = make.tensor([*spec.kinks(kwargs)], dtype=dtype)
    around = [torch.nextafter(kinks, torch.full_like(kinks, s * torch.inf)) for s in (1, -1)]
    difference = torch.cat((points, kinks, *around))
    zero = torch.zeros_like(difference)
    for numbers in ((difference, zero), (zero, difference), (difference, difference.flip(0))):
        numbers = spec.folded(*numbers)
        value = spec.function(*numbers, reduction="none", **kwargs)
        true = truth(spec, kwargs, *numbers, "none")
        size = size_of_terms(spec, kwargs, *numbers, "none")
        assert ulps(value, true, size=size) <= 4 + spec.slack(kwargs)


@each_case
@each_dtype
def test_infinity_and_nan(spec, kwargs, dtype):
    if not spec.regression:
        x, y = pair(spec, 99, dtype=dtype)
        for numbers in ((x * math.nan, y), (x, y * math.nan)):
            assert spec.function(*numbers, reduction="none", **kwargs).isnan().all()
            assert spec.function(*numbers, **kwargs).isnan()
        return
    inf, nan = torch.inf, torch.nan
    input = make.tensor([inf, -inf, inf, nan, 0.0, nan, 1.0], dtype=dtype)
    target = make.tensor([0.0, 0.0, inf, 0.0, nan, inf, inf], dtype=dtype)
    value = spec.function(input, target, reduction="none", **kwargs)
    expected = make.tensor([inf, inf, nan, nan, nan, nan, inf], dtype=dtype)
    torch.testing.assert_close(value, expected, equal_nan=True)
    assert spec.function(input[3:4].expand(99), target[3:4].expand(99), **kwargs).isnan()


@needs_kernels  # autograd of the formula squares a root as an intermediate
@pytest.mark.parametrize(
    ("dtype", "x", "y"), [(torch.float64, -1e186, 1e-160), (torch.float32, -1e30, 1e-22)], ids=str
)
def test_a_focal_loss_whose_modulation_alone_would_be_zero(dtype, x, y):
    """y² underflows, while the loss, y³ |x|, is in range."""
    input = make.tensor([x], dtype=dtype)
    target = make.tensor([y], dtype=dtype, requires_grad=True)
    loss = functional.sigmoid_focal_loss(input, target, alpha=-1, reduction="none")
    torch.testing.assert_close(loss.item(), y * (y * (y * -x)), rtol=1e-5, atol=0)
    loss.sum().backward()
    torch.testing.assert_close(target.grad.item(), 3 * y * (y * -x), rtol=1e-5, atol=0)


@each_case
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)], ids=str)
def test_empty(spec, kwargs, shape):
    input, target = make.empty(shape, requires_grad=True), make.empty(shape)
    assert spec.function(input, target, reduction="none", **kwargs).shape == shape
    total = spec.function(input, target, reduction="sum", **kwargs)
    assert total.item() == 0
    assert spec.function(input, target, **kwargs).isnan()
    assert spec.function(input, target, reduction="sample", **kwargs).shape == shape[:1]
    (grad,) = torch.autograd.grad(total, input)
    assert grad.shape == shape


@each_case
def test_scalar_tensor(spec, kwargs):
    numbers = (make.tensor(number, dtype=torch.float64) for number in (2.5, 0.25))
    input, target = spec.inner(*numbers)
    input.requires_grad_()
    for reduction in ("none", "mean", "sum"):
        value = spec.function(input, target, reduction=reduction, **kwargs)
        expected = truth(spec, kwargs, input, target, reduction)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(
            torch.autograd.grad(value, input), torch.autograd.grad(expected, input)
        )


@each_case
def test_mixed_dtypes(spec, kwargs):
    input = pair(spec, 40, 9, dtype=torch.bfloat16)[0]
    for other in DTYPES:
        target = pair(spec, 40, 9, dtype=other)[1]
        value = spec.function(input, target, **kwargs)
        # Labels do not affect the dtype, as in torch.
        labels = spec.name in ("soft_margin_loss", "hinge_embedding_loss")
        wanted = torch.bfloat16 if labels else torch.promote_types(torch.bfloat16, other)
        assert value.dtype == wanted
        size = size_of_terms(spec, kwargs, input, target, "mean")
        assert ulps(value, truth(spec, kwargs, input, target, "mean"), size=size) <= 3
    if spec.integers is not RuntimeError:  # as torch's kl_div rejects them
        integers = make.zeros(40, 9, dtype=torch.long)
        assert spec.function(input, integers, **kwargs).dtype == input.dtype
    if spec.other_shapes != "raises":
        number = make.tensor(0.5, dtype=torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Losses that first broadcast to one shape, and warn about it, promote like two tensors.
            wanted = torch.float64 if spec.other_shapes == "warns" else torch.bfloat16
            assert spec.function(input, number, **kwargs).dtype == wanted


@each_case
def test_error_does_not_grow_with_size(spec, kwargs):
    input, target = spec.inner(*make.rand(2, 1 << 21).unbind(0))
    value = spec.function(input, target, reduction="sum", **kwargs)
    size = size_of_terms(spec, kwargs, input, target, "sum")
    assert ulps(value, truth(spec, kwargs, input, target, "sum"), size=size) <= 2


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_error_does_not_grow_where_all_roundings_agree(dtype):
    """Equal values round the same way in every addition."""
    for value in (0.1, 1 / 3, 0.7):
        input = make.full((300_000,), value, dtype=dtype)
        total = specs.spec("l1_loss").function(input, torch.zeros_like(input), reduction="sum")
        exact = float(300_000 * Fraction(input[0].item()))
        assert ulps(total, make.tensor(exact, dtype=torch.float64)) <= 2


def test_sample_is_the_mean_of_each_row():
    for shape in ((5,), (4, 3), (7, 2, 3), (3, 20000), (2, 9000, 2), (5000, 3)):
        input, target = make.randn(2, *shape).unbind(0)
        value = specs.spec("huber_loss").function(input, target, reduction="sample")
        rows = specs.spec("huber_loss").function(input, target, reduction="none")
        expected = rows.double().reshape(shape[0], -1).mean(1)
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)


SHAPES = ((300_001,), (47, 700), (333, 3000), (20_000, 17), (5, 9000), (3, 40_000))


@cpu_only
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_same_bits_every_time_and_for_any_number_of_threads(shape, dtype):
    threads = torch.get_num_threads()
    for spec in specs.SPECS:
        input, target = pair(spec, *shape, dtype=dtype)
        for reduction in ("mean", "sample"):
            results = []
            try:
                for count in (1, 1, 2, 3, 5):
                    torch.set_num_threads(count)
                    results.append(
                        spec.function(input, target, reduction=reduction, **spec.defaults)
                    )
            finally:
                torch.set_num_threads(threads)
            for other in results[1:]:
                assert torch.equal(results[0], other), (spec.name, reduction)
