"""Verification of every family: whether it is correct, and whether it would detect errors."""

from __future__ import annotations

import math

import numpy
import pytest
import torch

import lossops
from lossops import functional, specs
from lossops.elementwise import reference as elementwise_reference
from lossops.softmax import reference as softmax_reference
from lossops.specs.elementwise import SPECS, spec
from lossops.specs.others import OTHERS
from lossops.specs.softmax import ROW_SPECS, Sample, row_spec
from lossops.specs.vectors import VECTOR_SPECS
from lossops.verify import accuracy, families, row_edges, values, verifier
from lossops.verify.accuracy import Errors, beyond, judge
from lossops.verify.row_truth import of_rows
from lossops.verify.tables import to_text
from lossops.verify.truth import Exact, judges_float64, of_elements, of_vectors, ulp

each_row = pytest.mark.parametrize("spec", ROW_SPECS, ids=lambda row: row.name)
each_dtype = pytest.mark.parametrize("dtype", accuracy.DTYPES, ids=str)
DTYPES = ("float64", "float32", "bfloat16", "float16")

# One loss of the families that have many, and all of the others.
LOSSES = (spec("mse_loss"), row_spec("nll_loss"), *VECTOR_SPECS, *OTHERS)
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
each_family = pytest.mark.parametrize("loss", LOSSES[:3], ids=lambda loss: loss.name)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(families, "ROW_SHAPES", ((20, 10), (4, 100)))
    monkeypatch.setattr(families, "VECTOR_SHAPES", ((20, 10), (4, 100)))


def test_every_loss_is_verified():
    names = {getattr(row, "public_name", row.name) for row in specs.LOSSES}
    assert names == set(functional.__all__)


@each_loss
def test_verify_passes(loss):
    said = []
    result = verifier.verify([loss], said.append)
    assert result["passed"], verifier.failures(result)
    assert verifier.failures(result) == []
    assert len(said) == verifier.pieces([loss])
    if loss not in OTHERS:
        tried = {(row["backend"], row["dtype"]) for row in result["numbers"]}
        assert {(b, d) for b in ("native", "reference") for d in DTYPES} <= tried
        assert all(row["torch"] or loss in VECTOR_SPECS for row in result["numbers"])
    text = "\n".join(map(to_text, verifier.tables(result)))
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


# What is done to a loss, and words of a failure that it has to cause.
WRONG = {"value": " float32: ", "gradient": " gradcheck: ", "kernel": " ran: ", "nan": " float32: "}


@each_loss
@pytest.mark.parametrize("what", WRONG)
def test_verify_finds_what_is_wrong(loss, what, monkeypatch):
    other = loss in OTHERS
    if other and what in ("kernel", "nan"):
        pytest.skip("not every one has kernels; gradients are compared with torch's in all dtypes")
    right = getattr(functional, loss.name)

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

    monkeypatch.setattr(functional, loss.name, wrong)
    result = verifier.verify([loss])
    assert not result["passed"]
    failures = verifier.failures(result)
    if what == "nan":
        assert all("float32: " in line or " edges: " in line for line in failures)
        assert any("NaN or infinity out of place" in line for line in failures)
    if what in ("value", "gradient"):
        assert all(row["as_torch"] for row in result["checks"])
    if other:
        for row in result["checks"]:
            assert "in torch.float64: " in row["as_torch"]
            assert "in torch.float32: " in row["as_torch"]
    assert any(WRONG[what] in line for line in failures) or (other and what == "value")


@each_family
def test_verify_notices_that_another_backend_ran(loss, monkeypatch):
    monkeypatch.setitem(verifier.NAMESPACES, "native", "no_such_namespace")
    result = verifier.verify([loss])
    assert any(" ran: " in failure for failure in verifier.failures(result))


@pytest.mark.parametrize(
    ("loss", "formulas", "kernel", "change"),
    [
        (LOSSES[0], elementwise_reference.FORMULAS, "mse", lambda x, y: 2 * (x - y).square()),
        (LOSSES[1], softmax_reference.LABEL_LOSSES, "cross_entropy", lambda u: 1.001 * u),
    ],
)
def test_verify_notices_a_wrong_formula(loss, formulas, kernel, change, monkeypatch):
    """In the reference, while the kernels are correct."""
    monkeypatch.setitem(formulas, kernel, change)
    result = verifier.verify([loss])
    failures = verifier.failures(result)
    assert any(f"{loss.name} reference as_torch" in line for line in failures)
    failed = {row["backend"] for row in result["numbers"] if not row["passed"]}
    if kernel == "mse":  # this formula is the truth, so that the kernels differ
        assert "native" in failed
    else:
        assert failed == {"reference"}
        assert any(f"{loss.name} reference float32" in x and "value off by" in x for x in failures)


@pytest.mark.parametrize("loss", ["mse_loss", "huber_loss"])
def test_verify_notices_a_wrong_second_derivative(loss, monkeypatch):
    """In single precision, which gradgradcheck does not cover."""
    right = getattr(functional, loss)

    def wrong(input, target, **options):
        value = right(input, target, **options)
        if input.dtype != torch.float32 or options.get("reduction") != "none":
            return value
        return value + 1e-4 * (input - input.detach()).nan_to_num().square()

    monkeypatch.setattr(functional, loss, wrong)
    failures = verifier.failures(verifier.verify([spec(loss)]))
    assert failures != []
    assert all(" float32: second derivative off by " in line for line in failures)


# ---------------------------------------------------------------------------------------------
# The expected results and the judge.


def close(exact: Exact, found: torch.Tensor) -> None:
    right = found.detach().numpy()
    numpy.testing.assert_allclose(exact.value.astype(float), right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("row", SPECS, ids=lambda row: row.name)
def test_truth_agrees_with_autograd(row):
    generator = torch.Generator().manual_seed(3)
    x, y = row.inner(*torch.randn(2, 200, generator=generator))
    for kwargs in row.samples:
        truth = of_elements(row, kwargs, x, y)
        input = x.double().requires_grad_()
        formula = elementwise_reference.FORMULAS[row.kernel]
        value = formula(input, y.double(), *row.params(kwargs))
        (gradient,) = torch.autograd.grad(value.sum(), input)
        torch.testing.assert_close(torch.from_numpy(truth.value.value), value.detach())
        torch.testing.assert_close(torch.from_numpy(truth.gradients[0].value), gradient)


@each_row
def test_truth_of_rows_agrees_with_autograd(spec):
    """One is written by hand, the other computed by torch."""
    for sample in spec.samples:
        x, y, options = sample.tensors((12, 9), torch.float64, 3)
        truth = of_rows(spec, sample, x, y, options)
        leaf = x.detach().requires_grad_()
        with lossops.backend("reference"):
            value = spec.call(sample)(leaf, y, "none", **options)
            mean = spec.call(sample)(x, y, "mean", **options)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        for exact, found in ((truth.value, value), (truth.gradients[0], gradient)):
            close(exact, found)
            assert (exact.unit >= ulp(abs(exact.value), x.dtype)).all()
        for (right, _, _), found in zip(truth.reductions, (value.sum(), mean), strict=True):
            assert float(right) == pytest.approx(found.item())


@pytest.mark.parametrize("spec", VECTOR_SPECS, ids=lambda row: row.name)
def test_truth_of_vectors_agrees_with_the_reference(spec):
    """Some of it is torch's, some is written by hand."""
    for options in spec.samples:
        probs = options.get("input_form") == "probs"
        vectors, given = spec.tensors((12, 9), torch.float64, 3, probs=probs)
        truth = of_vectors(spec, vectors, given, options)
        leaves = [vector.requires_grad_() for vector in vectors]
        with lossops.backend("reference"):
            value = spec.function(*leaves, *given, reduction="none", **options)
        close(truth.value, value)
        gradients = torch.autograd.grad(value.sum(), leaves)
        for exact, gradient in zip(truth.gradients, gradients, strict=True):
            close(exact, gradient)


@each_dtype
def test_ulp_errors(dtype):
    """Results with known errors: near 1, among the denormal numbers and at the overflow
    threshold."""
    if dtype == torch.float64 and not judges_float64():
        pytest.skip("no number wider than float64")
    info = torch.finfo(dtype)
    least = info.tiny * info.eps
    x = torch.tensor([1.0, 3 * least, info.max, -1.0], dtype=dtype)
    right = of_elements(spec("l1_loss"), {}, x, torch.zeros_like(x)).value
    found = torch.tensor([1 + 2 * info.eps, least, torch.inf, 1.0], dtype=dtype)
    for i, ulps in enumerate([2, 2, 1, 0]):
        one = Exact(right.value[i : i + 1], right.unit[i : i + 1])
        errors = accuracy._compare("value", found[i : i + 1], one, None)
        assert (errors.value, errors.wrong_kind) == (ulps, 0)
    errors = accuracy._compare("value", torch.full_like(found, torch.nan), right, None)
    assert errors.wrong_kind == 4


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
    tensors = sample.tensors((50, 10), dtype)
    case = families._row_call(spec, sample, *tensors)
    right = case.ours
    case.ours = lambda x, reduction: change(right(x, reduction=reduction), x)
    return judge(case.ours, case, of_rows(spec, sample, *tensors))


def test_errors_are_counted_in_units():
    assert judged(lambda value, x: value).value < 1
    off = judged(lambda value, x: value * (1 + 2.0**-18))
    assert 8 < off.value < 40  # 2^-18 is 32 units of 2^-23, some of which are unavoidable
    assert off.reduced > 4
    steep = judged(lambda value, x: value + 1e-3 * (x - x.detach()).sum())
    assert steep.gradient > 1000
    assert steep.value < 1
    # The gradient of a sum comes from another kernel than that of all values.
    steep = judged(lambda value, x: value + 0.1 * (x - x.detach()).sum() * (value.dim() == 0))
    assert steep.gradient > 1000


def test_results_of_the_wrong_kind_are_counted():
    for kind in (math.nan, math.inf):
        wrong = judged(lambda value, x, kind=kind: torch.where(value > 2, kind, value))
        assert wrong.wrong_kind > 0 or wrong.value > 1000
    trial = families.Trial([])
    ours, torchs = Errors(wrong_kind=3), Errors(wrong_kind=3)
    assert "NaN or infinity out of place 3 times" in verifier._wrong(trial, "native", ours, torchs)
    trial.torch_decides = True
    assert verifier._wrong(trial, "native", ours, torchs) == []
    assert verifier._wrong(trial, "native", ours, Errors(wrong_kind=2)) != []


def test_beyond_is_torchs_error_and_a_unit():
    assert beyond(Errors(value=1.9), Errors(value=1.0), 8.0) == []
    (line,) = beyond(Errors(value=2.1), Errors(value=1.0), 8.0)
    assert line == "value off by 2.1 units, torch by 1"
    (line,) = beyond(Errors(gradient=1.1, gradient_at=-0.5), Errors(), 8.0)
    assert line == "gradient off by 1.1 units, torch by 0, where x - y = -0.5"
    assert beyond(Errors(gradient=1.1), Errors(gradient=0.1), 8.0, factor=2.0) == []
    assert beyond(Errors(gradient=7.9), None, 8.0) == []
    assert beyond(Errors(gradient=8.1), None, 8.0) == ["gradient off by 8.1 units"]
    assert beyond(Errors(value=math.nan), Errors(), 8.0) != []
    assert beyond(Errors(reduced=4.1), Errors(reduced=9.0), 8.0) == ["reductions off by 4.1 eps"]
    trial = families.Trial([], alone=1.0, factor=2.0)
    wrong = verifier._wrong
    assert wrong(trial, "native", "ValueError: no", Errors()) == ["ValueError: no"]
    assert wrong(trial, "native", Errors(value=0.9), "RuntimeError: not for halves") == []
    assert wrong(trial, "native", Errors(value=1.1), "RuntimeError: not for halves") != []
    assert wrong(trial, "native", Errors(value=2.5), Errors(value=1.0)) != []
    assert wrong(trial, "reference", Errors(value=2.5), Errors(value=1.0)) == []


@pytest.mark.parametrize("edge", row_edges.EDGES)
def test_edges_notice_what_is_wrong(edge, monkeypatch):
    """Each check is given a loss that is wrong everywhere."""
    spec = row_spec("cross_entropy")
    check = row_edges.EDGES[edge]
    check(spec, "cpu")

    def wrong(input, target, *args, reduction="mean", **kwargs):
        target = target.clamp(0, 1) if not target.is_floating_point() else target
        value = functional.kl_divergence(
            input.nan_to_num(neginf=-3.0, posinf=3.0) * 1.5, target, reduction=reduction,
            **({"target_form": "probs"} if target.is_floating_point() else {}),
        )  # fmt: skip
        return value + 0.25

    monkeypatch.setattr(functional, "cross_entropy", wrong)
    with pytest.raises((AssertionError, RuntimeError)):
        check(spec, "cpu")


def test_an_edge_that_returns_nan_is_reported(monkeypatch):
    right = functional.focal_loss

    def wrong(input, target, **options):
        certain = (input == math.inf).any(1)
        return torch.where(certain, math.nan, right(input, target, **options))

    monkeypatch.setattr(functional, "focal_loss", wrong)
    result = verifier.verify([row_spec("focal_loss")])
    assert all("logit +inf: value [nan]" in row["edges"] for row in result["checks"])
