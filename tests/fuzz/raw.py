"""Valid calls of the raw ops."""

from __future__ import annotations

import math

import torch

from lossops.softmax.reference import DIVERGENCES, LABEL_LOSSES, cross_entropy
from lossops.specs import elementwise as specs
from lossops.vectors.reference import VECTOR_SIGNATURES

from .call import FLOATS, LABELS, Call, Draw

REDUCTIONS = ("none", "mean", "sum")


def raw_call(draw: Draw, namespace: str) -> Call:
    families = [elementwise] * 4 + [softmax] * 6 + [vectors] * 3
    if namespace == "lossops":
        families += [linear] * 2
    name, arguments = draw.of(*families)(draw)
    op = getattr(getattr(torch.ops, namespace), name).default
    return Call(f"torch.ops.{namespace}.{name}", op, in_order(name, arguments))


def in_order(name: str, arguments: dict) -> dict:
    """The arguments in the order of the op's schema."""
    schema = getattr(torch.ops.lossops, name).default._schema
    names = [argument.name for argument in schema.arguments]
    assert set(names) == set(arguments), name
    return {name: arguments[name] for name in names}


def arguments_of(name: str, draw: Draw) -> dict:
    """Random arguments of an op."""
    make = globals()[name.split("_")[0]]
    while True:
        found, arguments = make(draw)
        if found == name:
            return in_order(name, arguments)


def dtypes(draw: Draw) -> tuple[torch.dtype, torch.dtype]:
    first = draw.of(*FLOATS)
    return first, first if draw.chance(0.7) else draw.of(*FLOATS)


def reductions(draw: Draw, most_kept: int) -> tuple[str, int]:
    reduction = draw.of(*REDUCTIONS)
    if reduction == "none" or draw.chance(0.5):
        return reduction, 0
    return reduction, draw.random.randint(0, most_kept)


def mask(draw: Draw, *there: bool) -> list[bool]:
    return [yes and draw.chance(0.7) for yes in there]


def one_or(draw: Draw, shape):
    return () if draw.chance(0.3) else shape


def normalizer(draw: Draw, kept):
    number = draw.uniform(one_or(draw, kept), 0.5, 3.0).to(draw.of(*FLOATS))
    return draw.operand(number)


def elementwise(draw: Draw):
    name = draw.of(
        "elementwise_forward", "elementwise_forward", "elementwise_backward",
        "elementwise_backward_", "elementwise_rescale_", "elementwise_double_backward",
    )  # fmt: skip
    shape, (x_dtype, y_dtype) = draw.shape(), dtypes(draw)
    if name == "elementwise_rescale_":
        grads = [
            draw.laid_out(draw.normal(draw.shape()).to(draw.of(*FLOATS)))
            for _ in range(draw.of(0, 1, 1, 2, 3))
        ]
        factor = torch.tensor(draw.of(1.0, 0.5, -3.0)).to(draw.of(*FLOATS))
        return name, {"grads": grads, "grad_output": factor}
    row = draw.of(*specs.SPECS)
    params = list(row.params(draw.of(*row.samples)))
    x, y = row.inner(draw.normal(shape), draw.normal(shape))
    operands = [x.to(x_dtype), y.to(y_dtype)]
    operands.append(draw.normal(shape).to(draw.of(x_dtype, *FLOATS)) if draw.chance(0.4) else None)
    reduction, keep_dims = reductions(draw, len(shape))
    kept = shape[:keep_dims] if reduction != "none" else ()
    of_loss = shape if reduction == "none" else kept
    operands = [None if t is None else draw.operand(t) for t in operands]
    arguments = {
        **dict(zip(("input", "target", "weight"), operands, strict=True)),
        "normalizer": normalizer(draw, kept) if reduction != "none" and draw.chance(0.2) else None,
        "loss": row.kernel, "params": params, "reduction": reduction, "keep_dims": keep_dims,
    }  # fmt: skip
    there = [True, True, operands[2] is not None]
    wanted = mask(draw, *there)
    a_number = reduction != "none" and keep_dims == 0
    grad_output = draw.normal(of_loss if reduction == "none" else one_or(draw, of_loss))
    grad_output = draw.operand(grad_output.to(draw.of(*FLOATS)))
    out_dtype = torch.promote_types(x_dtype, y_dtype) if draw.chance(0.8) else draw.of(*FLOATS)
    if name == "elementwise_forward":
        wanted = wanted if a_number else [False] * 3
        return name, arguments | {"out_dtype": out_dtype, "output_mask": wanted}
    if name == "elementwise_double_backward":
        tangents = [
            None if t is None or draw.chance(0.2) else draw.operand(draw.normal(shape).to(t.dtype))
            for t in operands
        ]
        names = ("tangent_input", "tangent_target", "tangent_weight")
        return name, arguments | dict(zip(names, tangents, strict=True)) | {
            "grad_output": grad_output, "out_dtype": out_dtype, "output_mask": [True, *wanted],
        }  # fmt: skip
    if name == "elementwise_backward":
        return name, arguments | {"grad_output": grad_output, "output_mask": wanted}
    if reduction == "none" and math.prod(shape) != 1:
        arguments |= {"reduction": "sum", "keep_dims": 0, "normalizer": None}
        grad_output = torch.tensor(draw.of(1.0, -0.5))
    elif grad_output.numel() != 1:
        grad_output = torch.tensor(draw.of(1.0, -0.5))
    grads = gradients(draw, operands, wanted)
    return name, arguments | {"grads": grads, "grad_output": grad_output, "output_mask": wanted}


def gradients(draw: Draw, operands, wanted):
    """Tensors to be overwritten."""
    return [
        draw.laid_out(draw.normal(tensor.shape).to(tensor.dtype))
        for tensor, yes in zip(operands, wanted, strict=True)
        if yes
    ]


def in_form(numbers, form: str, dim: int):
    if form == "logits" or numbers.shape[dim] == 0:
        return numbers
    return (numbers.softmax if form == "probs" else numbers.log_softmax)(dim)


def labels(draw: Draw, shape, classes: int, ignore_index: int):
    """Class indices, of which some or all are ignored."""
    target = draw.integers(0, max(classes, 1), shape)
    if classes == 0 or draw.chance(0.4):
        skipped = draw.uniform(shape) < (1.0 if classes == 0 else 0.3)
        target = torch.where(skipped, ignore_index, target)
    fits = classes <= 256 and ignore_index >= 0
    return target.to(draw.of(*LABELS) if fits else draw.of(*LABELS[:2]))


def softmax(draw: Draw):
    name = draw.of(
        "softmax_forward", "softmax_forward", "softmax_forward_", "softmax_backward",
        "softmax_backward_",
    )  # fmt: skip
    rows = draw.shape()
    dim = draw.of(len(rows), draw.random.randint(0, len(rows)))
    classes = 0 if draw.chance(0.03) else draw.of(draw.size(40), draw.random.randint(1, 300))
    shape = (*rows[:dim], classes, *rows[dim:])
    of_labels = draw.chance(0.6)
    loss = draw.of(*LABEL_LOSSES) if of_labels else draw.of(*DIVERGENCES)
    form = draw.of("logits", "logits", "log_probs", *(() if of_labels else ("probs",)))
    target_form = "labels"
    if not of_labels and draw.chance(0.8):
        target_form = draw.of("logits", "log_probs", "probs")
    elif loss == "cross_entropy" and draw.chance(0.3):
        target_form = "probs"
    of_indices = target_form == "labels"
    x_dtype, y_dtype = dtypes(draw)
    input = in_form(2 * draw.normal(shape), form, dim).to(x_dtype)
    ignore_index = draw.of(-100, -100, 0, 255)
    if of_indices:
        target = labels(draw, rows, classes, ignore_index)
    else:
        target = in_form(2 * draw.normal(shape), target_form, dim).to(y_dtype)
    smooth = loss == "cross_entropy" and draw.chance(0.2)
    own = LABEL_LOSSES[loss] is not cross_entropy if of_labels else False
    of_logits = of_labels and form == "logits"
    params = [
        draw.of(1.0, 1.0, 0.5, 2.0), draw.of(0.0, 0.0, 5.0) if of_logits else 0.0,
        0.1 if smooth else 0.0, draw.of(0.0, 0.0, 1e-2) if of_logits else 0.0,
        draw.of(0.0, 1.0, 2.0) if own else 0.0, 0.0,
    ]  # fmt: skip
    if form != "logits" and target_form != "logits":
        params[0] = 1.0
    class_weight = None
    if of_labels and draw.chance(0.3):
        class_weight = draw.operand(draw.uniform((classes,), 0.25, 1.25).to(draw.of(*FLOATS)))
    reduction, keep_dims = reductions(draw, dim)
    kept = rows[:keep_dims] if reduction != "none" else ()
    arguments = {
        "input": draw.laid_out(input) if name.endswith("d_") else draw.operand(input),
        "target": draw.operand(target), "class_weight": class_weight,
        "normalizer": normalizer(draw, kept) if reduction != "none" and draw.chance(0.2) else None,
        "loss": loss, "dim": dim, "form": form, "target_form": target_form, "params": params,
        "ignore_index": ignore_index, "one_if_none": draw.chance(0.2), "reduction": reduction,
        "keep_dims": keep_dims,
    }  # fmt: skip
    a_number = reduction != "none" and keep_dims == 0
    forward = {"out_dtype": draw.of(x_dtype, x_dtype, *FLOATS)}
    if name == "softmax_forward":
        wanted = mask(
            draw,
            of_logits,
            of_logits,
            of_logits and of_indices,
            a_number,
            a_number and not of_indices,
        )
        return name, arguments | forward | {"output_mask": wanted}
    if name == "softmax_forward_":
        if not a_number:
            arguments |= {"reduction": "mean", "keep_dims": 0, "normalizer": None}
        return name, arguments | forward | {
            "output_mask": mask(draw, of_logits, of_logits, of_logits and of_indices)
        }
    if reduction == "mean" and of_indices and arguments["normalizer"] is None:
        arguments["normalizer"] = normalizer(draw, kept)
    wanted = mask(draw, True, not of_indices)
    of_loss = rows if reduction == "none" else kept
    if name == "softmax_backward_":
        grads = gradients(draw, (input, target), wanted)
        grad_output = torch.tensor(draw.of(1.0, -0.5)).to(draw.of(*FLOATS))
        return name, arguments | {
            "grads": grads, "grad_output": grad_output, "output_mask": wanted,
        }  # fmt: skip

    def cotangent(shape):
        return draw.operand(draw.normal(one_or(draw, shape)).to(draw.of(*FLOATS)))

    return name, arguments | {
        "grad_output": cotangent(of_loss),
        "grad_lse": cotangent(rows) if of_logits and draw.chance(0.4) else None,
        "grad_entropy": cotangent(rows) if of_logits and draw.chance(0.4) else None,
        "output_mask": wanted,
    }


# Margins that differences of half-precision values do not hit, because the derivative jumps there.
VECTOR_PARAMS = {
    "triplet_margin": [0.937, 1.0, 1e-6],
    "triplet_margin_l1": [0.937, 0.0, 1e-6], "multi_margin": [0.937],
    "multi_margin_squared": [0.531], "tversky_of_logits": [0.3, 0.7, 1.0],
    "tversky": [0.5, 0.5, 1.0], "multilabel_margin": [],
}  # fmt: skip


def vectors(draw: Draw):
    loss = draw.of(*VECTOR_SIGNATURES)
    takes = VECTOR_SIGNATURES[loss]
    rows, length = draw.of(0, 1, draw.size(), draw.size(200)), draw.size(300)
    length += takes.label == "number"  # vectors of one element have no angle
    dtype = draw.of(*FLOATS)
    tensors = [draw.normal((rows, length)) for _ in range(takes.vectors)]
    if loss.startswith("tversky"):
        tensors[1] = draw.uniform((rows, length))
        tensors[0] = tensors[0] if loss.endswith("logits") else tensors[0].sigmoid()
    label = None
    if takes.label == "number":
        label = (2 * draw.integers(0, 2, one_or(draw, (rows,))) - 1).to(draw.of(*FLOATS))
    elif takes.label == "index":
        label = draw.integers(0, length, one_or(draw, (rows,)))
    elif takes.label == "list":
        label = draw.uniform((rows, length)).argsort(1)
        count = draw.integers(0, min(length, 10) + 1, (rows, 1))
        label = torch.where(torch.arange(length) < count, label, -1)
    if takes.label in ("index", "list"):
        small = length <= 256 and takes.label == "index"
        label = label.to(draw.of(*(LABELS if small else LABELS[:2])))
    reduction = draw.of(*REDUCTIONS)
    weight = draw.uniform(one_or(draw, (rows,)), 0.25, 2.0) if draw.chance(0.3) else None
    arguments = {
        "vectors": [draw.operand(t.to(dtype)) for t in tensors],
        "label": None if label is None else draw.operand(label),
        "row_weight": None if weight is None else draw.operand(weight.to(draw.of(*FLOATS))),
        "loss": loss, "params": VECTOR_PARAMS.get(loss, [0.21] * takes.params),
        "reduction": reduction,
    }  # fmt: skip
    wanted = mask(draw, *(i < takes.vectors for i in range(3)))
    if draw.chance(0.5):
        wanted = wanted if reduction != "none" else [False] * 3
        return "vectors_forward", arguments | {
            "out_dtype": draw.of(dtype, dtype, *FLOATS), "output_mask": wanted,
        }  # fmt: skip
    shape = one_or(draw, (rows,)) if reduction == "none" else ()
    grad_output = draw.operand(draw.normal(shape).to(draw.of(*FLOATS)))
    return "vectors_backward", arguments | {"grad_output": grad_output, "output_mask": wanted}


def linear(draw: Draw):
    """The raw ops of a linear layer with its cross entropy."""
    name = draw.of("sum", "losses", "losses_backward")
    rows, features = draw.of(0, 1, draw.size(), draw.size(300)), draw.of(0, draw.size(9), 17)
    # Half precision is multiplied in pieces of 128 classes.
    classes = 0 if draw.chance(0.03) else draw.of(draw.size(), draw.size(300), 129, 260)
    layer = draw.of(*FLOATS)
    # Under autocast, the products have another dtype than the layer.
    dtype = layer if draw.chance(0.7) else draw.of(*FLOATS)
    shapes = [(rows, features), (classes, features), (classes,)]
    tensors = [draw.operand(draw.normal(shape).to(layer)) for shape in shapes]
    bias = tensors[2] if draw.chance(0.5) else None
    soft, ignore_index = draw.chance(0.3), draw.of(-100, -100, 0, 255)
    if soft:
        target = in_form(2 * draw.normal((rows, classes)), "probs", 1).to(draw.of(*FLOATS))
    else:
        target = labels(draw, (rows,), classes, ignore_index)
    weight = None
    if draw.chance(0.3):
        weight = draw.operand(draw.uniform((classes,), 0.25, 2.0).to(draw.of(*FLOATS)))
    arguments = {
        "input": tensors[0], "linear_weight": tensors[1], "linear_bias": bias,
        "target": draw.operand(target), "class_weight": weight, "backend": "native",
        "target_form": "probs" if soft else "labels",
        "params": [
            draw.of(1.0, 0.5, 2.0), draw.of(0.0, 5.0), draw.of(0.0, 0.1), draw.of(0.0, 1e-2),
            0.0, 0.0,
        ],
        "ignore_index": ignore_index, "dtype": dtype, "out_dtype": draw.of(dtype, *FLOATS),
        "rows": draw.of(0, 0, 1, 7, 100, rows, rows + 1),
    }  # fmt: skip
    wanted = mask(draw, True, True, bias is not None)
    if name == "sum":
        arguments |= {"output_mask": wanted}
    elif name == "losses_backward":
        grad_output = draw.operand(draw.normal((rows,)).to(draw.of(*FLOATS)))
        arguments |= {"grad_output": grad_output, "output_mask": wanted}
    return f"linear_cross_entropy_{name}", arguments
