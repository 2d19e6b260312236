"""A fast path for plain calls.

For a loss over a few rows, the checks in Python take longer than computing the loss and its
gradient. The functions with the fastest counterparts in torch therefore first try whether the
extension accepts the call as it is: ordinary tensors, arguments of the expected types, no transform
and no tracing (``csrc/ops/plain.h``). The extension runs the same kernels, with bitwise identical
results. All other calls, including invalid ones, go through the checks in Python.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lossops.core import backends, labels
from lossops.core.backends import native_extension


def _may_be_plain() -> bool:
    """Whether the extension would run a plain call and no label checks are requested."""
    return (
        not torch.compiler.is_compiling()
        and backends.chosen() in (None, "native")
        and not labels.labels_are_checked()
        and native_extension is not None
    )


def cross_entropy(
    input, target, weight, ignore_index, reduction, label_smoothing=0.0, z_loss=0.0,
    temperature=1.0, form="logits",
) -> Tensor | None:  # fmt: skip
    """Computes :func:`lossops.functional.cross_entropy`, or ``nll_loss`` if ``form`` is
    "log_probs". Returns None if the call is not plain."""
    if not _may_be_plain():
        return None
    return native_extension.plain_cross_entropy(
        input, target, weight, ignore_index, reduction, label_smoothing, z_loss, temperature, form
    )


def multi_margin_loss(input, target, p, margin, reduction) -> Tensor | None:
    """Computes :func:`lossops.functional.multi_margin_loss`. Returns None if the call is not
    plain."""
    if not _may_be_plain():
        return None
    return native_extension.plain_multi_margin(input, target, p, margin, reduction)
