"""The autograd Functions of the elementwise losses.

Three fused kernels compute a loss L(input, target, weight) and its first and second derivatives:

=====================  ======================================================================
``forward``            L, and its gradients for ``grad_output == 1`` in the same pass
``backward``           g · ∂L
``double_backward``    for a direction v: the derivative ⟨∂L, v⟩, and g · ∂⟨∂L, v⟩
=====================  ======================================================================

The derivative of ``backward`` along v is ``double_backward``, both in reverse mode and, because the
Hessian is symmetric, in forward mode. Derivatives of ``double_backward`` itself (third order and
up) are computed from the formulas in :mod:`lossops.elementwise.reference`.

There are two entry points. :class:`FusedElementwise` serves eager and compiled training and takes
the gradient from the forward pass. :class:`Elementwise` serves ``torch.func`` and forward mode. It
always recomputes the gradient, because the gradient may itself be differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd import Function

from lossops.core.backends import kernel_ops, native_extension, settled
from lossops.core.library import KernelOps
from lossops.core.transforms import (
    distinct,
    is_functionalized,
    is_transformed,
    merge,
    transforms_active,
)
from lossops.elementwise import batching as _batching  # noqa: F401  (registers the vmap rules)
from lossops.elementwise import reference


@dataclass(eq=False)  # a frozen dataclass takes four times as long to create
class Call:
    """The arguments of a loss other than its tensors.

    Not a tuple, because torch.func would flatten a tuple among the arguments of a Function.
    """

    backend: str
    loss: str
    params: tuple[float, ...]
    reduction: str  # "none", "mean" or "sum"
    keep_dims: int  # leading dimensions that a reduction keeps
    out_dtype: torch.dtype
    mask: tuple[bool, ...] = ()  # which outputs to compute, for Functions with several outputs

    @property
    def op_args(self) -> tuple:
        return self.loss, self.params, self.reduction, self.keep_dims

    def kernels(self) -> tuple[KernelOps, tuple]:
        """The raw ops that run the call, and ``op_args`` in the form that they take."""
        params = settled(self.params)
        ops = kernel_ops(self.backend, params)
        return ops, (self.loss, params, self.reduction, self.keep_dims)

    @property
    def gives_a_number(self) -> bool:
        return self.keep_dims == 0 and self.reduction != "none"

    def asking_for(self, *mask: bool, dtype: torch.dtype | None = None) -> Call:
        """The same call with another output mask and, if given, another dtype of the loss."""
        return replace(self, mask=mask, out_dtype=dtype or self.out_dtype)


_NO_GRADIENTS = (False, False, False)


def _place(grads, mask) -> list:
    """Expands the computed gradients to the positions in the mask, with None elsewhere."""
    remaining = iter(grads)
    return [next(remaining) if wanted else None for wanted in mask]


class FusedElementwise(Function):
    """A loss whose forward pass also computes the gradient.

    The first ``backward()`` returns that gradient, scaled in place by ``grad_output`` unless it
    is 1. The gradient is an attribute of ``ctx`` and not a saved tensor, because the version check
    of saved tensors would reject the scaling. Further backward passes recompute the gradient from
    the inputs.
    """

    @staticmethod
    def forward(ctx, input, target, weight, normalizer, call):
        mask = ctx.needs_input_grad[:3]
        ops, op_args = call.kernels()
        wanted = mask if call.gives_a_number else _NO_GRADIENTS
        value, *grads = ops.elementwise_forward(
            input, target, weight, normalizer, *op_args, call.out_dtype, wanted
        )
        ctx.call = call
        if torch.compiler.is_compiling():
            ctx.save_for_backward(input, target, weight, normalizer, *grads)
        else:
            ctx.grads = grads
            ctx.save_for_backward(input, target, weight, normalizer)
        return value

    @staticmethod
    def backward(ctx, grad_output):
        call, mask = ctx.call, ctx.needs_input_grad[:3]
        if torch.compiler.is_compiling():
            return *_compiled_gradients(ctx, grad_output, call, mask), None, None
        grads, ctx.grads = ctx.grads, None
        inputs = ctx.saved_tensors
        ops, op_args = call.kernels()
        if torch.is_grad_enabled() or is_transformed(grad_output):
            found = ElementwiseBackward.apply(grad_output, *inputs, call.asking_for(*mask))
            grads = _place(found, mask)
        elif grads is None or not call.gives_a_number:
            grads = ops.elementwise_backward(grad_output, *inputs, *op_args, mask)
        else:
            present = [grad for grad in grads if grad is not None]
            if any(grad.dtype == torch.float16 for grad in present):
                # The float16 gradient of a mean may be so small that scaling it afterwards loses
                # digits, which loss scaling is meant to avoid. Recompute it with grad_output.
                ops.elementwise_backward_(present, grad_output, *inputs, *op_args, mask)
            else:
                ops.elementwise_rescale_(present, grad_output)
        return *grads, None, None


def _compiled_gradients(ctx, grad_output, call, mask) -> tuple:
    """Scales the gradients out of place, so that the compiler can fuse the scaling into the ops
    that follow."""
    input, target, weight, normalizer, *grads = ctx.saved_tensors
    # Compiled autograd may call this after an eager forward pass, which saves no gradients.
    ready = grads and call.gives_a_number
    if not ready or any(g is not None and g.dtype == torch.float16 for g in grads):
        ops, op_args = call.kernels()
        return ops.elementwise_backward(
            grad_output, input, target, weight, normalizer, *op_args, mask
        )
    return tuple(None if g is None else (g * grad_output).to(g.dtype) for g in grads)


def _wanted(outputs, mask) -> tuple:
    return tuple(output for output, wanted in zip(outputs, mask, strict=True) if wanted)


class Elementwise(Function):
    """A loss that supports every ``torch.func`` transform."""

    generate_vmap_rule = True  # uses the rules of the raw ops in lossops.elementwise.batching

    @staticmethod
    def forward(input, target, weight, normalizer, call):
        ops, op_args = call.kernels()
        args = (*op_args, call.out_dtype, _NO_GRADIENTS)
        return ops.elementwise_forward(input, target, weight, normalizer, *args)[0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.call = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, grad_output):
        mask = ctx.needs_input_grad[:3]
        call = ctx.call.asking_for(*mask)
        grads = ElementwiseBackward.apply(grad_output, *ctx.saved_tensors, call)
        return *_place(grads, mask), None, None

    @staticmethod
    def jvp(ctx, tangent_input, tangent_target, tangent_weight, tangent_normalizer, _):
        _refuse_normalizer(tangent_normalizer)
        tangents = (tangent_input, tangent_target, tangent_weight)
        call = ctx.call.asking_for(True, False, False, False)
        return ElementwiseDoubleBackward.apply(None, *ctx.saved_tensors, *tangents, call)[0]


class ElementwiseBackward(Function):
    """Computes the gradients selected by the mask, as a tuple. Differentiable."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad_output, input, target, weight, normalizer, call):
        ops, op_args = call.kernels()
        tensors = (grad_output, input, target, weight, normalizer)
        return _wanted(ops.elementwise_backward(*tensors, *op_args, call.mask), call.mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.call = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *cotangents):
        wanted = ctx.needs_input_grad[:4]
        if not any(wanted) or all(cotangent is None for cotangent in cotangents):
            return (None,) * 6
        # The gradient of ⟨cotangents, g ∂L⟩. With respect to g, it is the derivative of L along the
        # cotangents.
        call = ctx.call.asking_for(*wanted, dtype=ctx.saved_tensors[0].dtype)
        directions = _place(cotangents, ctx.call.mask)
        grads = ElementwiseDoubleBackward.apply(*ctx.saved_tensors, *directions, call)
        return *_place(grads, wanted), None, None

    @staticmethod
    def jvp(ctx, tangent_grad_output, *tangents):
        *tangents, tangent_normalizer, _ = tangents
        _refuse_normalizer(tangent_normalizer)
        along = None
        if any(tangent is not None for tangent in tangents):
            call = ctx.call.asking_for(False, *ctx.call.mask)
            along = ElementwiseDoubleBackward.apply(*ctx.saved_tensors, *tangents, call)
        if tangent_grad_output is None:
            return along
        scaled = ElementwiseBackward.apply(tangent_grad_output, *ctx.saved_tensors[1:], ctx.call)
        return scaled if along is None else tuple(a + b for a, b in zip(along, scaled, strict=True))


class ElementwiseDoubleBackward(Function):
    """Computes (derivative along the tangents, g times its gradients), as a tuple of the outputs
    selected by the mask."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*args):
        # grad_output, input, target, weight, normalizer, three tangents, call
        *tensors, call = args
        ops, op_args = call.kernels()
        outputs = ops.elementwise_double_backward(*tensors, *op_args, call.out_dtype, call.mask)
        return _wanted(outputs, call.mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.call = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, *cotangents):
        wanted = ctx.needs_input_grad[:8]
        function, tensors = _by_reference(ctx.saved_tensors, wanted, ctx.call)
        _, pullback = torch.func.vjp(function, *tensors)
        return *_place(pullback(cotangents), wanted), None

    @staticmethod
    def jvp(ctx, *tangents):
        _refuse_normalizer(tangents[4])
        moving = [tangent is not None for tangent in tangents[:8]]
        function, tensors = _by_reference(ctx.saved_tensors, moving, ctx.call)
        return torch.func.jvp(function, tensors, _wanted(tangents[:8], moving))[1]


def _by_reference(tensors, moving, call):
    """double_backward from the reference formulas, as a function of the tensors that require a
    derivative."""

    def function(*values):
        return _reference_double_backward(*merge(tensors, moving, values), call)

    return function, _wanted(tensors, moving)


def _differentiable_backward(grad_output, input, target, weight, normalizer, *args):
    """The differentiable gradients, None where the mask is False. Called by
    csrc/ops/elementwise/fused.cpp."""
    call = Call("native", *args)
    grads = ElementwiseBackward.apply(grad_output, input, target, weight, normalizer, call)
    return _place(grads, call.mask)


if native_extension is not None:
    native_extension.set_differentiable_backward(_differentiable_backward)


def _reference_double_backward(
    grad_output, input, target, weight, normalizer,
    tangent_input, tangent_target, tangent_weight, call,
):  # fmt: skip
    """double_backward from the reference formula and torch.func, so that it can be differentiated
    again."""
    tensors = [input, target, weight]
    given = [t is not None for t in tensors]
    present = tuple(t for t in tensors if t is not None)
    tangents = tuple(
        torch.zeros_like(t) if tangent is None else tangent
        for t, tangent in zip(tensors, (tangent_input, tangent_target, tangent_weight), strict=True)
        if t is not None
    )

    def loss(*values):
        merged = merge(tensors, given, values)
        return reference.elementwise(*merged, normalizer, *call.op_args, call.out_dtype)

    def along(*values):
        return torch.func.jvp(loss, values, tangents)[1]

    derivative, pullback = torch.func.vjp(along, *present)
    outputs = [derivative] if call.mask[0] else []
    if any(call.mask[1:]):
        grads = _place(pullback(grad_output.to(derivative.dtype)), given)
        outputs += _wanted(grads, call.mask[1:])
    return tuple(outputs)


def _refuse_normalizer(tangent) -> None:
    if tangent is not None:
        raise RuntimeError("a loss is not differentiable by its normalizer")


def elementwise(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    normalizer: Tensor | None,
    call: Call,
) -> Tensor:
    """Computes a loss of tensors of one shape. It is not differentiable with respect to
    ``normalizer``."""
    transformed = transforms_active()
    # Inside torch.func transforms, torch.compile ignores the derivative rules of a Function. It can
    # differentiate and fuse plain formulas itself. functionalize does not support Functions.
    plain = transformed and (torch.compiler.is_compiling() or is_functionalized())
    if call.backend == "reference" or plain:
        return reference.elementwise(
            input, target, weight, normalizer, *call.op_args, call.out_dtype
        )
    if transformed:
        return Elementwise.apply(input, target, weight, normalizer, call)
    if torch.is_grad_enabled() and (
        input.requires_grad or target.requires_grad or (weight is not None and weight.requires_grad)
    ):
        if call.backend == "native" and not torch.compiler.is_compiling():
            args = (*call.op_args, call.out_dtype)
            return native_extension.fused_elementwise(input, target, weight, normalizer, *args)
        return FusedElementwise.apply(*distinct(input, target, weight), normalizer, call)
    ops, op_args = call.kernels()
    args = (*op_args, call.out_dtype, _NO_GRADIENTS)
    return ops.elementwise_forward(input, target, weight, normalizer, *args)[0]
