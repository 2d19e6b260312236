"""Verifies each loss over rows of vectors on each backend and on each device of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import lossops
from lossops.core import backends
from lossops.specs.vectors import VECTOR_SPECS, VectorSpec
from lossops.vectors.reference import multi_margin
from lossops.verify import softmax as softmax_verify
from lossops.verify.accuracy import DTYPES
from lossops.verify.elementwise import _NAMESPACES, OpRecorder, _where, devices
from lossops.verify.measure import one_thread
from lossops.verify.tables import Table, number, verdict

SHAPES = ((60, 10), (20, 1000), (3, 20_000))
# In float64 the exact values are torch's own, whose norm of 20,000 numbers is 5 to 20 units off.
_FLOAT64_ALLOWED = 64.0  # units
_CHECKS = ("ran", "gradcheck", "gradgradcheck", "as_torch")


def targets(wanted: Iterable[VectorSpec] = VECTOR_SPECS) -> list[tuple[VectorSpec, str]]:
    """The combinations (loss, device) to verify."""
    return [(spec, device) for spec in wanted for device in devices()]


def verify(
    wanted: Iterable[VectorSpec] = VECTOR_SPECS,
    advance: Callable[[str], None] = lambda what: None,
    full: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Verifies losses. Returns rows of ``numbers`` and ``checks``, and whether all ``passed``."""
    numbers, checks = [], []
    for spec, device in targets(wanted):
        for backend in backends.backends_for(device):
            with lossops.backend(backend), one_thread():
                where = {"loss": spec.name, "device": device, "backend": backend}
                # The reference is plain torch too, where one formula is as good as another.
                factor = 2 if backend == "reference" else 1
                numbers += [where | _numbers(spec, device, d, full, seed, factor) for d in DTYPES]
                checks.append(where | _checks(spec, device, backend, seed))
        advance(f"{spec.name} {device}")
    passed = all(row["passed"] for row in (*numbers, *checks))
    return {"passed": passed, "seed": seed, "numbers": numbers, "checks": checks}


def _numbers(
    spec: VectorSpec, device: str, dtype: torch.dtype, full: bool, seed: int, factor: int
) -> dict:
    """Returns a row with the largest errors of lossops and of torch."""
    row = {"dtype": str(dtype).removeprefix("torch."), "lossops": [0.0, 0.0], "torch": [0.0, 0.0]}
    failed = []
    for options in spec.samples:
        for rows, length in SHAPES:
            shape = (20 * rows if full else rows, length)
            probs = options.get("input_form") == "probs"
            tensors = spec.tensors(shape, dtype, seed, device, probs)
            truth = _truth(spec, tensors, options)
            ours = _errors(spec.function, tensors, options, truth)
            theirs = _errors(spec.torch_function, tensors, options, truth)
            for name, errors in (("lossops", ours), ("torch", theirs)):
                row[name] = [max(*pair) for pair in zip(row[name], errors, strict=True)]
            for what, our, their in zip(("value", "gradient"), ours, theirs, strict=True):
                # In float64 the exact values are torch's own and have its rounding errors.
                most = _FLOAT64_ALLOWED if dtype == torch.float64 else factor * their + 1
                if not our <= most:
                    failed.append(f"{options} {shape}: {what} {our:.3g} units, torch {their:.3g}")
    return row | {"failed": failed, "passed": not failed}


def _step(loss, tensors, options) -> tuple[Tensor, list[Tensor]]:
    vectors, given = tensors
    vectors = [v.detach().requires_grad_() for v in vectors]
    value = loss(*vectors, *given, reduction="none", **options)
    return value.detach(), list(torch.autograd.grad(value.sum(), vectors))


def _truth(spec: VectorSpec, tensors, options) -> tuple:
    """Returns the values and gradients in float64, and the sizes that their errors are relative
    to."""
    vectors, given = ([t.double() if t.is_floating_point() else t for t in ts] for ts in tensors)
    value, grads = _step(_exact(spec), (vectors, given), options)
    size = value.abs()
    if spec.name == "triplet_margin_loss":  # a difference of norms
        size = sum((vectors[0] - v).norm(options.get("p", 2.0), 1) for v in vectors[1:]) + 1
    elif spec.name in ("cosine_embedding_loss", "multi_margin_loss", "multilabel_margin_loss"):
        size = size + 1
    most = [grad.abs().amax(1, keepdim=True) for grad in grads]
    if spec.name == "cosine_embedding_loss":  # a difference of two vectors
        most = [(v.abs().amax(1) / v.square().sum(1)).unsqueeze(1) for v in vectors]
        most = [m * (g != 0).any(1, keepdim=True) for m, g in zip(most, grads, strict=True)]
    return value, grads, size, most


def _exact(spec: VectorSpec):
    """Torch's function, except for losses whose gradient sums one number per class: for a row of
    20,000, torch's gradient is 460 units off."""
    if spec.name == "multilabel_margin_loss":
        return _multilabel_margin
    if spec.name != "multi_margin_loss":
        return spec.torch_function
    return lambda x, y, p=1, margin=1.0, reduction="none": multi_margin((x,), y, margin, p == 2)


def _multilabel_margin(x: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """The loss of each row (``reduction`` is always "none"), summed over all pairs explicitly."""
    given = (labels >= 0).cumprod(1)
    most = max(1, int(given.sum(1).max()))
    listed, index = given[:, :most, None] > 0, labels[:, :most].clamp_min(0)
    is_label = torch.zeros_like(x).scatter_add(1, index, given[:, :most].to(x.dtype)) > 0
    hinges = torch.relu(1 - x.gather(1, index)[:, :, None] + x[:, None, :])
    return torch.where(listed & ~is_label[:, None, :], hinges, 0).sum((1, 2)) / x.shape[1]


def _errors(loss, tensors, options, truth) -> tuple[float, float]:
    """Returns the largest errors of the value and of the gradient, in ulp of the sizes in
    ``truth``: of the terms of a value, and of the largest gradient of a row. Infinite if torch does
    not support the dtype."""
    wanted, wanted_grads, size, largest = truth
    epsilon = torch.finfo(tensors[0][0].dtype).eps
    try:
        value, grads = _step(loss, tensors, options)
    except (RuntimeError, NotImplementedError):
        return torch.inf, torch.inf
    by_value = ((value.double() - wanted).abs() / (epsilon * size)).max()
    by_gradient = 0.0
    for grad, exact, most in zip(grads, wanted_grads, largest, strict=True):
        error = (grad.double() - exact).abs() / (epsilon * torch.where(most == 0, 1, most))
        by_gradient = max(by_gradient, float(error.nan_to_num(torch.inf).max()))
    return float(by_value.nan_to_num(torch.inf)), by_gradient


def _checks(spec: VectorSpec, device: str, backend: str, seed: int) -> dict[str, Any]:
    results = dict.fromkeys(_CHECKS, "")
    for options in spec.samples:
        probs = options.get("input_form") == "probs"
        vectors, given = spec.tensors((3, 4), torch.float64, seed, device, probs)
        for name, check in (
            ("ran", _ran_there),
            ("gradcheck", _gradcheck),
            ("gradgradcheck", _gradgradcheck),
            ("as_torch", _as_torch),
        ):
            try:
                check(spec, backend, vectors, given, options)
            except Exception as error:
                results[name] = results[name] or f"{options}: {' '.join(str(error).split())}"
    return results | {"passed": not any(results.values())}


def _ran_there(spec, backend, vectors, given, options) -> None:
    """Runs a training step in float32 and raises unless the kernels of the backend ran."""
    wanted = _NAMESPACES.get(backend)
    vectors = [v.float().requires_grad_() for v in vectors]
    given = [t.float() if t.is_floating_point() else t for t in given]
    with OpRecorder() as recorder:
        spec.function(*vectors, *given, **options).backward()
    ours = {name for name in recorder.ops if name.startswith(tuple(_NAMESPACES.values()))}
    right = all(name.startswith(f"{wanted}::vectors_") for name in ours if "rescale" not in name)
    if not right or bool(ours) != bool(wanted):
        raise RuntimeError(f"ran {', '.join(sorted(ours)) or 'none of the kernels'}")


def _gradcheck(spec, backend, vectors, given, options) -> None:
    moving = [v.detach().requires_grad_() for v in vectors]
    for reduction in ("none", "mean"):
        gradcheck(
            lambda *v, r=reduction: spec.function(*v, *given, reduction=r, **options),
            moving,
            check_forward_ad=True,
            check_batched_grad=reduction == "none",
        )


def _gradgradcheck(spec, backend, vectors, given, options) -> None:
    moving = [v.detach().requires_grad_() for v in vectors]
    gradgradcheck(lambda *v: spec.function(*v, *given, **options), moving)


def _as_torch(spec, backend, vectors, given, options) -> None:
    for reduction in ("none", "mean", "sum"):
        ours = spec.function(*vectors, *given, reduction=reduction, **options)
        theirs = spec.torch_function(*vectors, *given, reduction=reduction, **options)
        torch.testing.assert_close(ours, theirs)


def tables(result: dict[str, Any]) -> list[Table]:
    """The results as readable tables."""
    errors = Table(
        "Losses over vectors: largest errors, rows of 10, 1,000 and 20,000, lossops | torch",
        ("loss", "backend", "dtype", "value, ulp", "torch", "gradient, ulp", "torch", "verdict"),
        labels=3,
        note="Of a value in units of what it is made of: the norms of a triplet, 1 and the value "
        "for cosines and hinges. Of a gradient in units of the largest of its row, of a cosine's "
        "the largest of the terms. A pass is, for each way to call the loss and each length, at "
        "most torch's own error plus one unit (for the reference, which is plain torch, twice that "
        "error plus one); in float64, where torch is the truth, 64 units. Infinite where torch "
        "does not compute in a dtype.",
    )
    for row in result["numbers"]:
        ours, theirs = row["lossops"], row["torch"]
        errors.add(
            row["loss"], _where(row), row["dtype"],
            number(ours[0]), number(theirs[0]), number(ours[1]), number(theirs[1]),
            verdict(row["passed"]),
        )  # fmt: skip
    checks = Table(
        "Losses over vectors: derivatives in float64, and whether the backend asked for ran",
        ("loss", "backend", "kernel ran", "gradcheck", "gradgradcheck", "as torch", "verdict"),
        labels=2,
    )
    for row in result["checks"]:
        cells = (verdict(not row[name], "yes", "no") for name in _CHECKS)
        checks.add(row["loss"], _where(row), *cells, verdict(row["passed"]))
    return [errors, checks]


def failures(result: dict[str, Any]) -> list[str]:
    """Describes each failure in one line."""
    return softmax_verify.failures(result, _CHECKS)
