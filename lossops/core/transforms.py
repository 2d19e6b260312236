"""Detection of functorch transforms and forward-mode AD; helpers for autograd Functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def transforms_active() -> bool:
    """Whether a functorch transform or forward-mode AD is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_transformed(grad_output: Tensor) -> bool:
    """Whether a result computed from ``grad_output`` may be differentiated or batched: under
    torch.func, in forward mode, or under the legacy vmap behind
    ``torch.autograd.grad(is_grads_batched=True)``."""
    return transforms_active() or torch._C._functorch.is_legacy_batchedtensor(grad_output)


def is_functionalized() -> bool:
    """Whether torch.func.functionalize is active, which does not support autograd.Function."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(i.key() == torch._C._functorch.TransformType.Functionalize for i in stack)


def distinct(*tensors: Tensor | None) -> list[Tensor | None]:
    """Replaces repeated tensors by views, because torch.compile does not accept a tensor twice as
    an argument of a Function."""
    found: list[Tensor | None] = []
    for tensor in tensors:
        if tensor is not None and any(tensor is other for other in found):
            tensor = tensor.view_as(tensor)
        found.append(tensor)
    return found
