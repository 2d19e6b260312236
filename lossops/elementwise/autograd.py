"""How gradients flow: the autograd Functions of the elementwise family.

A loss L(input, target, weight) is differentiated by three fused kernels, and every derivative that
torch asks for is one of them:

=====================  ======================================================================
``forward``            L, and its gradients for ``grad_output == 1`` in the same pass
``backward``           g · ∂L
``double_backward``    for a direction v: the derivative ⟨∂L, v⟩, and g · ∂⟨∂L, v⟩
=====================  ======================================================================

The derivative of ``backward`` along v is ``double_backward``, in reverse mode and, the Hessian
being symmetric, in forward mode too. Derivatives of ``double_backward`` itself (third order and
up) come from the formulas in :mod:`lossops.elementwise.reference`.

There are two ways in. :class:`FusedElementwise` serves plain and compiled training: it takes the
gradient from the forward pass. :class:`Elementwise` serves ``torch.func`` and forward mode, where
the gradient is always recomputed, because it may itself be differentiated.
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


@dataclass(eq=False)  # frozen ones take four times as long to make
class Call:
    """What a loss is called with, besides tensors.

    Not a tuple: torch.func takes the arguments of a Function apart, and should not take this one.
    """

    backend: str
    loss: str
    params: tuple[float, ...]
    reduction: str  # "none", "mean" or "sum"
    keep_dims: int  # leading dimensions that a reduction keeps
    out_dtype: torch.dtype
    mask: tuple[bool, ...] = ()  # the wanted outputs, for the Functions that have several

    @property
    def op_args(self) -> tuple:
        return self.loss, self.params, self.reduction, self.keep_dims

    def kernels(self) -> tuple[KernelOps, tuple]:
        """The raw ops that run it, and ``op_args`` in their form."""
        params = settled(self.params)
        ops = kernel_ops(self.backend, params)
        return ops, (self.loss, params, self.reduction, self.keep_dims)

    @property
    def gives_a_number(self) -> bool:
        return self.keep_dims == 0 and self.reduction != "none"

    def asking_for(self, *mask: bool, dtype: torch.dtype | None = None) -> Call:
        """The same call, wanting these outputs, the loss-like one in this dtype."""
        return replace(self, mask=mask, out_dtype=dtype or self.out_dtype)


_NO_GRADIENTS = (False, False, False)


def _place(grads, mask) -> list:
    """Puts the wanted gradients where the mask says they belong, None elsewhere."""
    remaining = iter(grads)
    return [next(remaining) if wanted else None for wanted in mask]


class FusedElementwise(Function):
    """A loss whose gradient is ready when its value is.

    The first ``backward()`` hands that gradient out, scaled in place by ``grad_output`` unless it
    is 1. It is an attribute of ``ctx`` and not a saved tensor, whose version check would refuse
    the scaling. Any further backward recomputes from the inputs.
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
                # A float16 gradient of a mean is so small that scaling it afterwards would lose
                # its digits: that is what loss scaling is there to avoid.
                ops.elementwise_backward_(present, grad_output, *inputs, *op_args, mask)
            else:
                ops.elementwise_rescale_(present, grad_output)
        return *grads, None, None


def _compiled_gradients(ctx, grad_output, call, mask) -> tuple:
    """Without mutation, so that the compiler may fuse the scaling into what comes next."""
    input, target, weight, normalizer, *grads = ctx.saved_tensors
    # Compiled autograd comes here from a forward pass that was not compiled and saved no gradients.
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
    """A loss that any transform of ``torch.func`` may be applied to."""

    generate_vmap_rule = True  # from the rules of the raw ops, in the module batching

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
    """The wanted gradients of a loss, as a tuple; itself differentiable."""

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
        # The gradient of ⟨cotangents, g ∂L⟩: by g it is the derivative along the cotangents.
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
    """The wanted ones of (derivative along the tangents, its gradients times g), as a tuple."""

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
    """double_backward by the reference formulas, as a function of the tensors that move."""

    def function(*values):
        return _reference_double_backward(*merge(tensors, moving, values), call)

    return function, _wanted(tensors, moving)


def _differentiable_backward(grad_output, input, target, weight, normalizer, *args):
    """What csrc/ops/elementwise/fused.cpp calls: the gradients, None where not wanted."""
    call = Call("native", *args)
    grads = ElementwiseBackward.apply(grad_output, input, target, weight, normalizer, call)
    return _place(grads, call.mask)


if native_extension is not None:
    native_extension.set_differentiable_backward(_differentiable_backward)


def _reference_double_backward(
    grad_output, input, target, weight, normalizer,
    tangent_input, tangent_target, tangent_weight, call,
):  # fmt: skip
    """double_backward by torch.func from the reference formula, for what differentiates it."""
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
    """A loss over tensors of one shape. ``normalizer`` is not differentiated by."""
    transformed = transforms_active()
    # torch.compile does not see the derivative rules of a Function inside torch.func's transforms;
    # plain formulas it differentiates, and fuses, itself. Functionalization knows no Function.
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
