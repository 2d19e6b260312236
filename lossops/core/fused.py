"""The autograd Function of losses whose forward pass also computes their gradients.

If a loss is a single number, the forward kernel computes its gradients for ``grad_output == 1`` in
the same pass. The first ``backward()`` returns them, scaled in place by ``grad_output`` unless it
is 1. Any other ``backward()`` recomputes them from the inputs with the backward kernel. Gradients
that are differentiated themselves come from formulas, or from kernels of their own.

:class:`OnePass` is a call of a loss. A family derives a class from it. :func:`one_pass` runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function

from lossops.core.backends import kernel_ops, native_extension, settled
from lossops.core.formulas import formula_gradients
from lossops.core.library import KernelOps
from lossops.core.transforms import distinct, is_transformed, transforms_active

Mask = tuple[bool, ...]
Gradients = tuple[Tensor | None, ...]


def chosen(values, mask: Mask) -> tuple:
    """The values at the positions in the mask. Further values are left out."""
    return tuple(value for value, wanted in zip(values, mask, strict=False) if wanted)


def placed(values, mask: Mask) -> tuple:
    """Expands values to the positions in the mask, with None elsewhere."""
    remaining = iter(values)
    return tuple(next(remaining) if wanted else None for wanted in mask)


def merged(values, mask: Mask, replacements) -> tuple:
    """Replaces the values at the positions in the mask. Further values are kept."""
    remaining = iter(replacements)
    found = [next(remaining) if new else value for value, new in zip(values, mask, strict=False)]
    return *found, *values[len(mask) :]


@dataclass(eq=False)  # a frozen dataclass takes four times as long to create
class OnePass:
    """The arguments of a loss other than its tensors, and what a family knows of its losses.

    The tensors of a call are a tuple, in which those that may require a gradient come first. Masks
    of gradients have an entry for each of these. Not a tuple itself, because torch.func would
    flatten a tuple among the arguments of a Function.
    """

    backend: str
    arguments: Any  # of the raw ops, up to out_dtype: a NamedTuple
    out_dtype: torch.dtype

    Arguments: ClassVar[type]
    family: ClassVar[str]  # the names of the raw ops begin with it
    moving: ClassVar[int]  # number of tensors that may require a gradient
    node: ClassVar[str | None] = None  # the function of the extension that runs the call
    recomputes_halves: ClassVar[bool] = True  # whether an op ``…_backward_`` does
    in_place: ClassVar[bool] = False  # whether the gradient overwrites the first tensor
    differentiable: ClassVar[int] = 1  # number of outputs that have derivatives; they come first

    def kernels(self) -> tuple[KernelOps, tuple]:
        """The raw ops that run the call, and ``arguments`` in the form that they take."""
        arguments = self.arguments
        params = settled(arguments.params)
        if params is not arguments.params:
            arguments = arguments._replace(params=params)
        return kernel_ops(self.backend, params), arguments

    @property
    def gives_a_number(self) -> bool:
        return self.arguments.gives_a_number

    def has_gradients_ready(self, tensors: tuple, mask: Mask) -> bool:
        """Whether the forward pass computes the gradients. The float16 gradient of a mean may be so
        small that scaling it afterwards loses digits, which loss scaling is meant to avoid. The
        backward pass recomputes it with ``grad_output`` and, if it cannot do so in place, is the
        first to compute it."""
        if not self.gives_a_number:
            return False
        in_place = self.recomputes_halves and not torch.compiler.is_compiling()
        return in_place or not _has_halves(chosen(tensors, mask))

    # ---- What differs between families.

    def op_tensors(self, tensors: tuple) -> tuple:
        """The tensors in the form that the raw ops take."""
        return tensors

    def forward(self, tensors: tuple, mask: Mask) -> tuple[tuple, tuple, Gradients]:
        """Returns the outputs, the tensors that a backward pass reads, and the gradients in the
        mask."""
        ops, arguments = self.kernels()
        op = getattr(ops, f"{self.family}_forward")
        value, *grads = op(*self.op_tensors(tensors), *arguments, self.out_dtype, mask)
        return (value,), tensors, tuple(grads)

    def backward(self, cotangents: tuple, tensors: tuple, mask: Mask) -> Gradients:
        ops, arguments = self.kernels()
        op = getattr(ops, f"{self.family}_backward")
        return op(*cotangents, *self.op_tensors(tensors), *arguments, mask)

    def scale(self, grads: Gradients, grad_output: Tensor, tensors: tuple, mask: Mask) -> Gradients:
        """Multiplies the gradients of a forward pass by ``grad_output``: in place, but for
        torch.compile, which can fuse a multiplication out of place into the ops that follow."""
        if torch.compiler.is_compiling():
            return tuple(None if g is None else (g * grad_output).to(g.dtype) for g in grads)
        ops, arguments = self.kernels()
        present = [grad for grad in grads if grad is not None]
        if _has_halves(present) and not self.in_place:
            op = getattr(ops, f"{self.family}_backward_")
            op(present, grad_output, *self.op_tensors(tensors), *arguments, mask)
        else:
            ops.elementwise_rescale_(present, grad_output)
        return grads

    def formula(self, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """The outputs in plain torch."""
        raise NotImplementedError

    def unfused(self, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """The outputs where the kernels do not serve: on the reference, under transforms, and for
        derivatives by tensors that have no gradient kernel."""
        return self.formula(*tensors)

    def differentiable_gradients(
        self, cotangents: tuple[Tensor | None, ...], tensors: tuple, mask: Mask
    ) -> Gradients:
        """The gradients in the mask, in a form that autograd can differentiate again."""
        given = tuple(cotangent is not None for cotangent in cotangents)

        def outputs(*moving):
            return chosen(self.formula(*merged(tensors, mask, moving)), given)

        moving = chosen(tensors, mask)
        return placed(formula_gradients(outputs, moving, chosen(cotangents, given)), mask)

    def __init_subclass__(cls):
        _CALLS[cls.family] = cls


_CALLS: dict[str, type[OnePass]] = {}


def _has_halves(tensors) -> bool:
    return any(tensor is not None and tensor.dtype == torch.float16 for tensor in tensors)


class Fused(Function):
    """A call of a loss that has its gradients ready.

    They are an attribute of ``ctx`` and not saved tensors, because the version check of saved
    tensors would reject the scaling in place.
    """

    @staticmethod
    def forward(ctx, call: OnePass, *tensors: Tensor | None):
        mask = ctx.needs_input_grad[1 : 1 + call.moving]
        ready = call.has_gradients_ready(tensors, mask)
        outputs, kept, grads = call.forward(tensors, mask if ready else (False,) * call.moving)
        grads = grads if ready else ()
        ctx.call = call
        if torch.compiler.is_compiling():
            ctx.save_for_backward(*kept, *grads)
        else:
            ctx.grads = grads
            ctx.save_for_backward(*kept)
        if call.in_place:
            ctx.version = grads[0]._version
        ctx.set_materialize_grads(False)
        if len(outputs) > call.differentiable:
            ctx.mark_non_differentiable(*outputs[call.differentiable :])
        return outputs

    @staticmethod
    def backward(ctx, *cotangents: Tensor | None):
        others = len(ctx.needs_input_grad) - 1 - ctx.call.moving
        if all(cotangent is None for cotangent in cotangents):
            return (None,) * len(ctx.needs_input_grad)
        return None, *_gradients(ctx, ctx.call, cotangents), *[None] * others


def _gradients(ctx, call: OnePass, cotangents: tuple) -> Gradients:
    mask = ctx.needs_input_grad[1 : 1 + call.moving]
    count = len(ctx.needs_input_grad) - 1
    grad_output = cotangents[0]
    of_loss = grad_output is not None and all(other is None for other in cotangents[1:])
    if torch.compiler.is_compiling():
        # Compiled autograd may get here from an eager forward pass, which saved no gradients. One
        # that has overwritten the first tensor can then be returned only by eager execution.
        if call.in_place:
            raise RuntimeError("not to be traced: the gradient is not among what was saved")
        tensors, grads = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        if grads and of_loss:
            return call.scale(grads, grad_output, tensors, mask)
        return call.backward(cotangents, tensors, mask)
    grads, ctx.grads = ctx.grads, ()
    differentiated = torch.is_grad_enabled() or any(
        cotangent is not None and is_transformed(cotangent) for cotangent in cotangents
    )
    if call.in_place:
        if not grads or differentiated or not of_loss:
            raise RuntimeError(
                "with inplace=True the gradient has taken the place of the logits: it can be had "
                "once, of the loss alone, and cannot be differentiated"
            )
        if grads[0]._version != ctx.version:
            raise RuntimeError(
                "the logits, whose place the gradient has taken with inplace=True, have been "
                "modified by an inplace operation since"
            )
    tensors = ctx.saved_tensors
    if differentiated:
        return call.differentiable_gradients(cotangents, tensors, mask)
    if grads and of_loss:
        return call.scale(grads, grad_output, tensors, mask)
    return call.backward(cotangents, tensors, mask)


def one_pass(call: OnePass, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """Runs a call, and returns its outputs."""
    if call.backend == "reference" or transforms_active():
        return call.unfused(*tensors)
    if call.backend == "native" and (node := call.node) and not torch.compiler.is_compiling():
        run = getattr(native_extension, node)
        loss = run(*tensors, *call.arguments, call.out_dtype)
        return call.unfused(*tensors) if loss is None else (loss,)
    if torch.is_grad_enabled():
        moves = [tensor is not None and tensor.requires_grad for tensor in tensors]
        if any(moves[call.moving :]):
            return call.unfused(*tensors)
        if any(moves):
            # A symbol of torch.compile has to be used outside of a Function before it is inside.
            settled(call.arguments.params)
            return Fused.apply(call, *distinct(*tensors))
    return call.forward(tensors, (False,) * call.moving)[0]


def _differentiable_backward(family, tensors, arguments, out_dtype, grad_output, mask) -> Gradients:
    """The differentiable gradients. Called by csrc/ops/fused.h."""
    kind = _CALLS[family]
    call = kind("native", kind.Arguments(*arguments), out_dtype)
    return call.differentiable_gradients((grad_output,), tuple(tensors), tuple(mask))


if native_extension is not None:
    native_extension.set_differentiable_backward(_differentiable_backward)
