"""Verifies each loss over rows of class scores on each backend and on each device of this
machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import lossops
from lossops.core import backends
from lossops.specs.softmax import ROW_SPECS, RowSpec, Sample
from lossops.verify import softmax_edges
from lossops.verify.accuracy import DTYPES
from lossops.verify.elementwise import _NAMESPACES, OpRecorder, _where, devices
from lossops.verify.measure import one_thread
from lossops.verify.softmax_accuracy import HUGE, SHAPES, RowErrors, Trial, trials
from lossops.verify.tables import Table, number, verdict

_REDUCTION_ALLOWED = 4.0  # eps, for any number of rows
_CHECKS = ("ran", "gradcheck", "gradgradcheck", "as_torch", "edges")


def targets(wanted: Iterable[RowSpec] = ROW_SPECS) -> list[tuple[RowSpec, str]]:
    """The combinations (loss, device) to verify."""
    return [(spec, device) for spec in wanted for device in devices()]


def verify(
    wanted: Iterable[RowSpec] = ROW_SPECS,
    advance: Callable[[str], None] = lambda what: None,
    full: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Verifies losses. Returns rows of ``numbers`` and ``checks``, and whether all ``passed``."""
    numbers, checks = [], []
    for spec, device in targets(wanted):
        with one_thread():
            for dtype in DTYPES:
                numbers += _numbers(spec, device, dtype, full, seed)
            for backend in backends.backends_for(device):
                with lossops.backend(backend):
                    where = {"loss": spec.name, "device": device, "backend": backend}
                    checks.append(where | _checks(spec, device, backend, seed))
        advance(f"{spec.name} {device}")
    passed = all(row["passed"] for row in (*numbers, *checks))
    return {"passed": passed, "seed": seed, "numbers": numbers, "checks": checks}


def _numbers(
    spec: RowSpec, device: str, dtype: torch.dtype, full: bool, seed: int
) -> list[dict[str, Any]]:
    """Returns one row per backend: its largest errors, the failed trials, and whether it passed."""
    here = backends.backends_for(device)
    found = {name: RowErrors() for name in (*here, "torch")}
    failed: dict[str, list[str]] = {name: [] for name in here}
    shapes = tuple((20 * rows, classes) for rows, classes in SHAPES) if full else SHAPES
    for trial in trials(spec, dtype, seed, device, shapes):
        theirs = _judged(trial, spec.torch_call(trial.sample))
        if isinstance(theirs, RowErrors):
            found["torch"].add(theirs)
        for backend in here:
            if backend == "triton" and device == "cpu" and trial.shape[1] == HUGE:
                continue  # Triton's interpreter is slow
            with lossops.backend(backend):
                ours = _judged(trial, spec.call(trial.sample))
            if isinstance(ours, RowErrors):
                found[backend].add(ours)
            # The reference is plain torch too, where one formula is as good as another.
            if wrong := _beyond(ours, theirs, factor=2 if backend == "reference" else 1):
                failed[backend].append(f"{trial}: {wrong}")
    return [
        {
            "loss": spec.name,
            "device": device,
            "backend": backend,
            "dtype": str(dtype).removeprefix("torch."),
            "lossops": asdict(found[backend]),
            "torch": asdict(found["torch"]),
            "torchs_own": spec.torchs_own,
            "failed": failed[backend],
            "passed": not failed[backend],
        }
        for backend in here
    ]


def _judged(trial: Trial, loss: Callable[..., Tensor]) -> RowErrors | str:
    try:
        return trial.judge(loss)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _beyond(ours: RowErrors | str, theirs: RowErrors | str, factor: float) -> str:
    """Describes the errors that exceed ``factor`` times torch's error plus one unit."""
    if isinstance(ours, str):
        return ours
    if isinstance(theirs, str):  # torch cannot compute it
        theirs = RowErrors()
    found = [
        f"{name} off by {getattr(ours, name):.3g} units, torch by {getattr(theirs, name):.3g}"
        for name in ("value", "gradient")
        if getattr(ours, name) > factor * getattr(theirs, name) + 1
    ]
    if ours.reduced > _REDUCTION_ALLOWED:
        found.append(f"reduced off by {ours.reduced:.3g} eps")
    if ours.wrong_kind:
        found.append(f"NaN out of place {ours.wrong_kind} times")
    return ", ".join(found)


def _checks(spec: RowSpec, device: str, backend: str, seed: int) -> dict[str, Any]:
    results = {
        "ran": _ran_there(spec, device, backend),
        "gradcheck": _all(_gradcheck, spec, device, seed),
        "gradgradcheck": _all(_gradgradcheck, spec, device, seed),
        "as_torch": _all(_as_torch, spec, device, seed),
        "edges": "; ".join(softmax_edges.problems(spec, device)),
    }
    return results | {"passed": not any(results.values())}


def _all(check, spec: RowSpec, device: str, seed: int) -> str:
    """Runs a check with each sample. Returns the first error, or an empty string."""
    for sample in spec.samples:
        try:
            check(spec, sample, *sample.tensors((3, 4), torch.float64, seed, device))
        except Exception as error:
            return f"{sample}: {' '.join(str(error).split())}"
    return ""


def _ran_there(spec: RowSpec, device: str, backend: str) -> str:
    """Runs a training step in float32 and checks which kernels ran."""
    wanted = _NAMESPACES.get(backend)
    for sample in spec.samples:
        x, y, options = sample.tensors((3, 5), torch.float32, 0, device)
        with OpRecorder() as recorder:
            spec.call(sample)(x.requires_grad_(), y, **options).backward()
        ours = {name for name in recorder.ops if name.startswith(tuple(_NAMESPACES.values()))}
        right = all(
            name.startswith(f"{wanted}::softmax_") for name in ours if "rescale" not in name
        )
        if not right or bool(ours) != bool(wanted):
            return f"{sample}: ran {', '.join(sorted(ours)) or 'none of the kernels'}"
    return ""


def _moving(spec: RowSpec, sample: Sample, x: Tensor, y: Tensor, options) -> tuple[Any, list]:
    """Returns the loss as a function of all its differentiable tensor arguments, and those
    tensors."""
    names = [name for name, value in options.items() if isinstance(value, Tensor)]
    tensors = [x, *([y] if sample.soft else []), *(options[name] for name in names)]

    def loss(x, *others, reduction="none"):
        target = others[0] if sample.soft else y
        moved = dict(zip(names, others[sample.soft :], strict=True))
        return spec.call(sample)(x, target, reduction, **options | moved)

    return loss, [tensor.detach().requires_grad_() for tensor in tensors]


def _gradcheck(spec: RowSpec, sample: Sample, x: Tensor, y: Tensor, options) -> None:
    loss, tensors = _moving(spec, sample, x, y, options)
    for reduction in ("none", "mean"):
        gradcheck(
            lambda *moving, r=reduction: loss(*moving, reduction=r),
            tensors,
            check_forward_ad=reduction == "none",
            check_batched_grad=reduction == "none",
        )


def _gradgradcheck(spec: RowSpec, sample: Sample, x: Tensor, y: Tensor, options) -> None:
    gradgradcheck(*_moving(spec, sample, x, y, options))


def _as_torch(spec: RowSpec, sample: Sample, x: Tensor, y: Tensor, options) -> None:
    for reduction in ("none", "mean", "sum"):
        ours = spec.call(sample)(x, y, reduction, **options)
        theirs = spec.torch_call(sample)(x, y, reduction, **options)
        torch.testing.assert_close(ours, theirs)


def tables(result: dict[str, Any]) -> list[Table]:
    """The results as readable tables."""
    errors = Table(
        "Losses over rows: largest errors with 10, 1,000 and 128,256 classes, lossops | torch",
        (
            "loss", "backend", "dtype", "value, units", "torch", "gradient, units", "torch",
            "reduced, eps", "wrong kind", "verdict",
        ),
        labels=3,
        note="A unit is what cannot be avoided: rounding the result, and to first order what "
        "rounding each shifted logit, exponential and logarithm moves it by. In torch: its own "
        "function, or what its users write. A pass is, for each way to call the loss and each "
        "number of classes, at most torch's own error plus one unit (for the reference, which is "
        "plain torch, twice that error plus one); 4 eps for reductions.",
    )  # fmt: skip
    for row in result["numbers"]:
        ours, theirs = row["lossops"], row["torch"]
        errors.add(
            row["loss"], _where(row), row["dtype"],
            number(ours["value"]), number(theirs["value"]),
            number(ours["gradient"]), number(theirs["gradient"]), number(ours["reduced"]),
            str(ours["wrong_kind"]), verdict(row["passed"]),
        )  # fmt: skip
    checks = Table(
        "Losses over rows: derivatives in float64, edges, and whether the backend asked for ran",
        ("loss", "backend", "kernel ran", "gradcheck", "gradgradcheck", "as torch", "edges",
         "verdict"),
        labels=2,
        note=f"By input, soft labels and class weights. Edges: {', '.join(softmax_edges.EDGES)}.",
    )  # fmt: skip
    for row in result["checks"]:
        cells = (verdict(not row[name], "yes", "no") for name in _CHECKS)
        checks.add(row["loss"], _where(row), *cells, verdict(row["passed"]))
    return [errors, checks]


def failures(result: dict[str, Any], checks: Iterable[str] = _CHECKS) -> list[str]:
    """Describes each failure in one line."""
    lines = [
        f"{row['loss']} {_where(row)} {row['dtype']}: {wrong}"
        for row in result["numbers"]
        for wrong in row["failed"][:3]
    ]
    for row in result["checks"]:
        lines += [f"{row['loss']} {_where(row)} {n}: {row[n]}" for n in checks if row[n]]
    return lines
