"""What each raw op refuses, and what it gives on tensors without data.

The contract of the ops stands in :mod:`lossops.library`. For every op there is a function of its
arguments that checks them, and returns a function that makes the results, whose contents a kernel
would compute. Kernels in Python are called behind these checks; those in C++ have their own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from lossops import library, reference
from lossops.contract import (
    KERNEL_DTYPES,
    LABEL_DTYPES,
    check_between,
    check_dtype,
    check_gradients,
    check_gradients_come,
    check_mask,
    check_memory,
    check_number_or,
    check_reduction,
    check_shape,
    check_single,
    check_tensors,
    require,
)
from lossops.library import VECTOR_SIGNATURES, accumulator, loss_shape, rows_shape
from lossops.softmax_reference import DIVERGENCES, LABEL_LOSSES

FORMS = ("logits", "log_probs", "probs")


# ---- The elementwise ops.


@functools.cache
def _num_params(loss: str) -> int | None:
    """Of an elementwise loss, besides input and target."""
    formula = reference.TERMS.get(loss) or reference.FORMULAS.get(loss)
    return None if formula is None else len(inspect.signature(formula).parameters) - 2


def _check_elementwise(
    input, target, weight, normalizer, loss, params, reduction, keep_dims
) -> tuple:
    """Returns the shape of the loss."""
    known = _num_params(loss)
    require(known is not None, lambda: f"unknown elementwise loss {loss!r}")
    require(
        len(params) == known,
        lambda: f"loss {loss!r} takes {known} parameters, got {len(params)}",
    )
    check_reduction(reduction)
    check_between("keep_dims", keep_dims, input.dim())
    check_tensors(input.device, input=input, target=target, weight=weight, normalizer=normalizer)
    for name, tensor in (("target", target), ("weight", weight)):
        if tensor is not None:
            check_shape(name, tensor, input.shape, "input")
    kept = input.shape[: keep_dims if reduction != "none" else 0]
    check_number_or("normalizer", normalizer, kept, "the loss")
    return loss_shape(input, reduction, keep_dims)


def _like(tensors, mask) -> tuple:
    pairs = zip(tensors, mask, strict=True)
    return tuple(torch.empty_like(tensor) if wanted else None for tensor, wanted in pairs)


def _check_grad_output(grad_output: Tensor, input: Tensor, shape: tuple, reduction: str) -> None:
    check_tensors(input.device, grad_output=grad_output)
    if reduction == "none":
        check_shape("grad_output", grad_output, shape, "input")
    else:
        check_number_or("grad_output", grad_output, shape, "the loss")


def _elementwise_forward(
    input, target, weight, normalizer, loss, params, reduction, keep_dims, out_dtype, output_mask
):
    shape = _check_elementwise(
        input, target, weight, normalizer, loss, params, reduction, keep_dims
    )
    check_dtype("out_dtype", out_dtype)
    check_mask(output_mask, (input, target, weight))
    check_gradients_come(output_mask, reduction, keep_dims)
    return lambda: (
        _empty_loss(input, shape, reduction, out_dtype),
        *_like((input, target, weight), output_mask),
    )


def _empty_loss(input: Tensor, shape: tuple, reduction: str, dtype: torch.dtype) -> Tensor:
    if reduction == "none":
        return torch.empty_like(input, dtype=dtype)
    return input.new_empty(shape, dtype=dtype)


def _elementwise_backward(
    grad_output, input, target, weight, normalizer, loss, params, reduction, keep_dims, output_mask
):
    shape = _check_elementwise(
        input, target, weight, normalizer, loss, params, reduction, keep_dims
    )
    _check_grad_output(grad_output, input, shape, reduction)
    check_mask(output_mask, (input, target, weight))
    return lambda: _like((input, target, weight), output_mask)


def _elementwise_backward_(
    grads, grad_output, input, target, weight, normalizer, loss, params, reduction, keep_dims,
    output_mask,
):  # fmt: skip
    shape = _check_elementwise(
        input, target, weight, normalizer, loss, params, reduction, keep_dims
    )
    check_single(grad_output)
    _check_grad_output(grad_output, input, shape, reduction)
    check_gradients(grads, output_mask, (input, target, weight))
    return lambda: None


def _elementwise_rescale_(grads, grad_output):
    check_single(grad_output)
    for grad in grads:
        check_tensors(grads[0].device, gradient=grad, grad_output=grad_output)
    check_tensors(grad_output.device, grad_output=grad_output)
    return lambda: None


def _elementwise_double_backward(
    grad_output, input, target, weight, normalizer, tangent_input, tangent_target, tangent_weight,
    loss, params, reduction, keep_dims, out_dtype, output_mask,
):  # fmt: skip
    shape = _check_elementwise(
        input, target, weight, normalizer, loss, params, reduction, keep_dims
    )
    tangents = {
        "tangent_input": tangent_input, "tangent_target": tangent_target,
        "tangent_weight": tangent_weight,
    }  # fmt: skip
    check_tensors(input.device, **tangents)
    for name, tensor in tangents.items():
        if tensor is not None:
            check_shape(name, tensor, input.shape, "input")
    require(
        tangent_weight is None or weight is not None,
        lambda: "tangent_weight is the tangent of a weight that there is not",
    )
    check_dtype("out_dtype", out_dtype)
    check_mask(output_mask, (input, input, target, weight))
    require(
        grad_output is not None or not any(output_mask[1:]),
        lambda: "elementwise_double_backward needs grad_output to give gradients",
    )
    if grad_output is not None:
        _check_grad_output(grad_output, input, shape, reduction)
    return lambda: (
        _empty_loss(input, shape, reduction, out_dtype) if output_mask[0] else None,
        *_like((input, target, weight), output_mask[1:]),
    )


# ---- The softmax ops.


def check_softmax(
    input, target, class_weight, normalizer, loss, dim, form, target_form, params, ignore_index,
    one_if_none, reduction, keep_dims,
) -> tuple:  # fmt: skip
    """Returns the shape of the loss."""
    require(
        0 <= dim < input.dim(),
        lambda: f"dim should be between 0 and {input.dim() - 1}, got {dim}",
    )
    check_reduction(reduction)
    check_between("keep_dims", keep_dims, dim)
    require(len(params) == 6, lambda: f"a softmax loss takes 6 parameters, got {len(params)}")
    of_labels = loss in LABEL_LOSSES
    require(of_labels or loss in DIVERGENCES, lambda: f"unknown softmax loss {loss!r}")
    labels = target_form == "labels"
    forms = FORMS[:2] if of_labels else FORMS
    require(form in forms, lambda: f"form of {loss!r} should be one of {forms}, got {form!r}")
    forms = ("labels", *(FORMS if not of_labels else FORMS[2:] if loss == "cross_entropy" else ()))
    require(
        target_form in forms,
        lambda: f"target_form of {loss!r} should be one of {forms}, got {target_form!r}",
    )
    check_tensors(input.device, input=input, class_weight=class_weight, normalizer=normalizer)
    check_tensors(input.device, LABEL_DTYPES if labels else KERNEL_DTYPES, target=target)
    rows = rows_shape(input, dim)
    check_shape("target", target, rows if labels else input.shape, "rows" if labels else "input")
    if class_weight is not None:
        check_shape("class_weight", class_weight, input.shape[dim : dim + 1], "the classes")
        require(of_labels, lambda: f"loss {loss!r} takes no class_weight")
    numbers = (0,) * 6 if isinstance(params, Tensor) else params  # as the op looks at them itself
    _, softcap, label_smoothing, z_loss, *_ = numbers
    require(
        label_smoothing == 0 or loss == "cross_entropy",
        lambda: f"loss {loss!r} takes no label_smoothing",
    )
    require(
        softcap == z_loss == 0 or (of_labels and form == "logits"),
        lambda: "softcap and z_loss are for label losses of logits",
    )
    kept = rows[: keep_dims if reduction != "none" else 0]
    check_number_or("normalizer", normalizer, kept, "the loss")
    return rows if reduction == "none" else kept


def _softmax_values(input, target, *call) -> Callable[[], tuple]:
    """Checks a call that gives the loss and, as its mask says, what there is per row."""
    *call, out_dtype, extras = call
    shape = check_softmax(input, target, *call)
    _, normalizer, loss, dim, form, target_form, *_, reduction, _ = call
    check_dtype("out_dtype", out_dtype)
    require(
        not any(extras) or (loss in LABEL_LOSSES and form == "logits"),
        lambda: "lse, entropy and accuracy are those of a label loss of logits",
    )
    require(not extras[2] or target_form == "labels", lambda: "accuracy is that of labels")
    counts = reduction == "mean" and normalizer is None and target_form == "labels"
    extra = accumulator(input.dtype)

    def make() -> tuple:
        per_row = (
            input.new_empty(rows_shape(input, dim), dtype=extra) if wanted else None
            for wanted in extras
        )
        denominator = input.new_empty(shape, dtype=extra) if counts else None
        return input.new_empty(shape, dtype=out_dtype), *per_row, denominator

    return make


def _softmax_forward(input, target, *call):
    *call, reduction, keep_dims, out_dtype, output_mask = call
    require(len(output_mask) == 5, lambda: "output_mask should have 5 entries")
    values = _softmax_values(input, target, *call, reduction, keep_dims, out_dtype, output_mask[:3])
    check_mask(output_mask[3:], (input, target))
    check_gradients_come(output_mask[3:], reduction, keep_dims)
    return lambda: (*values(), *_like((input, target), output_mask[3:]))


def _softmax_forward_(input, target, *call):
    *_, reduction, keep_dims, _, output_mask = call
    require(len(output_mask) == 3, lambda: "output_mask should have 3 entries")
    check_gradients_come([True], reduction, keep_dims)
    return _softmax_values(input, target, *call)


def _check_upstream(grad_output, grad_lse, grad_entropy, input, target, call) -> None:
    shape = check_softmax(input, target, *call)
    _, normalizer, loss, dim, form, target_form, *_, reduction, _ = call
    upstream = {"grad_output": grad_output, "grad_lse": grad_lse, "grad_entropy": grad_entropy}
    check_tensors(input.device, **upstream)
    check_number_or("grad_output", grad_output, shape, "the loss")
    for name in ("grad_lse", "grad_entropy"):
        check_number_or(name, upstream[name], rows_shape(input, dim), "rows")
    require(
        grad_lse is grad_entropy is None or (loss in LABEL_LOSSES and form == "logits"),
        lambda: "grad_lse and grad_entropy are of a label loss of logits",
    )
    require(
        any(tensor is not None for tensor in upstream.values()),
        lambda: "softmax_backward needs a gradient of the loss, of lse or of the entropy",
    )
    require(
        reduction != "mean" or target_form != "labels" or normalizer is not None,
        lambda: (
            "the gradients of a mean over labels need its denominator, which softmax_forward "
            "gives, as normalizer"
        ),
    )


def _softmax_backward(grad_output, grad_lse, grad_entropy, input, target, *call):
    *call, output_mask = call
    _check_upstream(grad_output, grad_lse, grad_entropy, input, target, call)
    check_mask(output_mask, (input, target))
    return lambda: _like((input, target), output_mask)


def _softmax_backward_(grads, grad_output, input, target, *call):
    *call, output_mask = call
    check_single(grad_output)
    _check_upstream(grad_output, None, None, input, target, call)
    check_gradients(grads, output_mask, (input, target))
    return lambda: None


# ---- The vector ops.


def _check_vectors(vectors, label, row_weight, loss, params, reduction) -> None:
    takes = VECTOR_SIGNATURES.get(loss)
    require(takes is not None, lambda: f"unknown vector loss {loss!r}")
    require(
        len(vectors) == takes.vectors and len(params) == takes.params,
        lambda: (
            f"loss {loss!r} takes {takes.vectors} vectors and {takes.params} parameters, "
            f"got {len(vectors)} and {len(params)}"
        ),
    )
    require(
        (label is not None) == bool(takes.label),
        lambda: f"loss {loss!r} takes {'a' if takes.label else 'no'} label",
    )
    check_reduction(reduction)
    first = vectors[0]
    require(
        first.dim() == 2,
        lambda: f"vectors should have the shape (rows, length), got {tuple(first.shape)}",
    )
    for vector in vectors:
        check_tensors(first.device, vector=vector)
        check_shape("a vector", vector, first.shape, "the others")
        require(
            vector.dtype == first.dtype,
            lambda: f"vectors should have one dtype, got {[v.dtype for v in vectors]}",
        )
    dtypes = LABEL_DTYPES if takes.label in ("index", "list") else KERNEL_DTYPES
    check_tensors(first.device, dtypes, label=label)
    check_tensors(first.device, row_weight=row_weight)
    if takes.label == "list":
        check_shape("label", label, first.shape, "the vectors")
    else:
        check_number_or("label", label, first.shape[:1], "the rows")
    check_number_or("row_weight", row_weight, first.shape[:1], "the rows")


def _of_vectors(vectors, mask) -> Callable[[], tuple]:
    check_mask(mask, (*vectors, None, None)[:3])
    first = vectors[0]
    return lambda: tuple(first.new_empty(first.shape) if wanted else None for wanted in mask)


def _vectors_forward(vectors, label, row_weight, loss, params, reduction, out_dtype, output_mask):
    _check_vectors(vectors, label, row_weight, loss, params, reduction)
    check_dtype("out_dtype", out_dtype)
    check_gradients_come(output_mask, reduction)
    shape = vectors[0].shape[:1] if reduction == "none" else ()
    grads = _of_vectors(vectors, output_mask)
    return lambda: (vectors[0].new_empty(shape, dtype=out_dtype), *grads())


def _vectors_backward(
    grad_output, vectors, label, row_weight, loss, params, reduction, output_mask
):
    _check_vectors(vectors, label, row_weight, loss, params, reduction)
    check_tensors(vectors[0].device, grad_output=grad_output)
    rows = vectors[0].shape[:1] if reduction == "none" else ()
    check_number_or("grad_output", grad_output, rows, "the loss")
    return _of_vectors(vectors, output_mask)


# ---- All of them.

_CALLS = {
    "elementwise_forward": _elementwise_forward,
    "elementwise_backward": _elementwise_backward,
    "elementwise_backward_": _elementwise_backward_,
    "elementwise_rescale_": _elementwise_rescale_,
    "elementwise_double_backward": _elementwise_double_backward,
    "softmax_forward": _softmax_forward,
    "softmax_forward_": _softmax_forward_,
    "softmax_backward": _softmax_backward,
    "softmax_backward_": _softmax_backward_,
    "vectors_forward": _vectors_forward,
    "vectors_backward": _vectors_backward,
}


def define(namespace: str) -> None:
    """Declares the raw ops in a namespace."""
    ops = library.define(namespace)
    for name, call in _CALLS.items():
        fake = functools.partial(_without_data, call)
        library.register_fake(ops, name, fake)


def _without_data(call: Callable, *args):
    return call(*args)()


for _namespace in (library.NATIVE, library.TRITON):
    define(_namespace)


def implement(namespace: str, name: str, device: str, kernel: Callable) -> None:
    """Registers a Python function as the kernel of a raw op on a device type. It is called with
    arguments that keep the contract."""
    call = _CALLS[name]
    schema = getattr(getattr(torch.ops, namespace), name).default._schema.arguments
    known = [(argument.name, argument.is_write) for argument in schema]

    def checked(*args):
        call(*args)
        check_memory([(n, value, w) for (n, w), value in zip(known, args, strict=True)])
        return kernel(*args)

    library.implement(namespace, name, device, checked)
