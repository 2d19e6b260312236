"""Valid calls of the public functions."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lossops import functional
from lossops.specs import elementwise as specs
from lossops.specs import softmax as softmax_specs
from lossops.specs import vectors as vectors_specs

from .call import FLOATS, Call, Draw, tensors_of

REDUCTIONS = ("none", "mean", "sum", "sample")


def public_call(draw: Draw) -> Call:
    make = draw.of(elementwise, elementwise, rows, rows, vectors, others)
    function, positional, named = make(draw)
    arguments = {str(i): value for i, value in enumerate(positional)} | named
    if draw.chance(0.6):
        for name, value in arguments.items():
            if isinstance(value, Tensor) and value.is_floating_point() and draw.chance(0.7):
                arguments[name] = value.detach().requires_grad_()
    name = getattr(function, "__name__", str(function))
    return Call(f"F.{name}", functools.partial(with_gradients, function), arguments, raw=False)


def with_gradients(function, *positional, **named) -> tuple:
    """The results of a function, and the gradients of their sums."""
    outputs = function(*positional, **named)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    moving = [t for t in tensors_of([*positional, *named.values()]) if t.requires_grad]
    sums = [output.sum() for output in outputs if output.requires_grad]
    if not sums:
        return outputs
    grads = torch.autograd.grad(sum(sums), moving, allow_unused=True, materialize_grads=True)
    return (*outputs, *grads)


def operands(draw: Draw, *tensors: Tensor) -> list[Tensor]:
    dtype = draw.of(*FLOATS)
    return [
        draw.operand(tensor.to(dtype) if tensor.is_floating_point() else tensor)
        for tensor in tensors
    ]


def elementwise(draw: Draw):
    row, shape = draw.of(*specs.SPECS), draw.shape()
    x, y = operands(draw, *row.inner(draw.normal(shape), draw.normal(shape)))
    named = dict(draw.of(*row.samples)) | {"reduction": draw.of(*REDUCTIONS)}
    if draw.chance(0.3):
        named["weight"] = draw.operand(draw.uniform(shape, 0.25, 2.0).to(x.dtype))
    return row.function, [x, y], named


def rows(draw: Draw):
    row = draw.of(*softmax_specs.ROW_SPECS)
    sample = draw.of(*row.samples)
    shape = (draw.size(), draw.of(draw.size(), draw.size(300)), *draw.of((), (), (2,), (2, 3)))
    dtype = draw.of(*FLOATS)
    x = sample.inputs(shape, dtype, draw.generator)
    y = sample.targets(shape, dtype, draw.generator)
    named = sample.options(shape[1], dtype) | row.forms(sample)
    if row.name == "log_prob_of":
        return row.function, [draw.operand(x), draw.operand(y)], named | {"dim": 1}
    return (
        row.function,
        [draw.operand(x), draw.operand(y)],
        named
        | {
            "reduction": draw.of(*REDUCTIONS),
        },
    )


def vectors(draw: Draw):
    row = draw.of(*vectors_specs.VECTOR_SPECS)
    named = dict(draw.of(*row.samples)) | {"reduction": draw.of("none", "mean", "sum")}
    probs = named.get("input_form") == "probs"
    tensors, given = row.tensors(
        (draw.size(), draw.size(200)), draw.of(*FLOATS), draw.random.getrandbits(30), probs=probs
    )
    return row.function, [draw.operand(t) for t in (*tensors, *given)], named


def others(draw: Draw):
    name = draw.of(
        "linear_cross_entropy", "multilabel_soft_margin_loss", "gaussian_nll_loss",
        "margin_ranking_loss", "triplet_margin_with_distance_loss", "cross_entropy",
    )  # fmt: skip
    function = getattr(functional, name)
    named = {"reduction": draw.of("none", "mean", "sum")}
    n, c = draw.size(), draw.size(60)
    if name == "linear_cross_entropy":
        x, w, b = operands(draw, draw.normal((n, 7)), draw.normal((c, 7)), draw.normal((c,)))
        return function, [x, w, draw.integers(0, c, (n,)), b], named
    if name == "multilabel_soft_margin_loss":
        x, y = operands(draw, draw.normal((n, c)), draw.uniform((n, c)).round())
        return function, [x, y], named
    if name == "gaussian_nll_loss":
        x, y, v = operands(
            draw, *(draw.normal((n, c)) for _ in range(2)), draw.uniform((n, c)) + 0.1
        )
        return function, [x, y, v], named
    if name == "cross_entropy":
        named |= {
            "return_lse": draw.chance(0.5), "return_entropy": draw.chance(0.5),
            "return_accuracy": draw.chance(0.5), "z_loss": draw.of(0.0, 1e-3),
            "softcap": draw.of(None, 20.0), "temperature": draw.of(1.0, 0.5),
            "empty": draw.of("nan", "zero"), "normalizer": None,
        }  # fmt: skip
        if named["reduction"] == "mean" and draw.chance(0.4):
            named["normalizer"] = draw.operand(draw.uniform((1,), 1.0, 9.0).expand(1))
        x, y = operands(draw, draw.normal((n, c)), draw.integers(0, c, (n,)))
        return function, [x, y], named
    tensors = operands(draw, *(draw.normal((n, c)) for _ in range(3)))
    if name == "margin_ranking_loss":
        tensors[2] = draw.operand(draw.uniform((n, c)).round() * 2 - 1).to(tensors[0].dtype)
    return function, tensors, named
