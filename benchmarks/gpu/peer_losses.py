"""The losses of other libraries, as mean losses of (logits, target), rows first.

Each function imports its library and returns the loss.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def liger_cross_entropy() -> Loss:
    """Its forward pass overwrites the logits with the gradient."""
    from liger_kernel.transformers.functional import liger_cross_entropy

    return liger_cross_entropy


def liger_kl_divergence() -> Loss:
    """It takes log-probabilities and probabilities, which its users compute with torch."""
    from liger_kernel.transformers import LigerKLDIVLoss

    divergence = LigerKLDIVLoss(reduction="batchmean")

    def loss(input: Tensor, target: Tensor) -> Tensor:
        return divergence(input.log_softmax(1), target.softmax(1))

    return loss


def liger_js_divergence() -> Loss:
    """It takes log-probabilities, which its users compute with torch."""
    from liger_kernel.transformers import LigerJSD

    divergence = LigerJSD()  # with equal weights 1/2; averages over the rows

    def loss(input: Tensor, target: Tensor) -> Tensor:
        return divergence(input.log_softmax(1), target.log_softmax(1))

    return loss


def quack_cross_entropy() -> Loss:
    """It does not overwrite the logits by default."""
    from quack.cross_entropy import cross_entropy

    def loss(input: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(input, target, reduction="mean")

    return loss
