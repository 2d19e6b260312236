"""Verifies each elementwise loss on each backend and on each device of this machine."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import lossops
from lossops.core import backends, library
from lossops.elementwise import reference
from lossops.specs.elementwise import SPECS, Spec
from lossops.verify import accuracy
from lossops.verify.accuracy import DTYPES, Errors, within
from lossops.verify.tables import NOTHING, Table, number, verdict
from lossops.verify.truth import exact

COUNT, FULL_COUNT = 20_000, 10_000_000
_NAMESPACES = {"native": library.NATIVE, "triton": library.TRITON}
_REDUCTION_ALLOWED = 4.0  # eps, for any number of elements
_CURVATURE_ALLOWED = 16.0  # eps; rounding the difference alone changes log_cosh's by several eps


class OpRecorder(TorchDispatchMode):
    """Records which ops ran."""

    def __init__(self):
        super().__init__()
        self.ops: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.ops.add(function.name())
        return function(*args, **(kwargs or {}))


def devices() -> list[str]:
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def targets(wanted: Iterable[Spec] = SPECS) -> list[tuple[Spec, str, str]]:
    """The combinations (loss, device, backend) to verify."""
    return [(s, d, b) for s in wanted for d in devices() for b in backends.backends_for(d)]


def verify(
    wanted: Iterable[Spec] = SPECS,
    advance: Callable[[str], None] = lambda what: None,
    full: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Verifies losses. Returns rows of ``numbers`` and ``checks``, and whether all ``passed``."""
    numbers, checks = [], []
    for spec, device, backend in targets(wanted):
        where = {"loss": spec.name, "device": device, "backend": backend}
        with lossops.backend(backend):
            for dtype in DTYPES:
                count = _count(backend, device, dtype, full)
                numbers.append(where | _numbers(spec, device, dtype, count, seed))
            checks.append(where | _checks(spec, device, backend, seed))
        advance(f"{spec.name} {backend} {device}")
    passed = all(row["passed"] for row in (*numbers, *checks))
    return {"passed": passed, "seed": seed, "numbers": numbers, "checks": checks}


def _count(backend: str, device: str, dtype: torch.dtype, full: bool) -> int:
    if backend == "triton" and device == "cpu":
        return 2_000  # Triton's interpreter is slow
    count = FULL_COUNT if full else COUNT
    return count // 10 if dtype == torch.float64 else count  # extended precision is slow


def _numbers(spec: Spec, device: str, dtype: torch.dtype, count: int, seed: int) -> dict[str, Any]:
    found = accuracy.measure(spec, dtype, count, seed, device)
    ours, theirs = found["lossops"], found["torch"] if spec.torch_function else None
    reduced = _reduction_errors(spec, dtype, device, seed)
    curvature = _curvature_error(spec, dtype, device, seed)
    passed = (
        acceptable(ours, theirs, _slack(spec))
        and reduced["lossops"] <= _REDUCTION_ALLOWED
        and curvature <= _CURVATURE_ALLOWED + _slack(spec)
    )
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "count": count,
        "lossops": asdict(ours),
        "torch": asdict(theirs) if theirs else None,
        "reduced": reduced,
        "curvature": curvature,
        "passed": passed,
    }


def acceptable(ours: Errors, theirs: Errors | None, slack: float = 0.0) -> bool:
    """Whether no error exceeds torch's by more than one ulp or, if torch has no such loss, the
    fixed limit plus ``slack``."""
    allowed = accuracy.ALLOWED_ALONE + slack
    return (
        within(ours.value, theirs and theirs.value, allowed)
        and within(ours.gradient, theirs and theirs.gradient, allowed)
        and ours.wrong_kind <= (theirs.wrong_kind if theirs else 0)
    )


def _slack(spec: Spec) -> float:
    return max(spec.slack(kwargs) for kwargs in spec.samples)


def _samples(spec: Spec, shape, dtype, device: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns input, target and weight. No difference is close to a kink of the loss, for any of
    its samples of hyperparameters."""
    generator = torch.Generator().manual_seed(seed + zlib.crc32(spec.name.encode()))
    target = torch.randn(shape, dtype=torch.float64, generator=generator)
    difference = 2 * torch.randn(shape, dtype=torch.float64, generator=generator)
    for kwargs in spec.samples:
        for kink in (k for k in spec.kinks(kwargs) if abs(k) < 1e9):
            difference[(difference - kink).abs() < 0.05] = kink + 0.11
    weight = 0.5 + torch.rand(shape, dtype=torch.float64, generator=generator)
    input, target = spec.inner(target + difference, target)
    return tuple(t.to(device, dtype) for t in (input, target, weight))


def _reduction_errors(
    spec: Spec, dtype: torch.dtype, device: str, seed: int
) -> dict[str, float | None]:
    """The largest relative error of the sum, the means and the means per sample, in eps of the
    dtype."""
    x, y, weight = _samples(spec, (7, 1013), dtype, device, seed)
    worst = {"lossops": 0.0, "torch": 0.0 if spec.torch_function else None}
    for kwargs in spec.samples:
        loss = exact(spec.kernel, spec.params(kwargs), x, y).value
        w = weight.cpu().double().numpy().astype(loss.dtype)
        total = w.sum() if spec.divides_by_weight else w.size
        truths = {"mean": loss.mean(), "sum": loss.sum(), "sample": loss.mean(1)}
        found = {r: spec.function(x, y, reduction=r, **kwargs) for r in truths}
        truths["weighted"] = (loss * w).sum() / total
        found["weighted"] = spec.function(x, y, weight=weight, **kwargs)
        for name, truth in truths.items():
            worst["lossops"] = max(worst["lossops"], _in_eps(found[name], truth, dtype))
            if spec.torch_function and name in ("mean", "sum"):
                theirs = spec.in_torch(x, y, reduction=name, **kwargs)
                worst["torch"] = max(worst["torch"], _in_eps(theirs, truth, dtype))
    return worst


def _in_eps(found: Tensor, truth, dtype: torch.dtype) -> float:
    error = abs(found.detach().cpu().double().numpy() - truth) / abs(truth)
    error = float(error.max()) / torch.finfo(dtype).eps
    return torch.inf if error != error else error  # max() would ignore NaN


def _curvature_error(spec: Spec, dtype: torch.dtype, device: str, seed: int) -> float:
    """The largest error of the second derivative, in eps of the dtype."""
    worst = 0.0
    x, y, _ = _samples(spec, (501,), dtype, device, seed)
    for kwargs in spec.samples:
        found = _second_derivative(spec.function, x, y, reduction="none", **kwargs)
        formula, params = reference.FORMULAS[spec.kernel], spec.params(kwargs)
        truth = _second_derivative(
            lambda a, b, f=formula, p=params: f(a, b, *p), x.double(), y.double()
        )
        scale = truth.abs().clamp(min=1)
        error = (found.double() - truth).abs() / scale / torch.finfo(dtype).eps
        worst = max(worst, error.nan_to_num(torch.inf).max().item())
    return worst


def _second_derivative(function, x: Tensor, y: Tensor, **kwargs) -> Tensor:
    x = x.detach().requires_grad_()
    loss = function(x, y, **kwargs)
    (slope,) = torch.autograd.grad(loss, x, torch.ones_like(loss), create_graph=True)
    if not slope.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(slope, x, torch.ones_like(slope), materialize_grads=True)[0]


def _checks(spec: Spec, device: str, backend: str, seed: int) -> dict[str, Any]:
    results = {
        "ran": _ran_there(spec, device, backend, seed),
        "gradcheck": _all(_gradcheck, spec, device, seed),
        "gradgradcheck": _all(_gradgradcheck, spec, device, seed),
        "as_torch": _all(_as_torch, spec, device, seed) if spec.torch_function else None,
    }
    return results | {"passed": all(result in ("", None) for result in results.values())}


def _all(check, spec: Spec, device: str, seed: int) -> str:
    """Runs a check with each sample of hyperparameters. Returns the first error, or an empty
    string."""
    for kwargs in spec.samples:
        try:
            check(spec, kwargs, _samples(spec, (3, 2), torch.float64, device, seed))
        except Exception as error:
            return f"{kwargs or 'defaults'}: {' '.join(str(error).split())}"
    return ""


def _ran_there(spec: Spec, device: str, backend: str, seed: int) -> str:
    x, y, _ = _samples(spec, (5,), torch.float32, device, seed)
    with OpRecorder() as recorder:
        spec.function(x.requires_grad_(), y, **spec.defaults).backward()
    forward = {name for name in recorder.ops if name.startswith(tuple(_NAMESPACES.values()))}
    wanted = _NAMESPACES.get(backend)
    if all(name.partition("::")[0] == wanted for name in forward) and bool(forward) == bool(wanted):
        return ""
    return f"ran {', '.join(sorted(forward)) or 'none of the kernels'}"


def _gradcheck(spec: Spec, kwargs, samples) -> None:
    tensors = [tensor.requires_grad_() for tensor in samples]
    for reduction in ("none", "mean"):
        gradcheck(
            lambda x, y, w, r=reduction: spec.function(x, y, reduction=r, weight=w, **kwargs),
            tensors,
            check_forward_ad=reduction == "none",
            check_batched_grad=True,
        )


def _gradgradcheck(spec: Spec, kwargs, samples) -> None:
    tensors = [tensor.requires_grad_() for tensor in samples]
    gradgradcheck(
        lambda x, y, w: spec.function(x, y, reduction="none", weight=w, **kwargs), tensors
    )


def _as_torch(spec: Spec, kwargs, samples) -> None:
    x, y, _ = samples
    for reduction in ("none", "mean", "sum"):
        ours = spec.function(x, y, reduction=reduction, **kwargs)
        theirs = spec.in_torch(x, y, reduction=reduction, **kwargs)
        torch.testing.assert_close(ours, theirs)


def tables(result: dict[str, Any]) -> list[Table]:
    """The results as readable tables."""
    errors = Table(
        "Largest errors over ordinary and adversarial values, lossops | torch",
        (
            "loss", "backend", "dtype", "value, ulp", "torch", "gradient, ulp", "torch",
            "reduced, eps", "torch", "2nd deriv., eps", "wrong kind", "verdict",
        ),
        labels=3,
        note="ulp: units in the last place of the exact result, or of the terms where it is a sum "
        "that cancels; 0.5 is perfect rounding. eps: of the dtype, relative to the result. "
        "Wrong kind: NaN or infinite where the truth is not, or "
        "reversed. A pass is at most torch's own error plus one unit, or 8 where torch has no "
        "such loss; 4 eps for reductions.",
    )  # fmt: skip
    for row in result["numbers"]:
        ours, theirs = row["lossops"], row["torch"] or {}
        errors.add(
            row["loss"], _where(row), row["dtype"],
            number(ours["value"]), number(theirs.get("value")),
            number(ours["gradient"]), number(theirs.get("gradient")),
            number(row["reduced"]["lossops"]), number(row["reduced"]["torch"]),
            number(row["curvature"]),
            str(ours["wrong_kind"]), verdict(row["passed"]),
        )  # fmt: skip
    checks = Table(
        "Derivatives in float64, and whether the backend that was asked for ran",
        ("loss", "backend", "kernel ran", "gradcheck", "gradgradcheck", "as torch", "verdict"),
        labels=2,
        note="gradcheck: reverse, forward and batched derivatives by input, target and weight "
        "against finite differences; gradgradcheck: second derivatives.",
    )
    for row in result["checks"]:
        marks = (row[name] for name in ("ran", "gradcheck", "gradgradcheck", "as_torch"))
        cells = (NOTHING if mark is None else verdict(not mark, "yes", "no") for mark in marks)
        checks.add(row["loss"], _where(row), *cells, verdict(row["passed"]))
    return [errors, checks]


def failures(result: dict[str, Any]) -> list[str]:
    """Describes each failure in one line."""
    lines = [
        f"{row['loss']} {_where(row)} {row['dtype']}: {_describe(row)}"
        for row in result["numbers"]
        if not row["passed"]
    ]
    for row in result["checks"]:
        names = ("ran", "gradcheck", "gradgradcheck", "as_torch")
        lines += [f"{row['loss']} {_where(row)}: {n}: {row[n]}" for n in names if row[n]]
    return lines


def _describe(row: dict[str, Any]) -> str:
    ours, theirs = row["lossops"], row["torch"] or {}
    errors = (
        f"{what} off by {number(ours[what])} ulp (torch {number(theirs.get(what))}) "
        f"where x - y = {number(ours[f'{what}_at'], 3)}"
        for what in ("value", "gradient")
    )
    return (
        f"{', '.join(errors)}; NaN or infinity out of place {ours['wrong_kind']} times "
        f"(torch {theirs.get('wrong_kind', NOTHING)}); reductions off by "
        f"{number(row['reduced']['lossops'])} eps, second derivative by "
        f"{number(row['curvature'])} eps"
    )


def _where(row: dict[str, Any]) -> str:
    return row["backend"] if row["device"] == "cpu" else f"{row['backend']} {row['device']}"
