"""What differentiates, batches or traces a call, and helpers of autograd Functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def transforms_active() -> bool:
    """Whether torch.func or forward-mode AD is looking."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_transformed(grad_output: Tensor) -> bool:
    """Whether what comes of it will be differentiated, or is a batch: under torch.func, forward
    mode, or the older vmap behind ``torch.autograd.grad(is_grads_batched=True)``."""
    return transforms_active() or torch._C._functorch.is_legacy_batchedtensor(grad_output)


def is_functionalized() -> bool:
    """Whether torch.func.functionalize looks on, which knows no autograd.Function."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(i.key() == torch._C._functorch.TransformType.Functionalize for i in stack)


def distinct(*tensors: Tensor | None) -> list[Tensor | None]:
    """The same, a tensor that comes again being a view of itself: torch.compile takes none twice
    as an argument of a Function."""
    found: list[Tensor | None] = []
    for tensor in tensors:
        if tensor is not None and any(tensor is other for other in found):
            tensor = tensor.view_as(tensor)
        found.append(tensor)
    return found


def merge(saved, chosen, replacements):
    remaining = iter(replacements)
    return [next(remaining) if c else t for t, c in zip(saved, chosen, strict=True)]
