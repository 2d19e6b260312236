"""The autograd Function of the softmax family.

The forward kernel computes the row losses and the requested per-row outputs (lse, entropy,
accuracy). If the loss is a single number, the same pass also computes its gradients. The first
``backward()`` returns these, scaled in place by ``grad_output`` unless it is 1. Any other
``backward()`` recomputes them from the inputs with the backward kernel. Higher-order derivatives,
``torch.func`` transforms and forward-mode AD use the formulas in
:mod:`lossops.softmax.reference`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function

from lossops.core.backends import kernel_ops, native_extension, settled
from lossops.core.formulas import formula_gradients
from lossops.core.labels import can_look, require_classes
from lossops.core.library import KernelOps
from lossops.core.transforms import distinct, is_transformed, transforms_active
from lossops.softmax import reference

Outputs = tuple[Tensor, ...]  # the loss, then lse, entropy and accuracy where requested


@dataclass(eq=False)  # a frozen dataclass takes four times as long to construct
class SoftmaxCall:
    """The non-tensor arguments of a loss.

    Not a tuple, because torch.func would flatten a tuple among the arguments of a Function.
    """

    backend: str
    loss: str
    dim: int  # class dimension
    form: str
    target_form: str
    params: tuple[float, ...]
    ignore_index: int
    one_if_none: bool
    reduction: str  # "none", "mean" or "sum"
    keep_dims: int  # number of leading dimensions that a reduction keeps
    out_dtype: torch.dtype
    per_row: tuple[bool, bool, bool] = (False, False, False)  # lse, entropy, accuracy
    in_place: bool = False  # the gradient may overwrite the input

    @property
    def op_args(self) -> tuple:
        return self._with(self.params)

    def _with(self, params) -> tuple:
        return (
            self.loss, self.dim, self.form, self.target_form, params, self.ignore_index,
            self.one_if_none, self.reduction, self.keep_dims,
        )  # fmt: skip

    def kernels(self) -> tuple[KernelOps, tuple]:
        """Returns the raw ops that run this call, and ``op_args`` in the form that they take."""
        params = settled(self.params)
        return kernel_ops(self.backend, params), self._with(params)

    @property
    def gives_a_number(self) -> bool:
        return self.keep_dims == 0 and self.reduction != "none"

    @property
    def wanted(self) -> tuple[bool, ...]:
        return (True, *self.per_row)


def _chosen(values, wanted) -> tuple:
    return tuple(value for value, yes in zip(values, wanted, strict=False) if yes)


def _placed(values, wanted) -> list:
    remaining = iter(values)
    return [next(remaining) if yes else None for yes in wanted]


class FusedSoftmax(Function):
    """A loss over rows. If it is a single number, forward already computes its gradients."""

    @staticmethod
    def forward(ctx, input, target, class_weight, normalizer, call):
        mask = ctx.needs_input_grad[:2]
        ops, op_args = call.kernels()
        arguments = (target, class_weight, normalizer, *op_args, call.out_dtype)
        if call.in_place:
            *outputs, denominator = ops.softmax_forward_(input, *arguments, call.per_row)
            if native_extension is None:  # the extension itself counts writes of raw ops
                torch.autograd.graph.increment_version(input)
            grads, ctx.version = [input.detach(), None], input._version
        else:
            wanted = mask if call.gives_a_number else (False, False)
            found = ops.softmax_forward(input, *arguments, (*call.per_row, *wanted))
            outputs, denominator, grads = found[:4], found[4], found[5:]
        ctx.call = call
        ctx.ready = call.gives_a_number
        saved = (
            None if call.in_place else input,
            target,
            class_weight,
            normalizer if denominator is None else denominator,
        )
        if torch.compiler.is_compiling():
            ctx.save_for_backward(*saved, *grads)
        else:
            ctx.grads = grads
            ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        if outputs[3] is not None:
            ctx.mark_non_differentiable(outputs[3])
        return _chosen(outputs, call.wanted)

    @staticmethod
    def backward(ctx, *grad_outputs):
        call, mask = ctx.call, ctx.needs_input_grad[:2]
        cotangents = _placed(grad_outputs, call.wanted)[:3]
        if all(cotangent is None for cotangent in cotangents):
            return (None,) * 5
        if torch.compiler.is_compiling():
            return *_compiled_gradients(ctx, cotangents, call, mask), None, None, None
        grads, ctx.grads = ctx.grads, None
        grad_output, *others = cotangents
        simple = grad_output is not None and not any(other is not None for other in others)
        differentiated = torch.is_grad_enabled() or any(
            c is not None and is_transformed(c) for c in cotangents
        )
        if call.in_place:
            if grads is None or differentiated or not simple:
                raise RuntimeError(
                    "with inplace=True the gradient has taken the place of the logits: it can be "
                    "had once, of the loss alone, and cannot be differentiated"
                )
            if grads[0]._version != ctx.version:
                raise RuntimeError(
                    "the logits, whose place the gradient has taken with inplace=True, have been "
                    "modified by an inplace operation since"
                )
            kernel_ops(call.backend).elementwise_rescale_([grads[0]], grad_output)
            return grads[0], None, None, None, None
        inputs = ctx.saved_tensors
        if differentiated:
            found = _differentiable_gradients(cotangents, inputs, call, mask)
            return *found, None, None, None
        ops, op_args = call.kernels()
        if not simple or grads is None or not ctx.ready:
            grads = ops.softmax_backward(*cotangents, *inputs, *op_args, mask)
            return *grads, None, None, None
        present = [grad for grad in grads if grad is not None]
        if any(grad.dtype == torch.float16 for grad in present):
            # Recompute: scaling a float16 gradient of a mean afterwards would lose digits.
            ops.softmax_backward_(present, grad_output, *inputs, *op_args, mask)
        else:
            ops.elementwise_rescale_(present, grad_output)
        return *grads, None, None, None


def _compiled_gradients(ctx, cotangents, call, mask) -> tuple:
    """Returns the gradients without mutation, so that the compiler can fuse the scaling into
    subsequent ops."""
    # Compiled autograd gets here from an eager forward pass, which saved no gradients. A gradient
    # that has overwritten the logits can then be returned only by eager execution.
    if call.in_place and len(ctx.saved_tensors) == 4:
        raise RuntimeError("not to be traced: the gradient is not among what was saved")
    input, target, class_weight, normalizer, *grads = ctx.saved_tensors
    grad_output, *others = cotangents
    simple = grad_output is not None and not any(other is not None for other in others)
    half = any(g is not None and g.dtype == torch.float16 for g in grads)
    if simple and grads and call.gives_a_number and not half:
        return tuple(None if g is None else (g * grad_output).to(g.dtype) for g in grads)
    ops, op_args = call.kernels()
    return ops.softmax_backward(
        *cotangents, input, target, class_weight, normalizer, *op_args, mask
    )


def _differentiable_gradients(cotangents, inputs, call, mask) -> list:
    """Computes the gradients from the reference formulas, so that torch can differentiate them."""
    input, target, class_weight, normalizer = inputs
    given = [cotangent is not None for cotangent in cotangents]

    def outputs(*moving):
        x, y = _placed(moving, mask)
        x, y = input if x is None else x, target if y is None else y
        rows = reference.softmax(x, y, class_weight, normalizer, *call.op_args, call.out_dtype)
        return _chosen(rows[:3], given)

    moving = _chosen((input, target), mask)
    return _placed(formula_gradients(outputs, moving, _chosen(cotangents, given)), mask)


def _differentiable_backward(grad_output, input, target, class_weight, normalizer, mask, *args):
    """Called by csrc/ops/softmax/fused.cpp. Returns the gradients, None where not requested."""
    call = SoftmaxCall("native", *args)
    inputs = (input, target, class_weight, normalizer)
    return tuple(_differentiable_gradients((grad_output, None, None), inputs, call, mask))


if native_extension is not None:
    native_extension.set_differentiable_softmax_backward(_differentiable_backward)


def softmax(
    input: Tensor,  # scores, with the classes in dimension call.dim
    target: Tensor,  # class indices, or a distribution per row
    class_weight: Tensor | None,  # [classes]
    normalizer: Tensor | None,  # 0-d
    call: SoftmaxCall,
) -> Outputs:
    """Computes a loss over rows and the requested per-row outputs. Not differentiable with respect
    to ``normalizer``."""
    # Transforms and gradients with respect to class weights have no kernels. The plain formulas
    # serve them, because torch can differentiate those itself.
    weight_moves = class_weight is not None and class_weight.requires_grad
    differentiated = torch.is_grad_enabled() and (
        input.requires_grad or target.requires_grad or weight_moves
    )
    if call.backend == "reference" or transforms_active() or (differentiated and weight_moves):
        if call.target_form == "labels" and can_look(target):
            require_classes(target, input.shape[call.dim], call.ignore_index)
        rows = reference.softmax(
            input, target, class_weight, normalizer, *call.op_args, call.out_dtype
        )
        return _chosen((*rows[:3], rows[3].detach()), call.wanted)
    if differentiated:
        plain = not (any(call.per_row) or call.in_place or torch.compiler.is_compiling())
        if call.backend == "native" and plain:
            return (
                native_extension.fused_softmax(
                    input, target, class_weight, normalizer, *call.op_args, call.out_dtype
                ),
            )
        tensors = distinct(input, target, class_weight)
        return FusedSoftmax.apply(*tensors, normalizer, call)
    ops, op_args = call.kernels()
    found = ops.softmax_forward(
        input, target, class_weight, normalizer, *op_args, call.out_dtype,
        (*call.per_row, False, False),
    )  # fmt: skip
    return _chosen(found[:4], call.wanted)
