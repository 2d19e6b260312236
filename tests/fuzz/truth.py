"""The expected results of an accepted call of a raw op: the actual results, those of the formulas
in float64, and the sizes of the terms that were added up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lossops.elementwise import reference
from lossops.softmax import reference as softmax_reference
from lossops.vectors import reference as vectors_reference

FLOAT64 = torch.float64


class Result(NamedTuple):
    name: str
    got: Tensor | None
    expected: Tensor | None  # None: no result is expected
    scale: Tensor | float = 0.0  # of the terms that the result is a sum of


def results(name: str, before: dict, outputs, after: dict) -> Iterator[Result]:
    """Yields an op's results with the expected ones, given its arguments before the call, its
    outputs, and its arguments after it."""
    family, op = name.rsplit(".", 1)[1].split("_", 1)
    given = {key: wide(value) for key, value in before.items()}
    if op == "rescale_":
        for was, grad in zip(given["grads"], after["grads"], strict=True):
            yield Result("gradient", grad, was * given["grad_output"].reshape(()))
        return
    families = {
        "elementwise": elementwise, "softmax": softmax, "vectors": vectors, "linear": linear,
    }  # fmt: skip
    yield from families[family](op, given, outputs, after)


def wide(value):
    if isinstance(value, Tensor):
        value = value.detach()
        return value.double() if value.is_floating_point() else value.clone()
    if isinstance(value, list):
        return [wide(element) for element in value]
    return value


def leaf(tensor: Tensor | None) -> Tensor | None:
    moves = tensor is not None and tensor.is_floating_point()
    return tensor.clone().requires_grad_() if moves else tensor


def gradients(total: Tensor, grad: Tensor | None, leaves, mask) -> list[Tensor | None]:
    """The gradients of a loss for a cotangent, as selected by the mask."""
    if grad is not None:
        total = (total * grad).sum()
    if not any(mask):
        return [None] * len(mask)
    wanted = [leaf for leaf, yes in zip(leaves, mask, strict=True) if yes]
    found = iter(torch.autograd.grad(total.sum(), wanted, materialize_grads=True))
    return [next(found) if yes else None for yes in mask]


def overwritten(given: dict, expected: list, after: dict) -> Iterator[Result]:
    """In-place gradients. A cotangent of 1 leaves them unchanged."""
    asked = (gradient for gradient in expected if gradient is not None)
    for was, grad, gradient in zip(given["grads"], after["grads"], asked, strict=True):
        one = given["grad_output"].item() == 1
        yield Result("gradient", grad, was if one else gradient)


def named(names, got, expected) -> Iterator[Result]:
    for name, g, e in zip(names, got, expected, strict=True):
        yield Result(name, g, e)


def elementwise(op: str, given: dict, outputs, after: dict) -> Iterator[Result]:
    operands = [leaf(given[name]) for name in ("input", "target", "weight")]
    call = (given["loss"], given["params"])
    names, mask = ("input", "target", "weight"), given["output_mask"]

    def loss(x, y, w, reduction=given["reduction"], keep_dims=given["keep_dims"]):
        normalizer = given["normalizer"] if reduction != "none" else None
        return reference.elementwise(x, y, w, normalizer, *call, reduction, keep_dims, FLOAT64)

    value = loss(*operands)
    size = scale_of(loss(*operands, "none", 0).detach(), value, given)
    if op == "forward":
        yield Result("value", outputs[0], value, size)
        yield from named(names, outputs[1:], gradients(value, None, operands, mask))
    elif op == "backward":
        yield from named(names, outputs, gradients(value, given["grad_output"], operands, mask))
    elif op == "backward_":
        found = gradients(value, given["grad_output"], operands, mask)
        yield from overwritten(given, found, after)
    else:
        along = along_tangents(loss, operands, given)
        yield Result("derivative", outputs[0], along if mask[0] else None, float("inf"))
        found = gradients(along, given["grad_output"], operands, mask[1:])
        yield from named(names, outputs[1:], found)


def scale_of(terms: Tensor, value: Tensor, given: dict) -> Tensor:
    """The sum of the absolute terms of a reduced value."""
    if given["reduction"] == "none":
        return terms.abs()
    kept = value.dim()
    return reference.reduce(
        terms.abs(), given["reduction"], kept,
        None if given["normalizer"] is None else given["normalizer"].abs(),
    )  # fmt: skip


def along_tangents(loss, operands, given) -> Tensor:
    present = [t for t in operands if t is not None]
    tangents = [
        torch.zeros_like(t) if given[f"tangent_{name}"] is None else given[f"tangent_{name}"]
        for name, t in zip(("input", "target", "weight"), operands, strict=True)
        if t is not None
    ]

    def function(*values):
        return loss(*values, *[None] * (3 - len(values)))

    return torch.func.jvp(function, tuple(present), tuple(tangents))[1]


def softmax(op: str, given: dict, outputs, after: dict) -> Iterator[Result]:
    names, mask = ("input", "target"), given["output_mask"]
    leaves = [leaf(given[name]) for name in names]
    labels = given["target_form"] == "labels"
    call = (
        "loss", "dim", "form", "target_form", "params", "ignore_index", "one_if_none", "reduction",
        "keep_dims",
    )  # fmt: skip
    arguments = [given[name] for name in ("class_weight", "normalizer", *call)]
    if given["reduction"] == "none":
        arguments[1] = None
    rows = softmax_reference.softmax(*leaves, *arguments, FLOAT64)
    if op in ("forward", "forward_"):
        arguments[-2:] = ["none", 0]
        arguments[1] = None
        terms = softmax_reference.softmax(*leaves, *arguments, FLOAT64).loss.detach()
        counted = given["reduction"] == "mean" and given["normalizer"] is None and labels
        size = float("inf") if counted else scale_of(terms, rows.loss, given)
        yield Result("value", outputs[0], rows.loss, size)
        yield from named(
            ("lse", "entropy", "accuracy"), outputs[1:4],
            [n if yes else None for n, yes in zip(rows[1:], mask, strict=False)],
        )  # fmt: skip
        yield Result("denominator", outputs[4], denominator(given) if counted else None)
        if op == "forward":
            yield from named(names, outputs[5:], gradients(rows.loss, None, leaves, mask[3:]))
        else:
            (grad,) = gradients(rows.loss, None, leaves[:1], [True])
            yield Result("input", after["input"], grad)
        return
    total = 0.0
    for output, cotangent in zip(rows, ("grad_output", "grad_lse", "grad_entropy"), strict=False):
        if given.get(cotangent) is not None:
            total = total + (output * given[cotangent]).sum()
    found = gradients(total, None, leaves, mask)
    if op == "backward":
        yield from named(names, outputs, found)
    else:
        yield from overwritten(given, found, after)


def denominator(given: dict) -> Tensor:
    """The denominator of a mean over labels."""
    target, classes = given["target"].long(), given["input"].shape[given["dim"]]
    counts = (target != given["ignore_index"]) & (target >= 0) & (target < classes)
    units = counts.double()
    weight = given["class_weight"]
    if weight is not None and given["loss"] in softmax_reference.DIVIDES_BY_WEIGHT and classes:
        units = torch.where(counts, weight[torch.where(counts, target, 0)], 0.0)
    sums = reference.reduce(units, "sum", given["keep_dims"])
    return torch.where(sums == 0, 1.0, sums) if given["one_if_none"] else sums


def vectors(op: str, given: dict, outputs, after: dict) -> Iterator[Result]:
    leaves = [leaf(tensor) for tensor in given["vectors"]]
    formula = vectors_reference.FORMULAS[given["loss"]]
    label = given["label"]
    rows, length = leaves[0].shape
    if length == 0:
        return  # the formulas cannot index an empty row
    if label is not None and label.dim() == 0:
        label = label.expand(rows)
    terms = formula(leaves, label, *given["params"])
    if given["row_weight"] is not None:
        terms = terms * given["row_weight"]
    value = reference.reduce(terms, given["reduction"])
    size = scale_of(terms.detach(), value, given | {"normalizer": None})
    leaves, mask = [*leaves, None, None][:3], given["output_mask"]
    if op == "forward":
        yield Result("value", outputs[0], value, size)
        yield from named("xyz", outputs[1:], gradients(value, None, leaves, mask))
    else:
        yield from named("xyz", outputs, gradients(value, given["grad_output"], leaves, mask))


def linear(op: str, given: dict, outputs, after: dict) -> Iterator[Result]:
    layer = [leaf(given[name]) for name in ("input", "linear_weight", "linear_bias")]
    logits = torch.nn.functional.linear(*layer)
    rows = softmax_reference.softmax(
        logits, given["target"], given["class_weight"], None,
        "cross_entropy", 1, "logits", given["target_form"], given["params"],
        given["ignore_index"], False, "none", 0, FLOAT64,
    ).loss  # fmt: skip
    sizes = [None if tensor is None else tensor.detach().abs() for tensor in layer]
    scale = torch.nn.functional.linear(*sizes)  # of the terms of a logit
    scale = rows.detach().abs() + (scale.amax(1) if scale.shape[1] else 0.0)
    names, mask = ("input", "weight", "bias"), given.get("output_mask")
    if op.endswith("losses"):
        yield Result("losses", outputs, rows, scale)
        return
    if op.endswith("sum"):
        yield Result("sum", outputs[0], rows.sum(), scale.sum())
        outputs, cotangent = outputs[1:], torch.ones_like(rows)
    else:
        cotangent = given["grad_output"]
    total = (rows * cotangent).sum()
    (by_logits,) = torch.autograd.grad(total, logits, retain_graph=True, materialize_grads=True)
    by_logits, (x, weight, _) = by_logits.abs(), sizes
    scales = (by_logits @ weight, by_logits.T @ x, by_logits.sum(0))
    for result, scale in zip(
        named(names, outputs, gradients(total, None, layer, mask)), scales, strict=True
    ):
        yield result._replace(scale=scale)
