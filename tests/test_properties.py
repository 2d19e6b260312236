"""Properties of every elementwise loss, for any shapes, layouts, dtypes and values that hypothesis
finds, including infinities, NaN, denormals and thresholds. On failure it prints a minimal example
and the seed."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import DEVICE, DTYPES, cpu_only
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_value import size_of_terms, truth

import lossops
from lossops.core import backends
from lossops.elementwise import reference
from lossops.specs import elementwise as specs
from lossops.specs.softmax import ROW_SPECS

ORDINARY = settings(
    max_examples=100,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SPECIAL = (
    0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 5e-324, 1e-8, 0.3, -0.3, 0.5, 1.0,
    -1.0, 2.0, 30.0, -30.0, 100.0, 6e4, -6e4,
)  # fmt: skip
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
number = st.one_of(st.sampled_from(SPECIAL), st.floats(-20, 20, width=32))


@st.composite
def tensors(draw, shape, dtype):
    """A tensor of some layout: dense, transposed, with gaps, in reverse memory order, or
    expanded."""
    count = math.prod(shape)
    numbers = draw(st.lists(number, min_size=min(count, 1), max_size=min(count, 12)))
    flat = torch.tensor(numbers or [0.0], dtype=torch.float64).to(dtype)
    tensor = flat.repeat(count // len(flat) + 1)[:count].reshape(shape)
    layout = draw(st.sampled_from(["dense", "permuted", "gaps", "expanded"]))
    if layout == "permuted":
        order = draw(st.permutations(range(len(shape))))
        inverse = [order.index(i) for i in range(len(shape))]
        tensor = tensor.permute(order).contiguous().permute(inverse)
    elif layout == "gaps" and shape:
        wide = torch.full((*shape[:-1], 3 * shape[-1] + 1), math.nan, dtype=dtype)
        wide[..., 1::3] = tensor
        tensor = wide[..., 1::3]
    elif layout == "expanded" and shape:
        tensor = tensor[..., :1].expand(shape)
    return tensor.to(DEVICE)


@st.composite
def calls(draw):
    spec = draw(st.sampled_from(specs.SPECS))
    kwargs = draw(st.sampled_from(spec.samples))
    shape, dtype = draw(shapes), draw(st.sampled_from(DTYPES))
    pair = (draw(tensors(shape, dtype)), draw(tensors(shape, dtype)))
    return spec, kwargs, *spec.folded(*pair)


def same(found: torch.Tensor, expected: torch.Tensor, size, units: float) -> None:
    """Both NaN, both infinite, or equal up to some units in the last place of found's dtype."""
    info = torch.finfo(found.dtype)
    found, expected = found.double(), expected.double()
    tolerance = units * (info.eps * torch.maximum(expected.abs(), size) + info.tiny)
    beyond = expected.abs() + tolerance > info.max  # may round to infinity
    expected_infinity = torch.where(beyond, expected.sign() * math.inf, expected)
    right = (found.isnan() & expected.isnan()) | (found == expected)
    right |= (found - expected).abs() <= tolerance
    right |= beyond & (found == expected_infinity)
    assert right.all(), (found[~right], expected[~right])


@given(calls())
@ORDINARY
def test_value_is_the_references(call):
    spec, kwargs, input, target = call
    found = spec.function(input, target, reduction="none", **kwargs)
    expected = truth(spec, kwargs, input, target, "none")
    size = torch.as_tensor(size_of_terms(spec, kwargs, input, target, "none"))
    same(found, expected, size.nan_to_num(0.0, 0.0).double(), 8 + spec.slack(kwargs))


@given(calls())
@ORDINARY
def test_layouts_give_the_same_bits(call):
    spec, kwargs, input, target = call
    found = spec.function(input, target, reduction="none", **kwargs)
    dense = spec.function(input.contiguous(), target.contiguous(), reduction="none", **kwargs)
    torch.testing.assert_close(found, dense, rtol=0, atol=0, equal_nan=True)


@given(calls(), st.sampled_from(["mean", "sum", "sample"]))
@ORDINARY
def test_reductions_are_of_the_elements(call, reduction):
    spec, kwargs, input, target = call
    if reduction == "sample" and input.dim() == 0:
        with pytest.raises(ValueError, match="batch dimension"):
            spec.function(input, target, reduction=reduction, **kwargs)
        return
    found = spec.function(input, target, reduction=reduction, **kwargs)
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    each = spec.function(input.to(wide), target.to(wide), reduction="none", **kwargs).double()
    mode, keep = ("mean", 1) if reduction == "sample" else (reduction, 0)
    expected = reference.reduce(each, mode, keep)
    same(found, expected, reference.reduce(each.abs(), mode, keep).nan_to_num(0.0, 0.0), 8)


@given(calls(), st.sampled_from(["none", "mean", "sum", "sample"]), st.floats(-3, 3, width=32))
@ORDINARY
def test_gradients_are_those_of_the_elements(call, reduction, factor):
    """grad_output times the derivatives, divided by the denominator of the mean."""
    spec, kwargs, input, target = call
    if reduction == "sample" and input.dim() == 0:
        return
    leaf = input.detach().requires_grad_()
    loss = spec.function(leaf, target, reduction=reduction, **kwargs)
    (found,) = torch.autograd.grad(loss, leaf, torch.full_like(loss, factor))
    (each,) = torch.autograd.grad(spec.function(leaf, target, reduction="sum", **kwargs), leaf)
    count = {"mean": input.numel(), "sample": input[:1].numel() if input.dim() else 1}
    factor = torch.full_like(loss, factor).double().flatten()[:1].sum()
    expected = each.double() * factor / max(count.get(reduction, 1), 1)
    if input.numel():
        finite = each.isfinite()
        same(found[finite], expected[finite], torch.zeros(()).double(), 6)


@st.composite
def row_calls(draw):
    """Integer labels: below, within and above the range of the classes."""
    row = draw(st.sampled_from([row for row in ROW_SPECS if row.name != "log_prob_of"]))
    classes = draw(st.integers(1, 6))
    shape = (draw(st.integers(0, 4)), classes, *draw(st.lists(st.integers(1, 3), max_size=2)))
    dtype = draw(st.sampled_from(DTYPES))
    input = draw(tensors(shape, dtype))
    rows = (shape[0], *shape[2:])
    count = math.prod(rows)
    labels = draw(st.lists(st.integers(-1, classes), min_size=count, max_size=count))
    return row, input, torch.tensor(labels, dtype=torch.int64, device=DEVICE).reshape(rows)


@cpu_only
@given(row_calls())
@ORDINARY
def test_labels_of_rows(call):
    """An out-of-range label raises an IndexError whose message names it. Otherwise kernels and
    reference agree on value and gradient."""
    row, input, labels = call
    classes = input.shape[1]
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        with pytest.raises(IndexError, match=str(outside[0].item())):
            row.function(input, labels)
        labels = labels.clamp(0, classes - 1)
    results = []
    for backend, numbers in (("native", input), ("reference", input.double())):
        leaf = numbers.detach().requires_grad_()
        with lossops.backend(backend):
            loss = row.function(leaf, labels, reduction="none")
            results.append((loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]))
    (found, grad), (expected, wanted) = results
    largest = input.double().nan_to_num(0.0, 0.0, 0.0).abs().amax(1)
    same(found, expected, largest + 1, 32)
    # Only for finite scores: next to infinite ones, the kernels give limits that the formulas lack.
    finite = (input.isfinite().all(1, keepdim=True) & wanted.isfinite()).expand_as(input)
    same(grad[finite], wanted[finite], (largest + 1).unsqueeze(1).expand_as(input)[finite], 32)


@pytest.mark.parametrize("backend", backends.backends_for(DEVICE.type))
def test_what_these_have_found(backend):
    """NaN next to infinity in a row, and a count and its expectation that are both infinite."""
    row, inf = torch.tensor([[math.inf, math.nan]], device=DEVICE), torch.tensor(math.inf)
    with lossops.backend(backend):
        for label in (0, 1):
            loss = lossops.functional.cross_entropy(row, torch.tensor([label], device=DEVICE))
            assert loss.isnan()
        numbers = torch.tensor([math.inf, 100.0, 100.0, -math.inf], device=DEVICE)
        counts = torch.tensor([math.inf, math.inf, 2.0, 0.0], device=DEVICE)
        found = lossops.functional.poisson_nll_loss(numbers, counts, reduction="none")
        assert found[:2].isnan().all()
        assert found[2:].tolist() == [math.inf, 0.0]
        leaf = inf.to(DEVICE).clone().requires_grad_()
        loss = lossops.functional.poisson_nll_loss(leaf, torch.ones_like(leaf), log_input=False)
        assert torch.autograd.grad(loss, leaf)[0] == 1
