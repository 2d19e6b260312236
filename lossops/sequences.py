"""Losses of sequences; public as part of :mod:`lossops.functional`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lossops.core.arguments import check_reduction
from lossops.core.declaration import LossModule, public
from lossops.core.overrides import TORCHS

__all__ = [
    "CTCLoss",
    "ctc_loss",
]


@public()
def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | Sequence[int],
    target_lengths: Tensor | Sequence[int],
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    r"""Connectionist temporal classification: ``-log Σ_(alignments) Π_t p_t``.

    Use it to train sequence models if the alignment of labels to time steps is unknown.

    torch's own kernels compute it, because it is a dynamic programme over time and not a loss over
    rows.

    Args:
        log_probs: log-probabilities, of shape (T, N, C) or (T, C).
        targets: labels, of shape (N, S), or concatenated, of shape (Σ target_lengths).
        input_lengths: lengths of the sequences, of shape (N) or ().
        target_lengths: lengths of the labels, of shape (N) or ().
        blank: the class that stands for no label.
        reduction: "none", "mean", "sum" or "sample". "sample" is the same as "none", because a
            sequence is a sample. "mean" first divides each loss by the length of its labels.
        zero_infinity: replace infinite losses and their gradients by 0.

    Returns:
        The loss: a scalar, or a number per sequence.

    Raises:
        ValueError: if ``reduction`` is unknown. Otherwise the same exceptions as torch's function.

    Is :func:`torch.nn.functional.ctc_loss`. Graves et al., Connectionist Temporal Classification,
    2006.

    Example:
        >>> import torch, lossops.functional as F
        >>> log_probs = torch.full((4, 1, 3), 1 / 3).log()
        >>> F.ctc_loss(log_probs, torch.tensor([[1, 2]]), [4], [2], reduction="sum")
        tensor(1.6864)
    """
    check_reduction(reduction)
    reduction = "none" if reduction == "sample" else reduction
    return TORCHS["ctc_loss"](
        log_probs, targets, input_lengths, target_lengths, blank, reduction, zero_infinity
    )


class CTCLoss(LossModule, torch.nn.CTCLoss, function=ctc_loss):
    """Connectionist temporal classification; see :func:`lossops.functional.ctc_loss`."""
