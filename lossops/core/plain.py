"""A short way for plain calls.

Of a loss over a few rows, the checks in Python take longer than loss and gradient. So the functions
whose counterparts in torch are the fastest first try whether the extension takes the call as it is:
ordinary tensors, arguments of the expected types, nothing that transforms or records it
(``csrc/ops/plain.h``). It runs the same kernels, to the same bits. All other calls, and all that
are wrong, it leaves to the checks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lossops.core import backends
from lossops.core import labels as checking
from lossops.core.backends import native_extension


def _may_be_plain() -> bool:
    """Whether the extension would run a plain call, and nobody asked for more checks."""
    return (
        not torch.compiler.is_compiling()
        and backends.chosen() in (None, "native")
        and not checking.labels_are_checked()
        and native_extension is not None
    )


def cross_entropy(
    input, target, weight, ignore_index, reduction, label_smoothing=0.0, z_loss=0.0,
    temperature=1.0, form="logits",
) -> Tensor | None:  # fmt: skip
    """:func:`lossops.functional.cross_entropy`, and of ``form`` "log_probs" ``nll_loss``; or None
    where the call is not plain."""
    if not _may_be_plain():
        return None
    return native_extension.plain_cross_entropy(
        input, target, weight, ignore_index, reduction, label_smoothing, z_loss, temperature, form
    )


def multi_margin_loss(input, target, p, margin, reduction) -> Tensor | None:
    """:func:`lossops.functional.multi_margin_loss`, or None where the call is not plain."""
    if not _may_be_plain():
        return None
    return native_extension.plain_multi_margin(input, target, p, margin, reduction)
