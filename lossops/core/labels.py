"""Checks for out-of-range labels, made before a loss is computed.

On a GPU a loss cannot raise without a device sync, so the row of such a label is NaN.
``with lossops.label_checks(): …`` and the environment variable ``LOSSOPS_LABEL_CHECKS=1`` make
every loss sync, and raise an error that names the row and the label.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from lossops.core.spread import gathered
from lossops.core.transforms import transforms_active

# A process-wide global that torch.compile can guard, as in lossops.core.backends.
_open = int(os.environ.get("LOSSOPS_LABEL_CHECKS", "0") not in ("", "0"))
_lock = threading.Lock()


@contextlib.contextmanager
def label_checks() -> Iterator[None]:
    """Makes every loss raise for out-of-range labels, in every thread, while the ``with`` block is
    open.

    On the CPU, losses always raise for them. On a GPU, each call then syncs with the device.
    Nothing is checked under ``torch.compile`` and ``torch.func`` transforms.

    Raises:
        IndexError: from a loss in the block, with the row and its label. The margin losses
            of several classes raise RuntimeError instead, as they do on the CPU.

    Example:
        >>> import torch, lossops
        >>> with lossops.label_checks():
        ...     lossops.functional.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 2])).item()
        1.0986123085021973
    """
    _add(1)
    try:
        yield
    finally:
        _add(-1)


def labels_are_checked() -> bool:
    """Whether a :func:`label_checks` block or the environment variable requests label checks."""
    return _open > 0


def _add(more: int) -> None:
    global _open
    with _lock:
        _open += more


def can_look(tensor: Tensor) -> bool:
    """True if the values can be read without a device sync."""
    return tensor.device.type == "cpu" and not _is_traced() and not isinstance(tensor, FakeTensor)


def _is_traced() -> bool:
    """Whether the call is traced or transformed, so that it must not depend on tensor values."""
    return (
        torch.compiler.is_compiling()
        or transforms_active()
        or torch._C._get_tracing_state() is not None
        or get_proxy_mode() is not None
    )


def are_checked(labels: Tensor) -> bool:
    """True if label checks are requested and these labels have values."""
    return labels_are_checked() and labels.device.type != "meta" and not _is_traced()


def check_range(labels: Tensor, classes: int, ignore_index: int) -> None:
    """Raises for a label that is neither a class nor ignored, if label checks are requested."""
    if are_checked(labels):
        require_classes(labels, classes, ignore_index)


def require_classes(labels: Tensor, classes: int, ignore_index: int) -> None:
    """Raises for a label that is neither a class nor ignored. Syncs with the labels' device."""
    labels = gathered(labels.detach()).long()  # in uint8, an ignore_index of -100 would be 156
    outside = (labels != ignore_index) & ((labels < 0) | (labels >= classes))
    if not outside.any():
        return
    row = outside.nonzero()[0].tolist()
    raise IndexError(
        f"Target {labels[tuple(row)].item()} is out of bounds, in row {tuple(row)}: the classes "
        f"are 0 to {classes - 1}"
    )
