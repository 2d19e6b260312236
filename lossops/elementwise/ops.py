"""The raw ops of the elementwise losses: schemas, contract and fake tensor implementations.

``input``, ``target``, ``weight`` and the tangents have the same shape. The caller broadcasts them
(stride 0 is allowed). Their floating-point dtypes may differ. ``keep_dims`` is the number of
leading dimensions that a reduction keeps: 0 for a scalar, 1 for one number per sample.
``reduction`` is "none", "mean" or "sum"; with "none", ``keep_dims`` is ignored. ``normalizer``
(0-d, or of the shape of the kept dimensions) replaces the denominator of the mean.

The ops compute the following, where L_i = w_i f(x_i, y_i), g is ``grad_output`` and s is the factor
of the reduction (1, 1/n or 1/normalizer):

``elementwise_forward``
    the reduced loss, and the gradients for ``grad_output == 1`` (only if the loss is a scalar).
``elementwise_backward``
    g s w f_x, g s w f_y, g s f.
``elementwise_backward_``
    the same, written into ``grads``. Does nothing if ``grad_output``, a single number that is read
    on the device, is 1.
``elementwise_rescale_``
    multiplies ``grads`` by ``grad_output``, a single number that is read on the device. Does
    nothing if it is 1.
``elementwise_double_backward``
    for tangents (a, b, c) of (input, target, weight), where missing tangents are 0: the directional
    derivative of the reduced loss, which is the reduction of w (a f_x + b f_y) + c f; and the
    derivatives of g s (w (a f_x + b f_y) + c f) with respect to input, target and weight.
    ``output_mask`` has four entries. The first selects the directional derivative, which does not
    contain g.
"""

from __future__ import annotations

import functools
import inspect
from typing import NamedTuple

import torch
from torch import Tensor

from lossops.core.contract import (
    check_between,
    check_dtype,
    check_gradients,
    check_gradients_come,
    check_length,
    check_mask,
    check_number_or,
    check_reduction,
    check_shape,
    check_single,
    check_tensors,
    require,
)
from lossops.core.library import Params, declare, empty_like, in_schema
from lossops.elementwise import reference


class ElementwiseArguments(NamedTuple):
    """The arguments that the ops share, other than tensors."""

    loss: str
    params: Params
    reduction: str  # "none", "mean" or "sum"
    keep_dims: int  # number of leading dimensions that a reduction keeps

    @property
    def gives_a_number(self) -> bool:
        return self.keep_dims == 0 and self.reduction != "none"


_CALL = in_schema(ElementwiseArguments)


def loss_shape(input: Tensor, reduction: str, keep_dims: int) -> tuple:
    """The shape of the loss of ``input``."""
    return tuple(input.shape if reduction == "none" else input.shape[:keep_dims])


@functools.cache
def _num_params(loss: str) -> int | None:
    """The number of hyperparameters of an elementwise loss; None if there is no such loss."""
    formula = reference.TERMS.get(loss) or reference.FORMULAS.get(loss)
    return None if formula is None else len(inspect.signature(formula).parameters) - 2


def _check_elementwise(input, target, weight, normalizer, call: ElementwiseArguments) -> tuple:
    """Checks the arguments that the ops share. Returns the shape of the loss."""
    loss, params, reduction, keep_dims = call
    known = _num_params(loss)
    require(known is not None, lambda: f"unknown elementwise loss {loss!r}")
    require(
        len(params) == known,
        lambda: f"params of loss {loss!r} should have {known} entries, got {len(params)}",
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


def _check_grad_output(grad_output: Tensor, input: Tensor, shape: tuple, reduction: str) -> None:
    check_tensors(input.device, grad_output=grad_output)
    if reduction == "none":
        check_shape("grad_output", grad_output, shape, "input")
    else:
        check_number_or("grad_output", grad_output, shape, "the loss")


def _elementwise_forward(input, target, weight, normalizer, call, out_dtype, output_mask):
    shape = _check_elementwise(input, target, weight, normalizer, call)
    check_gradients_come(output_mask, call)
    check_dtype("out_dtype", out_dtype)
    check_mask(output_mask, input=input, target=target, weight=weight)
    return lambda: (
        _empty_loss(input, shape, call.reduction, out_dtype),
        *empty_like((input, target, weight), output_mask),
    )


def _empty_loss(input: Tensor, shape: tuple, reduction: str, dtype: torch.dtype) -> Tensor:
    if reduction == "none":
        return torch.empty_like(input, dtype=dtype)
    return input.new_empty(shape, dtype=dtype)


def _elementwise_backward(grad_output, input, target, weight, normalizer, call, output_mask):
    shape = _check_elementwise(input, target, weight, normalizer, call)
    _check_grad_output(grad_output, input, shape, call.reduction)
    check_mask(output_mask, input=input, target=target, weight=weight)
    return lambda: empty_like((input, target, weight), output_mask)


def _elementwise_backward_(
    grads, grad_output, input, target, weight, normalizer, call, output_mask
):
    shape = _check_elementwise(input, target, weight, normalizer, call)
    check_single(grad_output)
    _check_grad_output(grad_output, input, shape, call.reduction)
    check_gradients(grads, output_mask, input=input, target=target, weight=weight)
    return lambda: None


def _elementwise_rescale_(grads, grad_output):
    check_single(grad_output)
    device = grads[0].device if grads else grad_output.device
    check_tensors(device, grad_output=grad_output)
    for grad in grads:
        check_tensors(device, **{"a tensor of grads": grad})
    return lambda: None


def _elementwise_double_backward(
    grad_output, input, target, weight, normalizer, tangent_input, tangent_target, tangent_weight,
    call, out_dtype, output_mask,
):  # fmt: skip
    shape = _check_elementwise(input, target, weight, normalizer, call)
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
    check_length(output_mask, 4)
    require(
        grad_output is not None or not any(output_mask[1:]),
        lambda: "elementwise_double_backward needs grad_output to give gradients",
    )
    if grad_output is not None:
        _check_grad_output(grad_output, input, shape, call.reduction)
    check_mask(output_mask[1:], input=input, target=target, weight=weight)
    return lambda: (
        _empty_loss(input, shape, call.reduction, out_dtype) if output_mask[0] else None,
        *empty_like((input, target, weight), output_mask[1:]),
    )


declare(
    "elementwise_forward",
    _elementwise_forward,
    "(Tensor input, Tensor target, Tensor? weight, Tensor? normalizer, "
    f"{_CALL}, ScalarType out_dtype, bool[3] output_mask) "
    "-> (Tensor, Tensor?, Tensor?, Tensor?)",
    ElementwiseArguments,
)
declare(
    "elementwise_backward",
    _elementwise_backward,
    "(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, Tensor? normalizer, "
    f"{_CALL}, bool[3] output_mask) -> (Tensor, Tensor, Tensor)",
    ElementwiseArguments,
)
declare(
    "elementwise_backward_",
    _elementwise_backward_,
    "(Tensor(a!)[] grads, Tensor grad_output, Tensor input, Tensor target, Tensor? weight, "
    f"Tensor? normalizer, {_CALL}, bool[3] output_mask) -> ()",
    ElementwiseArguments,
)
declare(
    "elementwise_rescale_",
    _elementwise_rescale_,
    "(Tensor(a!)[] grads, Tensor grad_output) -> ()",
)
declare(
    "elementwise_double_backward",
    _elementwise_double_backward,
    "(Tensor? grad_output, Tensor input, Tensor target, Tensor? weight, Tensor? normalizer, "
    "Tensor? tangent_input, Tensor? tangent_target, Tensor? tangent_weight, "
    f"{_CALL}, ScalarType out_dtype, bool[4] output_mask) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    ElementwiseArguments,
)
