"""Which backend runs a call.

``native``     the compiled kernels: C++ on the CPU, CUDA C++ on the GPU. The default.
``triton``     Triton kernels, on the GPU (and on the CPU under TRITON_INTERPRET=1, for tests).
``reference``  plain torch.

``with lossops.backend("triton"): …`` and the environment variable ``LOSSOPS_BACKEND`` choose. A
backend that was chosen and cannot run a call raises. Without a choice, a call goes to the first
backend that can run it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from lossops import calls as _calls  # noqa: F401  (declares the raw ops)
from lossops import library

NAMES = ("native", "triton", "reference")

try:
    from lossops import _C as native_extension
except ImportError as error:  # not built: the library works on the reference
    native_extension = None
    native_import_error: ImportError | None = error
    if importlib.util.find_spec("lossops._C") is not None:
        warnings.warn(
            f"lossops runs on its reference: the compiled extension cannot be loaded ({error}). "
            "It may have been built for another torch.",
            RuntimeWarning,
            stacklevel=2,
        )
else:
    native_import_error = None


def _checked(name: str, origin: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{origin} should be one of {', '.join(NAMES)}, got {name!r}")
    return name


_from_environment = os.environ.get("LOSSOPS_BACKEND") or None
if _from_environment is not None:
    _checked(_from_environment, "LOSSOPS_BACKEND")

# One choice for the whole process. A plain variable, because torch.compile can read and guard it;
# context and thread-local variables it cannot.
_chosen: str | None = _from_environment
_choices: list[list[str]] = []  # one entry per `with` block that is open, of whatever thread
_lock = threading.Lock()


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Runs all losses in the ``with`` block, of every thread, on one backend.

    Args:
        name: "native", "triton" or "reference".

    Raises:
        ValueError: if there is no such backend.

    Example:
        >>> import torch, lossops
        >>> with lossops.backend("reference"):
        ...     lossops.functional.mse_loss(torch.ones(3), torch.zeros(3)).item()
        1.0
    """
    choice = [_checked(name, "backend")]  # a list, to be told from another choice of that name
    with _lock:
        _choices.append(choice)
        _settle_choice()
    try:
        yield
    finally:
        with _lock:
            _choices[:] = [other for other in _choices if other is not choice]
            _settle_choice()


def _settle_choice() -> None:
    """The latest block that is still open decides."""
    global _chosen
    _chosen = _choices[-1][0] if _choices else _from_environment


def chosen() -> str | None:
    """The backend that was asked for, or None."""
    return _chosen


def _native_devices() -> tuple[str, ...]:
    if native_extension is None:
        return ()
    has_cuda = native_extension.build_info()["cuda"] is not None
    return ("cpu", "cuda", "meta") if has_cuda else ("cpu", "meta")


_NATIVE_DEVICES = _native_devices()


# torch.compile takes the results of these two as they are: it can trace neither an import nor a
# cached function.
@torch.compiler.assume_constant_result
def _triton_available() -> bool:
    from lossops import triton

    return triton.available()


@torch.compiler.assume_constant_result
def _load_triton() -> None:
    from lossops import triton

    triton.load()


def _runs_on(name: str, device: str) -> bool:
    if name == "native":
        return device in _NATIVE_DEVICES
    if name == "triton":
        if device != "cuda" and not (device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
            return device == "meta"
        return _triton_available()
    return True


def backends_for(device: str) -> tuple[str, ...]:
    """The backends that can run a call on this device type, best first."""
    return tuple(name for name in NAMES if _runs_on(name, device))


def resolve(input: Tensor) -> str:
    """The backend for a call on this tensor."""
    if torch._C._get_tracing_state() is not None:  # which knows no arguments like the kernels'
        return "reference"
    if type(input) is not Tensor and hasattr(input, "device_mesh"):  # a DTensor: torch spreads it
        return "reference"
    device = input.device.type
    name = _chosen
    if name is None:
        if device in _NATIVE_DEVICES:
            return "native"
        return "triton" if device == "cuda" and _runs_on("triton", device) else "reference"
    if not _runs_on(name, device):
        available = ", ".join(backends_for(device))
        raise RuntimeError(
            f"backend {name!r} was asked for and cannot run on {device} tensors here; "
            f"available: {available} (see lossops.info())"
        )
    return name


class KernelOps:
    """The raw ops of one kernel backend, looked up once."""

    def __init__(self, namespace: str):
        ops = getattr(torch.ops, namespace)
        self.forward = ops.elementwise_forward.default
        self.backward = ops.elementwise_backward.default
        self.backward_ = ops.elementwise_backward_.default
        self.rescale_ = ops.elementwise_rescale_.default
        self.double_backward = ops.elementwise_double_backward.default
        self.softmax_forward = ops.softmax_forward.default
        self.softmax_forward_ = ops.softmax_forward_.default
        self.softmax_backward = ops.softmax_backward.default
        self.softmax_backward_ = ops.softmax_backward_.default
        self.vectors_forward = ops.vectors_forward.default
        self.vectors_backward = ops.vectors_backward.default


_kernel_ops = {
    "native": KernelOps(library.NATIVE),
    "triton": KernelOps(library.TRITON),
}


def kernel_ops(name: str) -> KernelOps:
    """The raw ops of "native" or "triton"."""
    if name == "triton":
        _load_triton()
    return _kernel_ops[name]
