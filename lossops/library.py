"""The raw ops: their schemas and what they compute on tensors without data.

Every backend that is a kernel implements the same ops in a namespace of its own (``lossops`` for
C++ and CUDA C++, ``lossops_triton`` for Triton), so the schemas stand here, once, and exist even
where the compiled extension does not.

Contract of all elementwise ops: ``input``, ``target``, ``weight`` and the tangents have one shape,
broadcast by the caller (stride 0 is fine), and floating dtypes that may differ. ``keep_dims`` is
the number of leading dimensions a reduction keeps: 0 for a scalar, 1 for one number per sample.
``reduction`` is "none", "mean" or "sum"; with "none", ``keep_dims`` is ignored. ``normalizer``
(0-d, or of the kept dimensions' shape) replaces the mean's denominator. ``output_mask`` says which
of the outputs are wanted; the others are undefined tensors (None in Python).

With L_i = w_i f(x_i, y_i) and s the reduction's factor (1, 1/n or 1/normalizer):

``elementwise_forward``
    the reduced loss, and the gradients for ``grad_output == 1`` (only where nothing is kept).
``elementwise_backward``
    g s w f_x, g s w f_y, g s f.
``elementwise_backward_``
    the same, written over ``grads``; does nothing where ``grad_output``, one number read on the
    device, is 1.
``elementwise_rescale_``
    multiplies ``grads`` by ``grad_output``, one number read on the device; does nothing where it
    is 1.
``elementwise_double_backward``
    with the tangents (a, b, c) of (input, target, weight), missing ones being 0: the derivative of
    the reduced loss in their direction, the reduction of w (a f_x + b f_y) + c f; and the
    derivatives of g s (w (a f_x + b f_y) + c f) by input, target and weight. ``output_mask`` has
    four entries, the first for the directional derivative, which does not contain g.
"""

from __future__ import annotations

import torch
from torch import Tensor

NATIVE = "lossops"
TRITON = "lossops_triton"

_CALL = "str loss, float[] params, str reduction, int keep_dims"

SCHEMAS = {
    "elementwise_forward": (
        "(Tensor input, Tensor target, Tensor? weight, Tensor? normalizer, "
        f"{_CALL}, ScalarType out_dtype, bool[3] output_mask) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "elementwise_backward": (
        "(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, Tensor? normalizer, "
        f"{_CALL}, bool[3] output_mask) -> (Tensor, Tensor, Tensor)"
    ),
    "elementwise_backward_": (
        "(Tensor(a!)[] grads, Tensor grad_output, Tensor input, Tensor target, Tensor? weight, "
        f"Tensor? normalizer, {_CALL}, bool[3] output_mask) -> ()"
    ),
    "elementwise_rescale_": "(Tensor(a!)[] grads, Tensor grad_output) -> ()",
    "elementwise_double_backward": (
        "(Tensor? grad_output, Tensor input, Tensor target, Tensor? weight, Tensor? normalizer, "
        "Tensor? tangent_input, Tensor? tangent_target, Tensor? tangent_weight, "
        f"{_CALL}, ScalarType out_dtype, bool[4] output_mask) "
        "-> (Tensor, Tensor, Tensor, Tensor)"
    ),
}


def loss_shape(input: Tensor, reduction: str, keep_dims: int) -> tuple:
    """The shape of the loss over an input of this shape."""
    return tuple(input.shape if reduction == "none" else input.shape[:keep_dims])


def _empty_gradients(input, target, weight, mask):
    tensors = zip((input, target, weight), mask, strict=True)
    return tuple(torch.empty_like(t) if wanted else None for t, wanted in tensors)


def _fake_forward(
    input, target, weight, normalizer, loss, params, reduction, keep_dims, out_dtype, output_mask
):
    if reduction == "none":
        value = torch.empty_like(input, dtype=out_dtype)
    else:
        value = input.new_empty(loss_shape(input, reduction, keep_dims), dtype=out_dtype)
    return value, *_empty_gradients(input, target, weight, output_mask)


def _fake_backward(grad_output, input, target, weight, normalizer, *call):
    return _empty_gradients(input, target, weight, call[-1])


def _fake_backward_(grads, grad_output, input, target, weight, normalizer, *call):
    return None


def _fake_rescale_(grads, grad_output):
    return None


def _fake_double_backward(
    grad_output, input, target, weight, normalizer, tangent_input, tangent_target, tangent_weight,
    loss, params, reduction, keep_dims, out_dtype, output_mask,
):  # fmt: skip
    derivative = None
    if output_mask[0]:
        no_gradients = (False, False, False)
        call = (loss, params, reduction, keep_dims, out_dtype, no_gradients)
        derivative = _fake_forward(input, target, weight, normalizer, *call)[0]
    return derivative, *_empty_gradients(input, target, weight, output_mask[1:])


_FAKES = {
    "elementwise_forward": _fake_forward,
    "elementwise_backward": _fake_backward,
    "elementwise_backward_": _fake_backward_,
    "elementwise_rescale_": _fake_rescale_,
    "elementwise_double_backward": _fake_double_backward,
}

_libraries = []  # a Library takes its ops with it when it is collected


def define(namespace: str) -> None:
    """Declares the ops in a namespace."""
    library = torch.library.Library(namespace, "DEF")
    for name, schema in SCHEMAS.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"{namespace}::{name}", _FAKES[name], lib=library)
    _libraries.append(library)


for _namespace in (NATIVE, TRITON):
    define(_namespace)


def implement(namespace: str, name: str, device: str, kernel) -> None:
    """Registers a Python function as the kernel of a raw op on a device type."""
    library = torch.library.Library(namespace, "IMPL")
    library.impl(name, kernel, device.upper())
    _libraries.append(library)
