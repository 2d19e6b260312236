"""Compares lossops with torch on torch's own samples of every loss in torch.nn.functional.

The torch wheel contains the sample inputs of torch's tests. Compared are value, gradient,
derivative of the gradient (with random cotangents) and forward-mode derivative, in float64 and
float32. In half precision the error against float64 must not exceed torch's. The error inputs are
tested as well. Where torch gives NaN, lossops may give the limit.
"""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as torch_functional
from conftest import DEVICE
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten, tree_unflatten

from lossops import functional
from lossops.linear import cross_entropy as linear

pytestmark = pytest.mark.filterwarnings("ignore")


def _is_loss(name: str) -> bool:
    name = name.removeprefix("nn.functional.")
    return name in functional.__all__ and hasattr(torch_functional, name)


ENTRIES = {
    f"{op.name.removeprefix('nn.functional.')}-{op.variant_test_name}".rstrip("-"): op
    for op in op_db
    if _is_loss(op.name)
}
TORCHS_ENTRIES = len(ENTRIES)
if "linear_cross_entropy" in ENTRIES:  # from torch 2.13 on
    ENTRIES["linear_cross_entropy-walked"] = ENTRIES["linear_cross_entropy"]
each_entry = pytest.mark.parametrize("entry", ENTRIES)
# torch has samples of all its losses, and lossops implements all of them.
TORCHS = [
    name
    for name in dir(torch_functional)
    if name.endswith("_loss") or name in ("cross_entropy", "binary_cross_entropy", "kl_div")
    or name in ("binary_cross_entropy_with_logits", "linear_cross_entropy")
]  # fmt: skip


@pytest.mark.skipif("linear_cross_entropy" not in dir(torch_functional), reason="an older torch")
def test_nothing_is_left_out():
    assert sorted(name for name in TORCHS if name not in functional.__all__) == []
    assert len(TORCHS) == 22
    assert {entry.split("-")[0] for entry in ENTRIES} == set(TORCHS)
    assert TORCHS_ENTRIES == 24


@pytest.fixture(autouse=True)
def walks(request, monkeypatch):
    """With so few logits, all are computed at once. One entry forces the walk over chunks."""
    if "walked" in request.node.name:
        monkeypatch.setattr(linear, "_FEW_BYTES", -1)


def ours(op):
    return getattr(functional, op.name.removeprefix("nn.functional."))


def samples(op, dtype: torch.dtype):
    return op.sample_inputs(DEVICE.type, dtype, requires_grad=True)


class Call:
    """A sample, as functions of the tensors that it can be differentiated with respect to."""

    def __init__(self, sample, dtype: torch.dtype | None = None):
        flat, self.spec = tree_flatten((sample.input, sample.args, sample.kwargs))
        if dtype is not None:
            flat = [
                t.detach().to(dtype).requires_grad_(t.requires_grad)
                if isinstance(t, torch.Tensor) and t.is_floating_point() else t
                for t in flat
            ]  # fmt: skip
        self.flat = flat
        self.places = [
            i for i, t in enumerate(flat) if isinstance(t, torch.Tensor) and t.requires_grad
        ]
        self.moving = [flat[i] for i in self.places]

    def __call__(self, function, moving=None):
        flat = list(self.flat)
        moving = self.moving if moving is None else moving
        for place, tensor in zip(self.places, moving, strict=True):
            flat[place] = tensor
        input, args, kwargs = tree_unflatten(flat, self.spec)
        return function(input, *args, **kwargs)


def gradients(loss, moving, cotangent, **options):
    if not loss.requires_grad:
        return [None] * len(moving)
    return list(torch.autograd.grad(loss, moving, cotangent, allow_unused=True, **options))


def zeros_for_none(tensors, like):
    return [torch.zeros_like(x) if t is None else t for t, x in zip(tensors, like, strict=True)]


def close(got, expected, dtype, what, slack=1.0):
    """Compares relative to the largest value, because results may be differences of such values."""
    tolerance = slack * {torch.float64: 1e-11, torch.float32: 2e-5}[dtype]
    known = ~expected.isnan()
    got, expected = got[known], expected[known]
    size = expected.detach().abs()
    size = torch.cat([size[size.isfinite()], size.new_ones(1)]).max().item()
    torch.testing.assert_close(
        got, expected, rtol=tolerance, atol=tolerance * size, msg=lambda text: f"{what}: {text}"
    )


@each_entry
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_samples(entry, dtype):
    op = ENTRIES[entry]
    seen = 0
    for sample in samples(op, dtype):
        seen += 1
        call = Call(sample)
        what = f"{entry}, sample {seen}, {sample.kwargs}"
        expected, got = call(op.op), call(ours(op))
        assert got.dtype == expected.dtype, what
        assert got.shape == expected.shape, what
        assert not got._is_view() or expected._is_view(), what
        close(got, expected, dtype, f"value of {what}")
        cotangent = torch.randn_like(expected)
        # torch's ctc and its chunked linear_cross_entropy cannot be differentiated twice.
        twice = op.supports_gradgrad and "chunked" not in entry and "ctc" not in entry
        twice = twice and dtype == torch.float64
        found = gradients(got, call.moving, cotangent, create_graph=twice)
        right = gradients(expected, call.moving, cotangent, create_graph=twice)
        found, right = zeros_for_none(found, call.moving), zeros_for_none(right, call.moving)
        for one, other in zip(found, right, strict=True):
            close(one, other, dtype, f"gradient of {what}")
        if twice and any(g.requires_grad for g in right):
            cotangents = [torch.randn_like(g) for g in right]
            second = [
                zeros_for_none(
                    torch.autograd.grad(
                        [g for g in grads if g.requires_grad], call.moving,
                        [c for g, c in zip(grads, cotangents, strict=True) if g.requires_grad],
                        allow_unused=True,
                    )
                    if any(g.requires_grad for g in grads) else [None] * len(call.moving),
                    call.moving,
                )
                for grads in (found, right)
            ]  # fmt: skip
            for one, other in zip(*second, strict=True):
                # For binary cross entropy, it is a quotient by (x (1 - x))², evaluated in torch's
                # order.
                close(one, other, dtype, f"second derivative of {what}", slack=100)
        if op.supports_forward_ad and dtype == torch.float64:
            tangents = tuple(torch.randn_like(t) for t in call.moving)
            moving = tuple(t.detach() for t in call.moving)
            pushed = [
                torch.func.jvp(lambda *moving, c=call, f=f: c(f, moving), moving, tangents)[1]
                for f in (ours(op), op.op)
            ]
            close(*pushed, dtype, f"forward derivative of {what}")
    assert seen


HALVES = {
    name: [
        dtype for dtype in (torch.bfloat16, torch.float16)
        if dtype in op.supported_dtypes(DEVICE.type)
    ]
    for name, op in ENTRIES.items()
}  # fmt: skip


def each_half(wanted):
    """The half-precision dtypes that torch supports, for each of these entries."""
    return pytest.mark.parametrize(
        ("entry", "dtype"),
        [
            pytest.param(entry, dtype, id=f"{entry}-{str(dtype)[6:]}")
            for entry, dtypes in HALVES.items() if entry in wanted for dtype in dtypes
        ],
    )  # fmt: skip


def errors_in_half_precision(entry, dtype):
    """Value and gradients of each sample from lossops, from torch, and in float64 as the expected
    ones."""
    op = ENTRIES[entry]
    for i, sample in enumerate(samples(op, dtype)):
        call, exact = Call(sample), Call(sample, torch.float64)
        what = f"{entry}, sample {i}, {sample.kwargs}"
        try:
            expected, true = call(op.op), exact(op.op)
            cotangent = torch.randn_like(expected)
            theirs = gradients(expected, call.moving, cotangent)
            truths = gradients(true, exact.moving, cotangent.to(true.dtype))
        except (RuntimeError, NotImplementedError):  # torch does not support it
            continue
        got = call(ours(op))
        assert got.dtype == expected.dtype, what
        triples = [(got, expected, true)]
        found = zip(gradients(got, call.moving, cotangent), theirs, truths, strict=True)
        triples += [t for t in found if t[2] is not None]
        for one, torchs, truth in triples:
            if one is None or torchs is None or not truth.numel():
                assert (one is None) == (torchs is None) or not truth.any(), what
                continue
            yield what, one.double(), torchs.double(), truth


@each_half([entry for entry in ENTRIES if "linear" not in entry])
def test_half_precision_is_no_worse_than_torchs(entry, dtype):
    eps = torch.finfo(dtype).eps
    for what, one, torchs, truth in errors_in_half_precision(entry, dtype):
        largest = truth.abs().nan_to_num(0, 0, 0).max()
        allowed = (torchs - truth).abs().nan_to_num(math.inf, math.inf, math.inf)
        allowed = allowed + eps * (truth.abs() + 0.5 * largest)
        error = (one - truth).abs()
        fine = truth.isnan() | (one == truth) | (error <= allowed)
        assert fine.all(), what


@each_half([entry for entry in ENTRIES if "linear" in entry])
def test_half_precision_of_linear_layers(entry, dtype):
    """Logits are not rounded: no error exceeds 1.5 times torch's or the error of rounding the
    result. The input's gradient is rounded twice, after a sum and after a mean."""
    for what, one, torchs, truth in errors_in_half_precision(entry, dtype):
        known = truth.isfinite()
        error, theirs = ((t - truth)[known].abs().max() for t in (one, torchs))
        rounding = torch.finfo(dtype).eps * truth[known].abs().max()
        assert error <= max(1.5 * theirs, rounding), (what, error, theirs, rounding)


@each_entry
def test_refuses_what_torch_refuses(entry):
    op = ENTRIES[entry]
    if op.error_inputs_func is None:
        pytest.skip("torch has no error inputs of it")
    for error in op.error_inputs(DEVICE.type):
        sample = error.sample_input
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(error.error_type):
                op.op(sample.input, *sample.args, **sample.kwargs)
            with pytest.raises(error.error_type):
                ours(op)(sample.input, *sample.args, **sample.kwargs)
