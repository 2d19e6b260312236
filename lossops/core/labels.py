"""Labels that are no class, looked for before a loss is computed.

On a GPU a loss cannot raise without waiting for the device: the row of such a label is NaN.
``with lossops.label_checks(): …`` and the environment variable ``LOSSOPS_LABEL_CHECKS=1`` make
every loss wait, and raise with the row and the label.
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

# As in lossops.core.backends: one count for the whole process, which torch.compile can guard.
_open = int(os.environ.get("LOSSOPS_LABEL_CHECKS", "0") not in ("", "0"))
_lock = threading.Lock()


@contextlib.contextmanager
def label_checks() -> Iterator[None]:
    """Has every loss in the ``with`` block, of every thread, raise for a label that is no class.

    On the CPU losses do so anyway. On a GPU each call then waits for the device. Under
    ``torch.compile`` and ``torch.func``'s transforms nothing is checked.

    Raises:
        IndexError: in the block, with the row and its label.

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
    """Whether a ``with`` block of label_checks, or the environment, asks for it."""
    return _open > 0


def _add(more: int) -> None:
    global _open
    with _lock:
        _open += more


def can_look(tensor: Tensor) -> bool:
    """Whether to read its numbers makes nobody wait, and is possible."""
    return tensor.device.type == "cpu" and not _is_traced() and not isinstance(tensor, FakeTensor)


def _is_traced() -> bool:
    """Whether somebody looks on who needs what holds for all numbers."""
    return (
        torch.compiler.is_compiling()
        or transforms_active()
        or torch._C._get_tracing_state() is not None
        or get_proxy_mode() is not None
    )


def check_range(labels: Tensor, classes: int, ignore_index: int) -> None:
    """Raises for a label that is neither a class nor ignored, where that is asked for."""
    if not labels_are_checked() or labels.device.type == "meta" or _is_traced():
        return
    require_classes(labels, classes, ignore_index)


def require_classes(labels: Tensor, classes: int, ignore_index: int) -> None:
    """Raises for a label that is neither a class nor ignored. Waits for the labels."""
    labels = gathered(labels.detach()).long()  # in uint8, an ignore_index of -100 would be 156
    outside = (labels != ignore_index) & ((labels < 0) | (labels >= classes))
    if not outside.any():
        return
    row = outside.nonzero()[0].tolist()
    raise IndexError(
        f"Target {labels[tuple(row)].item()} is out of bounds, in row {tuple(row)}: the classes "
        f"are 0 to {classes - 1}"
    )
