"""Tensors that are spread over processes (``DTensor``): the formulas in plain torch compute their
losses, and torch sends what has to be sent.

Formulas over rows are given whole rows, also of scores that are sharded by class: what torch makes
of such scores by itself is not always right.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_spread(tensor) -> bool:
    """Whether it is a DTensor. Not by its class, whose import takes long."""
    return type(tensor) is not Tensor and hasattr(tensor, "device_mesh")


def whole_along(dim: int, tensor):
    """The tensor; if it is spread, whole along a dimension in every process."""
    if not is_spread(tensor):
        return tensor
    from torch.distributed.tensor import Replicate

    dim %= tensor.dim() or 1
    placements = [
        Replicate() if p.is_partial() or getattr(p, "dim", -1) == dim else p
        for p in tensor.placements
    ]
    return tensor.redistribute(placements=placements)


def gathered(tensor: Tensor) -> Tensor:
    """All of a tensor, in every process. By what all have, all raise; else one would wait for ever
    for another that has raised."""
    return tensor.full_tensor() if is_spread(tensor) else tensor


def beside(tensor: Tensor | None, like) -> Tensor | None:
    """A tensor that is the same in every process, as one to compute with beside spread ones."""
    if tensor is None or is_spread(tensor) or not is_spread(like):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    placements = [Replicate()] * like.device_mesh.ndim
    return DTensor.from_local(tensor, like.device_mesh, placements, run_check=False)


def is_whole(tensor) -> bool:
    """Whether every process has all of it."""
    return is_spread(tensor) and all(p.is_replicate() for p in tensor.placements)


def leaves_softmax_to_the_loss(function: str, log_probs, dim: int) -> bool:
    """Whether these are of a log_softmax that passes gradients on as they are, because in torch's
    loss_parallel() a loss has the derivative of both: that by the logits."""
    dispatcher = getattr(log_probs, "_op_dispatcher", None)
    handlers = getattr(dispatcher, "_custom_op_handlers", {})
    sharded = any(p.is_shard(dim) for p in log_probs.placements)
    if not sharded or torch.ops.aten._log_softmax.default not in handlers:
        return False
    if log_probs.grad_fn is None or log_probs.grad_fn.name() == "LogSoftmaxBackward0":
        return log_probs.grad_fn is not None
    raise RuntimeError(
        f"{function}(): under loss_parallel() log-probabilities should come of log_softmax itself, "
        f"which there has no derivative of its own, got those of {log_probs.grad_fn.name()}"
    )
