"""The calls of losses over rows of class scores, as the autograd Function runs them.

The forward kernel computes the row losses and the requested per-row outputs (lse, entropy,
accuracy). Higher-order derivatives, ``torch.func`` transforms, forward-mode AD and gradients by
class weights use the formulas in :mod:`lossops.softmax.reference`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lossops.core.backends import native_extension
from lossops.core.fused import OnePass, chosen, placed
from lossops.core.labels import can_look, require_classes
from lossops.softmax import reference
from lossops.softmax.ops import SoftmaxArguments

Outputs = tuple[Tensor, ...]  # the loss, then lse, entropy and accuracy where requested


@dataclass(eq=False)
class SoftmaxCall(OnePass):
    """A loss over rows, of these tensors: scores with the classes in dimension ``dim``; class
    indices, or a distribution per row; class weights [classes]; a normalizer, 0-d."""

    per_row: tuple[bool, bool, bool] = (False, False, False)  # lse, entropy, accuracy
    in_place: bool = False

    Arguments = SoftmaxArguments
    family = "softmax"
    moving = 2

    @property
    def wanted(self) -> tuple[bool, ...]:
        return (True, *self.per_row)

    @property
    def node(self) -> str | None:
        return None if self.in_place or True in self.per_row else "fused_softmax"

    @property
    def differentiable(self) -> int:
        return sum(self.wanted[:3])  # an accuracy is not

    def forward(self, tensors, mask):
        ops, arguments = self.kernels()
        if self.in_place:
            input = tensors[0]
            *outputs, denominator = ops.softmax_forward_(
                *tensors, *arguments, self.out_dtype, self.per_row
            )
            if native_extension is None:  # the extension itself counts writes of raw ops
                torch.autograd.graph.increment_version(input)
            tensors, grads = (None, *tensors[1:]), (input.detach(), None)
        else:
            *outputs, denominator, by_input, by_target = ops.softmax_forward(
                *tensors, *arguments, self.out_dtype, (*self.per_row, *mask)
            )
            grads = (by_input, by_target)
        if denominator is not None:
            tensors = (*tensors[:3], denominator)
        return chosen(outputs, self.wanted), tensors, grads

    def backward(self, cotangents, tensors, mask):
        upstream = placed(cotangents, self.wanted)[:3]  # of the loss, lse and the entropy
        return super().backward(upstream, tensors, mask)

    def formula(self, *tensors: Tensor | None) -> Outputs:
        *rows, accuracy = reference.softmax(*tensors, *self.arguments, self.out_dtype)
        return chosen((*rows, accuracy.detach()), self.wanted)

    def unfused(self, input: Tensor, target: Tensor, *others: Tensor | None) -> Outputs:
        call = self.arguments
        if call.target_form == "labels" and can_look(target):
            require_classes(target, input.shape[call.dim], call.ignore_index)
        return self.formula(input, target, *others)
