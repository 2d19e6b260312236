"""Support for ``DTensor``: the formulas in plain torch compute the losses, and torch handles the
communication.

Formulas over rows receive whole rows, even if the scores are sharded by class, because torch's own
results for such scores are not always correct.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_spread(tensor) -> bool:
    """Whether it is a DTensor. Avoids isinstance, because importing the class is slow."""
    return type(tensor) is not Tensor and hasattr(tensor, "device_mesh")


def whole_along(dim: int, tensor):
    """Returns the tensor. A DTensor is redistributed so that no process has only a part of
    ``dim``."""
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
    """Gathers the whole tensor in every process. A check of it then raises in all of them. If only
    one process raised, the others would wait for it forever."""
    return tensor.full_tensor() if is_spread(tensor) else tensor


def beside(tensor: Tensor | None, like) -> Tensor | None:
    """Converts a tensor that is equal in every process to a replicated DTensor if ``like`` is a
    DTensor, so that they can be combined."""
    if tensor is None or is_spread(tensor) or not is_spread(like):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    placements = [Replicate()] * like.device_mesh.ndim
    return DTensor.from_local(tensor, like.device_mesh, placements, run_check=False)


def is_whole(tensor) -> bool:
    """Whether it is a DTensor that is replicated in every process."""
    return is_spread(tensor) and all(p.is_replicate() for p in tensor.placements)


def leaves_softmax_to_the_loss(function: str, log_probs, dim: int) -> bool:
    """Whether ``log_probs`` come from a log_softmax that passes gradients through unchanged. Under
    torch's loss_parallel() the loss returns the gradient of both, with respect to the logits."""
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
