"""Verification of every family: whether it is correct, and whether it would detect errors."""

from __future__ import annotations

import math

import numpy
import pytest
import torch

import lossops
from benchmarks.claims.report import FAMILIES
from lossops import functional
from lossops.elementwise import reference as elementwise_reference
from lossops.softmax import reference as softmax_reference
from lossops.specs.elementwise import SPECS, spec
from lossops.specs.softmax import ROW_SPECS, Sample, row_spec
from lossops.specs.vectors import VECTOR_SPECS
from lossops.verify import accuracy, softmax_edges, values
from lossops.verify import elementwise as elementwise_verify
from lossops.verify import families as verify_all
from lossops.verify import others as others_verify
from lossops.verify import softmax as softmax_verify
from lossops.verify import truth as elementwise_truth
from lossops.verify import vectors as vectors_verify
from lossops.verify.others import OTHERS
from lossops.verify.softmax_accuracy import RowErrors, Trial
from lossops.verify.softmax_truth import exact
from lossops.verify.tables import to_text

each_row = pytest.mark.parametrize("spec", ROW_SPECS, ids=lambda row: row.name)
each_dtype = pytest.mark.parametrize("dtype", accuracy.DTYPES, ids=str)

# All losses of the families that are verified quickly, and one of the others.
MODULES = {
    "elementwise": (elementwise_verify, [spec("mse_loss")]),
    "rows": (softmax_verify, [row_spec("nll_loss")]),
    "vectors": (vectors_verify, VECTOR_SPECS),
    "others": (others_verify, OTHERS),
}
LOSSES = [
    pytest.param(family, module, loss, id=loss.name)
    for family, (module, losses) in MODULES.items()
    for loss in losses
]
each_loss = pytest.mark.parametrize(("family", "module", "loss"), LOSSES)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(softmax_verify, "SHAPES", ((20, 10), (4, 100)))


def test_every_loss_is_verified():
    names = {getattr(row, "public_name", row.name) for family in FAMILIES for row in family}
    assert names == set(functional.__all__)


@each_loss
def test_verify_passes(family, module, loss):
    result = module.verify([loss])
    assert result["passed"], module.failures(result)
    assert module.failures(result) == []
    if family != "others":
        tried = {(row["backend"], row["dtype"]) for row in result["numbers"]}
        dtypes = ("float64", "float32", "bfloat16", "float16")
        assert {(b, d) for b in ("native", "reference") for d in dtypes} <= tried
    text = "\n".join(map(to_text, module.tables(result)))
    assert loss.name in text
    assert "gradgradcheck" in text
    assert "FAIL" not in text


class _NaNGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, number):
        return torch.zeros_like(number)

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.nan


# What is done to a loss, and a check that has to find it.
WRONG = {"value": "float32", "gradient": "gradcheck", "kernel": "ran", "nan": "float32"}


@each_loss
@pytest.mark.parametrize("what", WRONG)
def test_verify_finds_what_is_wrong(family, module, loss, what, monkeypatch):
    if family == "others" and what in ("kernel", "nan"):
        pytest.skip("has no kernels; its gradients are compared in all dtypes")
    name = getattr(loss, "public_name", loss.name)
    right = getattr(functional, name)

    def wrong(*arguments, **options):
        if what == "kernel":
            with lossops.backend("reference"):
                return right(*arguments, **options)
        value, own = right(*arguments, **options), arguments[0]
        if what == "value":
            return value * 1.01
        if what == "gradient":
            return value + 0.01 * (own - own.detach()).sum()
        # Only in single precision, which gradcheck does not cover.
        return value + _NaNGradient.apply(own.sum()) if own.dtype == torch.float32 else value

    monkeypatch.setattr(functional, name, wrong)
    result = module.verify([loss])
    assert not result["passed"]
    failures = module.failures(result)
    if what == "nan":
        assert all("float32" in line or " edges: " in line for line in failures)
    assert any(WRONG[what] in line for line in failures)
    empty = {"numbers": [], "checks": []}
    every = {"passed": False, **empty} | dict.fromkeys(("rows", "vectors", "others"), empty)
    every |= {family: result} if family != "elementwise" else result
    assert verify_all.failures(every) == failures


@pytest.mark.parametrize("family", ["elementwise", "rows", "vectors"])
def test_verify_notices_that_another_backend_ran(family, monkeypatch):
    module, (loss, *_) = MODULES[family]
    monkeypatch.setitem(module._NAMESPACES, "native", "no_such_namespace")
    result = module.verify([loss])
    assert any("ran" in failure for failure in module.failures(result))


@pytest.mark.parametrize("family", ["elementwise", "rows"])
def test_verify_notices_a_wrong_formula(family, monkeypatch):
    """In the reference, while the kernels are correct. It is the truth of elementwise losses, so
    that there the kernels seem to be wrong."""
    formulas, kernel, change = {
        "elementwise": (elementwise_reference.FORMULAS, "mse", lambda x, y: 2 * (x - y).square()),
        "rows": (softmax_reference.LABEL_LOSSES, "cross_entropy", lambda u: 1.001 * u),
    }[family]
    module, (loss,) = MODULES[family]
    monkeypatch.setitem(formulas, kernel, change)
    result = module.verify([loss])
    backend = "reference" if family == "rows" else "native"
    failures = module.failures(result)
    assert any(f"{loss.name} {backend} float32: " in f and "value off by" in f for f in failures)
    if family == "rows":
        failed = {row["backend"] for row in result["numbers"] if not row["passed"]}
        assert failed == {"reference"}
        assert any("as_torch" in line for line in failures)


# ---------------------------------------------------------------------------------------------
# The expected results and the judges.


@pytest.mark.parametrize("row", SPECS, ids=lambda row: row.name)
def test_truth_agrees_with_autograd(row):
    generator = torch.Generator().manual_seed(3)
    x, y = row.inner(*torch.randn(2, 200, generator=generator))
    for kwargs in row.samples:
        truth = elementwise_truth.exact(row.kernel, row.params(kwargs), x, y)
        input = x.double().requires_grad_()
        formula = elementwise_reference.FORMULAS[row.kernel]
        value = formula(input, y.double(), *row.params(kwargs))
        (gradient,) = torch.autograd.grad(value.sum(), input)
        torch.testing.assert_close(torch.from_numpy(truth.value), value.detach())
        torch.testing.assert_close(torch.from_numpy(truth.gradient), gradient)


@each_row
def test_truth_of_rows_agrees_with_autograd(spec):
    """One is written by hand, the other computed by torch."""
    for sample in spec.samples:
        x, y, options = sample.tensors((12, 9), torch.float64, 3)
        truth = exact(spec, sample, x, y, options)
        leaf = x.detach().requires_grad_()
        with lossops.backend("reference"):
            value = spec.call(sample)(leaf, y, "none", **options)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        close = {"rtol": 1e-9, "atol": 1e-12}
        numpy.testing.assert_allclose(truth.value.astype(float), value.detach(), **close)
        numpy.testing.assert_allclose(truth.gradient.astype(float), gradient, **close)
        assert (truth.value_moves >= 0).all()
        assert (truth.gradient_moves >= 0).all()


@each_dtype
def test_ulp_errors(dtype):
    """Results with known errors: near 1, among the denormal numbers and at the overflow
    threshold."""
    if dtype == torch.float64 and not elementwise_truth.judges_float64():
        pytest.skip("no number wider than float64")
    info = torch.finfo(dtype)
    least = info.tiny * info.eps
    x = torch.tensor([1.0, 3 * least, info.max, -1.0], dtype=dtype)
    truth = elementwise_truth.exact("l1", (), x, torch.zeros_like(x))
    found = torch.tensor([1 + 2 * info.eps, least, torch.inf, 1.0], dtype=dtype)
    scale = accuracy._Scale(truth.value, dtype, judged=None)
    ulps, wrong_kind = scale.compare(found)
    assert ulps.tolist() == [2, 2, 1, 0]
    assert wrong_kind == 0
    _, wrong_kind = scale.compare(torch.full_like(found, torch.nan))
    assert wrong_kind == 4


@each_dtype
def test_adversarial_values_hold_what_they_promise(dtype):
    row, generator = spec("huber_loss"), torch.Generator().manual_seed(0)
    pairs = list(values.adversarial(row, {"delta": 1.0}, dtype, 3 * values.CHUNK, generator))
    x, y = (torch.cat(side).double() for side in zip(*pairs, strict=True))
    info = torch.finfo(dtype)
    assert x.isnan().any()
    assert x.isinf().any()
    assert ((x != 0) & (x.abs() < info.tiny)).any()
    assert x[x.isfinite()].abs().max() > info.max / 4
    distance = (x - y).abs()
    assert (distance == 1).any()
    assert ((distance > 1) & (distance < 1 + 4 * info.eps)).any()
    assert ((distance < 1) & (distance > 1 - 4 * info.eps)).any()


def judged(change, dtype=torch.float32):
    spec, sample = row_spec("cross_entropy"), Sample()
    trial = Trial(spec, sample, (50, 10), dtype, 0, "cpu")

    def loss(x, y, reduction, **options):
        return change(spec.loss(x, y, reduction, **options), x)

    return trial.judge(loss)


def test_errors_are_counted_in_units():
    assert judged(lambda value, x: value).value < 1
    off = judged(lambda value, x: value * (1 + 2.0**-18))
    assert 8 < off.value < 40  # 2^-18 is 32 units of 2^-23, some of which are unavoidable
    assert off.reduced > 4
    steep = judged(lambda value, x: value + 1e-3 * (x - x.detach()).sum())
    assert steep.gradient > 1000
    assert steep.value < 1
    wrong = judged(lambda value, x: torch.where(value > 2, math.nan, value))
    assert wrong.wrong_kind > 0
    assert "NaN out of place" in softmax_verify._beyond(wrong, RowErrors(), 1.0)


def test_beyond_is_torchs_error_and_a_unit():
    beyond = softmax_verify._beyond
    assert beyond(RowErrors(value=1.9), RowErrors(value=1.0), 1.0) == ""
    assert "value off by 2.1 units, torch by 1" in beyond(
        RowErrors(value=2.1), RowErrors(value=1.0), 1.0
    )
    assert "gradient" in beyond(RowErrors(gradient=1.1), RowErrors(), 1.0)
    assert beyond(RowErrors(gradient=1.1), RowErrors(gradient=0.1), 2.0) == ""
    assert beyond("ValueError: no", RowErrors(), 1.0) == "ValueError: no"
    assert beyond(RowErrors(value=0.9), "RuntimeError: not for halves", 1.0) == ""


@pytest.mark.parametrize("edge", softmax_edges.EDGES)
def test_edges_notice_what_is_wrong(edge, monkeypatch):
    """Each check is given a loss that is wrong everywhere."""
    spec = row_spec("cross_entropy")
    check = softmax_edges.EDGES[edge]
    assert check(spec, "cpu") == ""

    def wrong(input, target, *args, reduction="mean", **kwargs):
        target = target.clamp(0, 1) if not target.is_floating_point() else target
        value = functional.kl_divergence(
            input.nan_to_num(neginf=-3.0, posinf=3.0) * 1.5, target, reduction=reduction,
            **({"target_form": "probs"} if target.is_floating_point() else {}),
        )  # fmt: skip
        return value + 0.25

    monkeypatch.setattr(functional, "cross_entropy", wrong)
    assert check(spec, "cpu") != ""
