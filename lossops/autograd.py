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
up) come from the formulas in :mod:`lossops.reference`.

There are two ways in. :class:`FusedElementwise` serves plain and compiled training: it takes the
gradient from the forward pass. :class:`Elementwise` serves ``torch.func`` and forward mode, where
the gradient is always recomputed, because it may itself be differentiated.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from lossops import batching as _batching  # noqa: F401  (registers the vmap rules)
from lossops import reference
from lossops.backends import kernel_ops


class Call(NamedTuple):
    """What a loss is called with, besides tensors."""

    backend: str
    loss: str
    params: tuple[float, ...]
    reduction: str  # "none", "mean" or "sum"
    keep_dims: int  # leading dimensions that a reduction keeps
    out_dtype: torch.dtype

    @property
    def op_args(self) -> tuple:
        return self.loss, self.params, self.reduction, self.keep_dims

    @property
    def gives_a_number(self) -> bool:
        return self.keep_dims == 0 and self.reduction != "none"


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
        ops = kernel_ops(call.backend)
        wanted = mask if call.gives_a_number else _NO_GRADIENTS
        value, *grads = ops.forward(
            input, target, weight, normalizer, *call.op_args, call.out_dtype, wanted
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
        ops = kernel_ops(call.backend)
        if torch.is_grad_enabled() or _is_batched(grad_output):
            grads = _place(ElementwiseBackward.apply(grad_output, *inputs, call, mask), mask)
        elif grads is None or not call.gives_a_number:
            grads = ops.backward(grad_output, *inputs, *call.op_args, mask)
        else:
            present = [grad for grad in grads if grad is not None]
            if any(grad.dtype == torch.float16 for grad in present):
                # A float16 gradient of a mean is so small that scaling it afterwards would lose
                # its digits: that is what loss scaling is there to avoid.
                ops.backward_(present, grad_output, *inputs, *call.op_args, mask)
            else:
                ops.rescale_(present, grad_output)
        return *grads, None, None


def _is_batched(tensor: Tensor) -> bool:
    """Whether the tensor is a batch under vmap: the one of torch.func, or the older one behind
    ``torch.autograd.grad(is_grads_batched=True)``."""
    functorch = torch._C._functorch
    return functorch.is_batchedtensor(tensor) or functorch.is_legacy_batchedtensor(tensor)


def _compiled_gradients(ctx, grad_output, call, mask) -> tuple:
    """Without mutation, so that the compiler may fuse the scaling into what comes next."""
    input, target, weight, normalizer, *grads = ctx.saved_tensors
    if not call.gives_a_number or any(g is not None and g.dtype == torch.float16 for g in grads):
        ops = kernel_ops(call.backend)
        return ops.backward(grad_output, input, target, weight, normalizer, *call.op_args, mask)
    return tuple(None if g is None else (g * grad_output).to(g.dtype) for g in grads)


def _wanted(outputs, mask) -> tuple:
    return tuple(output for output, wanted in zip(outputs, mask, strict=True) if wanted)


class Elementwise(Function):
    """A loss that any transform of ``torch.func`` may be applied to."""

    generate_vmap_rule = True  # from the rules of the raw ops, in lossops.batching

    @staticmethod
    def forward(input, target, weight, normalizer, call):
        ops = kernel_ops(call.backend)
        args = (*call.op_args, call.out_dtype, _NO_GRADIENTS)
        return ops.forward(input, target, weight, normalizer, *args)[0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.call = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, grad_output):
        mask = ctx.needs_input_grad[:3]
        grads = ElementwiseBackward.apply(grad_output, *ctx.saved_tensors, ctx.call, mask)
        return *_place(grads, mask), None, None

    @staticmethod
    def jvp(ctx, tangent_input, tangent_target, tangent_weight, tangent_normalizer, _):
        _refuse_normalizer(tangent_normalizer)
        tangents = (tangent_input, tangent_target, tangent_weight)
        mask = (True, False, False, False)
        return ElementwiseDoubleBackward.apply(
            None, *ctx.saved_tensors, *tangents, ctx.call, ctx.call.out_dtype, mask
        )[0]


class ElementwiseBackward(Function):
    """The wanted gradients of a loss, as a tuple; itself differentiable."""

    generate_vmap_rule = True  # from the rules of the raw ops, in lossops.batching

    @staticmethod
    def forward(grad_output, input, target, weight, normalizer, call, mask):
        ops = kernel_ops(call.backend)
        grads = ops.backward(grad_output, input, target, weight, normalizer, *call.op_args, mask)
        return _wanted(grads, mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.call, ctx.mask = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *cotangents):
        nothing = (None,) * 7
        if all(cotangent is None for cotangent in cotangents):
            return nothing
        # The gradient of ⟨cotangents, g ∂L⟩: by g it is the derivative along the cotangents.
        mask = ctx.needs_input_grad[:4]
        if not any(mask):
            return nothing
        grads = ElementwiseDoubleBackward.apply(
            *ctx.saved_tensors, *_place(cotangents, ctx.mask), ctx.call,
            ctx.saved_tensors[0].dtype, mask,
        )  # fmt: skip
        return *_place(grads, mask), None, None, None

    @staticmethod
    def jvp(ctx, tangent_grad_output, *tangents):
        *tangents, tangent_normalizer, _, _ = tangents
        _refuse_normalizer(tangent_normalizer)
        grad_output, *inputs = ctx.saved_tensors
        along = None
        if any(tangent is not None for tangent in tangents):
            along = ElementwiseDoubleBackward.apply(
                grad_output, *inputs, *tangents, ctx.call, grad_output.dtype, (False, *ctx.mask)
            )
        if tangent_grad_output is None:
            return along
        scaled = ElementwiseBackward.apply(tangent_grad_output, *inputs, ctx.call, ctx.mask)
        return scaled if along is None else tuple(a + b for a, b in zip(along, scaled, strict=True))


class ElementwiseDoubleBackward(Function):
    """The wanted ones of (derivative along the tangents, its gradients times g), as a tuple."""

    generate_vmap_rule = True  # from the rules of the raw ops, in lossops.batching

    @staticmethod
    def forward(
        grad_output, input, target, weight, normalizer,
        tangent_input, tangent_target, tangent_weight, call, out_dtype, mask,
    ):  # fmt: skip
        outputs = kernel_ops(call.backend).double_backward(
            grad_output, input, target, weight, normalizer,
            tangent_input, tangent_target, tangent_weight, *call.op_args, out_dtype, mask,
        )  # fmt: skip
        return _wanted(outputs, mask)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.call, ctx.out_dtype, ctx.mask = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def _reference(ctx, differentiable):
        """The same function of those tensors for which ``differentiable`` is true."""
        saved = ctx.saved_tensors

        def function(*tensors):
            return _reference_double_backward(
                *_merge(saved, differentiable, tensors), ctx.call, ctx.out_dtype, ctx.mask
            )

        return function, [t for t, wanted in zip(saved, differentiable, strict=True) if wanted]

    @staticmethod
    def backward(ctx, *cotangents):
        wanted = ctx.needs_input_grad[:8]
        function, tensors = ElementwiseDoubleBackward._reference(ctx, wanted)
        _, pullback = torch.func.vjp(function, *tensors)
        return *_place(pullback(cotangents), wanted), None, None, None

    @staticmethod
    def jvp(ctx, *tangents):
        tangents = tangents[:8]
        _refuse_normalizer(tangents[4])
        moving = [tangent is not None for tangent in tangents]
        function, tensors = ElementwiseDoubleBackward._reference(ctx, moving)
        return torch.func.jvp(
            function, tuple(tensors), tuple(t for t in tangents if t is not None)
        )[1]


def _merge(saved, chosen, replacements):
    remaining = iter(replacements)
    return [next(remaining) if c else t for t, c in zip(saved, chosen, strict=True)]


def _reference_double_backward(
    grad_output, input, target, weight, normalizer,
    tangent_input, tangent_target, tangent_weight, call, out_dtype, mask,
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
        args = (*_merge(tensors, given, values), normalizer, *call.op_args, out_dtype)
        return reference.elementwise(*args)

    def along(*values):
        return torch.func.jvp(loss, values, tangents)[1]

    derivative, pullback = torch.func.vjp(along, *present)
    outputs = [derivative] if mask[0] else []
    if any(mask[1:]):
        grads = _place(pullback(grad_output.to(derivative.dtype)), given)
        outputs += _wanted(grads, mask[1:])
    return tuple(outputs)


def _refuse_normalizer(tangent) -> None:
    if tangent is not None:
        raise RuntimeError("a loss is not differentiable by its normalizer")


def transforms_active() -> bool:
    """Whether torch.func or forward-mode AD is looking."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def elementwise(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    normalizer: Tensor | None,
    call: Call,
) -> Tensor:
    """A loss over tensors of one shape. ``normalizer`` is not differentiated by."""
    if call.backend == "reference":
        return reference.elementwise(
            input, target, weight, normalizer, *call.op_args, call.out_dtype
        )
    if transforms_active():
        return Elementwise.apply(input, target, weight, normalizer, call)
    if torch.is_grad_enabled() and (
        input.requires_grad or target.requires_grad or (weight is not None and weight.requires_grad)
    ):
        return FusedElementwise.apply(input, target, weight, normalizer, call)
    args = (*call.op_args, call.out_dtype, _NO_GRADIENTS)
    return kernel_ops(call.backend).forward(input, target, weight, normalizer, *args)[0]
