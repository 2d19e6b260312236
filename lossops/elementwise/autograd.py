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

There are two entry points. :class:`lossops.core.fused.Fused` serves eager and compiled training and
takes the gradient from the forward pass. :class:`Elementwise` serves ``torch.func`` and forward
mode. It always recomputes the gradient, because the gradient may itself be differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd import Function

from lossops.core.fused import OnePass, chosen, merged, placed
from lossops.core.transforms import is_functionalized
from lossops.elementwise import batching as _batching  # noqa: F401  (registers the vmap rules)
from lossops.elementwise import reference
from lossops.elementwise.ops import ElementwiseArguments


@dataclass(eq=False)
class ElementwiseCall(OnePass):
    """A loss of tensors of one shape: input, target, weight; normalizer."""

    mask: tuple[bool, ...] = ()  # which outputs to compute, for Functions with several outputs

    Arguments = ElementwiseArguments
    family, node = "elementwise", "fused_elementwise"
    moving = 3

    def asking_for(self, *mask: bool, dtype: torch.dtype | None = None) -> ElementwiseCall:
        """The same call with another output mask and, if given, another dtype of the loss."""
        return replace(self, mask=mask, out_dtype=dtype or self.out_dtype)

    def formula(self, *tensors: Tensor | None) -> tuple[Tensor]:
        return (reference.elementwise(*tensors, *self.arguments, self.out_dtype),)

    def unfused(self, *tensors: Tensor | None) -> tuple[Tensor]:
        # Inside torch.func transforms, torch.compile ignores the derivative rules of a Function. It
        # can differentiate and fuse plain formulas itself. functionalize does not support
        # Functions.
        if self.backend == "reference" or torch.compiler.is_compiling() or is_functionalized():
            return self.formula(*tensors)
        return (Elementwise.apply(*tensors, self),)

    def differentiable_gradients(self, cotangents, tensors, mask) -> tuple[Tensor | None, ...]:
        found = ElementwiseBackward.apply(*cotangents, *tensors, self.asking_for(*mask))
        return placed(found, mask)


class _Transformable(Function):
    """A function of tensors and, as the last argument, a call. Supports every ``torch.func``
    transform."""

    generate_vmap_rule = True  # uses the rules of the raw ops in lossops.elementwise.batching

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.call = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)


class Elementwise(_Transformable):
    """The loss."""

    @staticmethod
    def forward(input, target, weight, normalizer, call):
        return call.forward((input, target, weight, normalizer), (False,) * 3)[0][0]

    @staticmethod
    def backward(ctx, grad_output):
        mask = ctx.needs_input_grad[:3]
        grads = ctx.call.differentiable_gradients((grad_output,), ctx.saved_tensors, mask)
        return *grads, None, None

    @staticmethod
    def jvp(ctx, tangent_input, tangent_target, tangent_weight, tangent_normalizer, _):
        _refuse_normalizer(tangent_normalizer)
        tangents = (tangent_input, tangent_target, tangent_weight)
        call = ctx.call.asking_for(True, False, False, False)
        return ElementwiseDoubleBackward.apply(None, *ctx.saved_tensors, *tangents, call)[0]


class ElementwiseBackward(_Transformable):
    """Computes the gradients selected by the mask, as a tuple."""

    @staticmethod
    def forward(grad_output, input, target, weight, normalizer, call):
        tensors = (input, target, weight, normalizer)
        return chosen(call.backward((grad_output,), tensors, call.mask), call.mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _Transformable.setup_context(ctx, inputs, output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *cotangents):
        wanted = ctx.needs_input_grad[:4]
        if not any(wanted) or all(cotangent is None for cotangent in cotangents):
            return (None,) * 6
        # The gradient of ⟨cotangents, g ∂L⟩. With respect to g, it is the derivative of L along the
        # cotangents.
        call = ctx.call.asking_for(*wanted, dtype=ctx.saved_tensors[0].dtype)
        directions = placed(cotangents, ctx.call.mask)
        grads = ElementwiseDoubleBackward.apply(*ctx.saved_tensors, *directions, call)
        return *placed(grads, wanted), None, None

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


class ElementwiseDoubleBackward(_Transformable):
    """Computes (derivative along the tangents, g times its gradients), as a tuple of the outputs
    selected by the mask."""

    @staticmethod
    def forward(*args):
        # grad_output, input, target, weight, normalizer, three tangents, call
        *tensors, call = args
        ops, arguments = call.kernels()
        outputs = ops.elementwise_double_backward(*tensors, *arguments, call.out_dtype, call.mask)
        return chosen(outputs, call.mask)

    @staticmethod
    def backward(ctx, *cotangents):
        wanted = ctx.needs_input_grad[:8]
        function, tensors = _by_reference(ctx.saved_tensors, wanted, ctx.call)
        _, pullback = torch.func.vjp(function, *tensors)
        return *placed(pullback(cotangents), wanted), None

    @staticmethod
    def jvp(ctx, *tangents):
        _refuse_normalizer(tangents[4])
        moving = [tangent is not None for tangent in tangents[:8]]
        function, tensors = _by_reference(ctx.saved_tensors, moving, ctx.call)
        return torch.func.jvp(function, tensors, chosen(tangents[:8], moving))[1]


def _by_reference(tensors, moving, call):
    """double_backward from the reference formulas, as a function of the tensors that require a
    derivative."""

    def function(*values):
        return _reference_double_backward(*merged(tensors, moving, values), call)

    return function, chosen(tensors, moving)


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
        return call.formula(*merged(tensors, given, values), normalizer)[0]

    def along(*values):
        return torch.func.jvp(loss, values, tangents)[1]

    derivative, pullback = torch.func.vjp(along, *present)
    outputs = [derivative] if call.mask[0] else []
    if any(call.mask[1:]):
        grads = placed(pullback(grad_output.to(derivative.dtype)), given)
        outputs += chosen(grads, call.mask[1:])
    return tuple(outputs)


def _refuse_normalizer(tangent) -> None:
    if tangent is not None:
        raise RuntimeError("a loss is not differentiable by its normalizer")
