"""Verifies each loss on each backend and on each device of this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import lossops
from lossops.core import backends, library
from lossops.specs import LOSSES
from lossops.verify.accuracy import DTYPES, Case, Errors, beyond, judge
from lossops.verify.families import FAMILIES, Family, Trial
from lossops.verify.machine import devices
from lossops.verify.measure import one_thread
from lossops.verify.tables import NOTHING, Table, number, verdict

NAMESPACES = {"native": library.NATIVE, "triton": library.TRITON}
MEASURED = ("value", "gradient", "reduced")
CURVATURE_ALLOWED = 16.0  # eps; rounding the difference alone changes log_cosh's by several eps


def pieces(wanted: Iterable = LOSSES) -> int:
    """How many times ``verify`` calls ``advance``."""
    return len(list(wanted)) * len(devices())


def verify(
    wanted: Iterable = LOSSES,
    advance: Callable[[str], None] = lambda what: None,
    full: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Verifies losses, given as rows of :mod:`lossops.specs` of any family. Returns rows of
    ``numbers`` and ``checks``, and whether all ``passed``."""
    numbers, checks = [], []
    for spec in wanted:
        family = FAMILIES[type(spec)]
        for device in devices():
            threads = one_thread() if family.one_thread else contextlib.nullcontext()
            with warnings.catch_warnings(), threads:
                warnings.filterwarnings("ignore", "reduction: 'mean' divides")  # torch's kl_div
                for dtype in DTYPES:
                    numbers += _numbers(family, spec, device, dtype, full, seed)
                checks += _checks(family, spec, device, seed)
            advance(f"{spec.name} {device}")
    passed = all(row["passed"] for row in (*numbers, *checks))
    return {"passed": passed, "seed": seed, "numbers": numbers, "checks": checks}


def _place(family: Family, spec, device: str, backend: str) -> dict[str, Any]:
    return {"family": family.name, "loss": spec.name, "device": device, "backend": backend}


def _on(backend: str):
    return lossops.backend(backend) if backend else contextlib.nullcontext()


# ---------------------------------------------------------------------------------------------
# Numbers: the errors of values, gradients, reductions and second derivatives.


def _numbers(
    family: Family, spec, device: str, dtype: torch.dtype, full: bool, seed: int
) -> Iterator[dict[str, Any]]:
    """Yields one row per backend: its largest errors and torch's, and what exceeds the limits."""
    rows: dict[str, dict[str, Any]] = {}
    for trial in family.trials(spec, dtype, device, seed, full):
        judged = _judged(trial, device)
        torchs = judged.pop("torch")
        for backend, ours in judged.items():
            row = rows.setdefault(backend, {"lossops": None, "torch": None, "failed": []})
            row["failed"] += [trial.words + text for text in _wrong(trial, backend, ours, torchs)]
            for name, errors in (("lossops", ours), ("torch", torchs)):
                if isinstance(errors, Errors):
                    row[name] = (row[name] or Errors()).add(errors)
    for backend, row in rows.items():
        curvature = None
        try:
            with _on(backend):
                curvature = _curvature_error(family, spec, device, dtype, seed)
            if not curvature <= CURVATURE_ALLOWED + family.slack(spec):
                row["failed"].append(f"second derivative off by {curvature:.3g} eps")
        except Exception as error:
            row["failed"].append(f"second derivative: {_words(error)}")
        yield {
            **_place(family, spec, device, backend),
            "dtype": str(dtype).removeprefix("torch."),
            **{name: row[name] and dataclasses.asdict(row[name]) for name in ("lossops", "torch")},
            "curvature": curvature,
            "failed": row["failed"],
            "passed": not row["failed"],
        }


def _judged(trial: Trial, device: str) -> dict[str, Errors | str]:
    """The errors of torch and of each backend that takes part, or what it raised."""
    found: dict[str, Errors | str] = {"torch": Errors()}
    for backend in backends.backends_for(device):
        if trial.interpreter in (None, backend == "triton" and device == "cpu"):
            found[backend] = Errors()
    for case, truth in trial.batches if len(found) > 1 else ():
        for name, errors in found.items():
            if isinstance(errors, str):
                continue
            try:
                if name == "torch":
                    errors.add(judge(case.theirs, case, truth))
                else:
                    with _on(name):
                        errors.add(judge(case.ours, case, truth))
            except Exception as error:
                found[name] = _words(error)
    return found


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _wrong(trial: Trial, backend: str, ours: Errors | str, torchs: Errors | str) -> list[str]:
    """Describes what exceeds the limits."""
    if isinstance(ours, str):
        return [ours]
    theirs = torchs if trial.torch_counts and isinstance(torchs, Errors) else None
    found = beyond(ours, theirs, trial.alone, trial.factor if backend == "reference" else 1.0)
    if ours.wrong_kind > (theirs.wrong_kind if theirs and trial.torch_decides else 0):
        found.append(f"NaN or infinity out of place {ours.wrong_kind} times")
    return found


def _curvature_error(family: Family, spec, device: str, dtype: torch.dtype, seed: int) -> float:
    """The largest error of a second derivative, in eps of the dtype. The truth is the reference in
    float64."""
    worst = 0.0
    for case in family.cases(spec, dtype, device, seed, family.large):
        found = _second_derivatives(case)
        with lossops.backend("reference"):
            exact = _second_derivatives(
                dataclasses.replace(case, tensors=[tensor.double() for tensor in case.tensors])
            )
        for ours, right in zip(found, exact, strict=True):
            error = (ours.double() - right).abs() / right.abs().clamp(min=1)
            error = error.nan_to_num(torch.inf).max().item() / torch.finfo(dtype).eps
            worst = max(worst, error)
    return worst


def _second_derivatives(case: Case) -> Sequence[Tensor]:
    """The derivatives of the slopes, which are added and subtracted in turn, because the slopes of
    a row of class scores add up to 0."""
    tensors, inputs = case.leaves()
    loss = case.ours(*tensors, reduction="none")
    slopes = torch.autograd.grad(loss, inputs, torch.ones_like(loss), create_graph=True)
    slopes = [slope for slope in slopes if slope.requires_grad]
    if not slopes:
        return [torch.zeros_like(tensor) for tensor in inputs]
    signs = [
        (1 - 2 * (torch.arange(slope.numel()) % 2)).view_as(slope).to(slope) for slope in slopes
    ]
    return torch.autograd.grad(slopes, inputs, signs, materialize_grads=True)


# ---------------------------------------------------------------------------------------------
# Checks: derivatives against finite differences, agreement with torch, and edges.


class OpRecorder(TorchDispatchMode):
    """Records which kernels of the library ran."""

    def __init__(self):
        super().__init__()
        self.ops: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name().startswith(tuple(f"{name}::" for name in NAMESPACES.values())):
            self.ops.add(function.name())
        return function(*args, **(kwargs or {}))


def _ran(case: Case, family: Family, backend: str) -> None:
    """A training step in float32 runs the kernels of the backend."""
    tensors, _ = case.leaves()
    with OpRecorder() as recorder:
        case.ours(*tensors, reduction="mean").backward()
    wanted = f"{NAMESPACES.get(backend)}::{family.ops}"
    right = all(op.startswith(wanted) for op in recorder.ops if "rescale" not in op)
    if not right or bool(recorder.ops) != (backend in NAMESPACES):
        raise AssertionError(f"ran {', '.join(sorted(recorder.ops)) or 'none of the kernels'}")


def _gradcheck(case: Case, family: Family, backend: str) -> None:
    for reduction in ("none", "mean"):
        gradcheck(
            functools.partial(case.ours, reduction=reduction),
            case.leaves(of_all=True)[0],
            check_forward_ad=reduction in case.other_modes,
            check_batched_grad=reduction in case.other_modes,
        )


def _gradgradcheck(case: Case, family: Family, backend: str) -> None:
    if case.twice:
        loss = functools.partial(case.ours, reduction="none")
        gradgradcheck(loss, case.leaves(of_all=True)[0])


def _as_torch(case: Case, family: Family, backend: str) -> None:
    """Value and gradient are as torch's, for each reduction."""
    tensors, inputs = case.leaves()
    for reduction in ("none", "mean", "sum") if case.theirs else ():
        results = []
        for loss in (case.ours, case.theirs):
            value = loss(*tensors, reduction=reduction)
            results.append([value, *torch.autograd.grad(value.sum(), inputs)])
        torch.testing.assert_close(*results, equal_nan=True)


CHECKS: dict[str, tuple[Callable[[Case, Family, str], None], tuple[torch.dtype, ...]]] = {
    "ran": (_ran, (torch.float32,)),
    "gradcheck": (_gradcheck, (torch.float64,)),
    "gradgradcheck": (_gradgradcheck, (torch.float64,)),
    "as_torch": (_as_torch, (torch.float64, torch.float32)),
}


def _checks(family: Family, spec, device: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yields one row per backend: what each check found, None if there is nothing to check."""
    for backend in backends.backends_for(device) if getattr(spec, "backends", True) else ("",):
        results: dict[str, str | None] = {}
        with _on(backend):
            for name, (check, dtypes) in CHECKS.items():
                results[name] = _problems(
                    (f"{case.words} in {dtype}", functools.partial(check, case, family, backend))
                    for dtype in dtypes
                    for case in family.cases(spec, dtype, device, seed, family.small)
                )
            results["edges"] = family.edges and _problems(
                (words, functools.partial(edge, spec, device))
                for words, edge in family.edges.items()
            )
        passed = not any(results.values())
        yield _place(family, spec, device, backend) | results | {"passed": passed}


def _problems(attempts: Iterable[tuple[str, Callable[[], None]]]) -> str:
    """Describes what the first attempts that fail raise."""
    found = []
    for words, attempt in attempts:
        try:
            attempt()
        except Exception as error:
            found.append(f"{words}: {' '.join(str(error).split()) or type(error).__name__}")
    return "; ".join(found[:3])


# ---------------------------------------------------------------------------------------------
# What is shown.


def tables(result: dict[str, Any]) -> list[Table]:
    """The results as readable tables."""
    drawn = []
    for family in FAMILIES.values():
        table = Table(
            f"{family.title}, lossops | torch",
            ("loss", "backend", "dtype", "value, units", "torch", "gradient, units", "torch",
             "reduced, eps", "torch", "2nd deriv., eps", "wrong kind", "verdict"),
            labels=3,
            note=f"{family.unit} Reductions and second derivatives are in eps of the dtype; a pass "
            "is at most 4, or 16.",
        )  # fmt: skip
        for row in (row for row in result["numbers"] if row["family"] == family.name):
            both = [row[who] or {} for who in ("lossops", "torch")]
            pairs = (errors.get(what) for what in MEASURED for errors in both)
            table.add(
                row["loss"], _where(row), row["dtype"], *map(number, pairs),
                number(row["curvature"]), str(both[0].get("wrong_kind", NOTHING)),
                verdict(row["passed"]),
            )  # fmt: skip
        drawn.append(table)
    checks = Table(
        "Derivatives in float64, edges, and whether the backend that was asked for ran",
        ("loss", "backend", "kernel ran", "gradcheck", "gradgradcheck", "as torch", "edges",
         "verdict"),
        labels=2,
        note="gradcheck: reverse, forward and batched derivatives by input, target and weight "
        "against finite differences; gradgradcheck: second derivatives. ctc_loss, which is "
        "torch's, cannot be differentiated twice.",
    )  # fmt: skip
    for row in result["checks"]:
        found = (row[name] for name in (*CHECKS, "edges"))
        cells = (NOTHING if text is None else verdict(not text, "yes", "no") for text in found)
        checks.add(row["loss"], _where(row), *cells, verdict(row["passed"]))
    return [table for table in (*drawn, checks) if table.rows]


def failures(result: dict[str, Any]) -> list[str]:
    """Describes each failure in one line."""
    lines = [
        f"{row['loss']} {_where(row)} {row['dtype']}: {wrong}"
        for row in result["numbers"]
        for wrong in row["failed"][:3]
    ]
    for row in result["checks"]:
        names = (name for name in (*CHECKS, "edges") if row[name])
        lines += [f"{row['loss']} {_where(row)} {name}: {row[name]}" for name in names]
    return lines


def _where(row: dict[str, Any]) -> str:
    where = f"{row['backend']} {row['device']}" if row["device"] != "cpu" else row["backend"]
    return where.strip() or "cpu"
