"""Selection of the backend that runs a call.

``native``     the compiled kernels: C++ on the CPU, CUDA C++ on the GPU. The default.
``triton``     Triton kernels, on the GPU (and on the CPU under TRITON_INTERPRET=1, for tests).
``reference``  plain torch.

``with lossops.backend("triton"): …`` and the environment variable ``LOSSOPS_BACKEND`` choose a
backend. If the chosen backend cannot run a call, the call raises. Without a choice, a call runs on
the first backend that supports it.
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

from lossops.core import library
from lossops.core.spread import is_spread

NAMES = ("native", "triton", "reference")
Params = tuple[float, ...] | Tensor

try:
    from lossops import _C as native_extension
except ImportError as error:  # not built: fall back to the reference backend
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

# The choice is process-wide. It is a plain global because torch.compile can read and guard a
# global, but not a context variable or a thread-local.
_chosen: str | None = _from_environment
_choices: list[list[str]] = []  # one entry per open `with` block, across all threads
_lock = threading.Lock()


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Runs all losses on one backend, in every thread, while the ``with`` block is open.

    Args:
        name: "native", "triton" or "reference".

    Raises:
        ValueError: if ``name`` is not a backend.

    Example:
        >>> import torch, lossops
        >>> with lossops.backend("reference"):
        ...     lossops.functional.mse_loss(torch.ones(3), torch.zeros(3)).item()
        1.0
    """
    choice = [_checked(name, "backend")]  # a list: two choices of the same name stay distinct
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
    """Applies the most recent block that is still open, or else the environment variable."""
    global _chosen
    _chosen = _choices[-1][0] if _choices else _from_environment


def chosen() -> str | None:
    """The backend that the user chose, or None."""
    return _chosen


def _native_devices() -> tuple[str, ...]:
    if native_extension is None:
        return ()
    has_cuda = native_extension.build_info()["cuda"] is not None
    return ("cpu", "cuda", "meta") if has_cuda else ("cpu", "meta")


_NATIVE_DEVICES = _native_devices()


# torch.compile treats the results of these two functions as constants, because it cannot trace an
# import or a cached function.
@torch.compiler.assume_constant_result
def _triton_available() -> bool:
    from lossops.core import triton

    return triton.available()


@torch.compiler.assume_constant_result
def _load_triton() -> None:
    from lossops.core import triton

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
    """The backends that can run a call on this device type, in order of preference."""
    return tuple(name for name in NAMES if _runs_on(name, device))


def resolve(input: Tensor, *others: Tensor | None) -> str:
    """Returns the backend for a call on these tensors.

    torch.jit.trace, and tensor subclasses that only torch's own ops support, always get the
    reference.
    """
    if torch._C._get_tracing_state() is not None:  # cannot record the kernels' argument types
        return "reference"
    for tensor in (input, *others):
        if tensor is not None and type(tensor) is not Tensor and _is_for_torch(tensor):
            return "reference"
    device = input.device.type
    name = _chosen
    if name is None:
        if device in _NATIVE_DEVICES:
            return "native"
        return "triton" if device == "cuda" and _runs_on("triton", device) else "reference"
    require_runs_on(name, device)
    return name


def require_runs_on(name: str, device: str) -> None:
    """Raises if a backend cannot run a call on this device type."""
    if not _runs_on(name, device):
        available = ", ".join(backends_for(device))
        raise RuntimeError(
            f"backend {name!r} was asked for and cannot run on {device} tensors here; "
            f"available: {available} (see lossops.info())"
        )


def _is_for_torch(tensor: Tensor) -> bool:
    """Whether only torch's own ops support this tensor subclass."""
    if is_spread(tensor):
        return True
    # On its first call, a compiled graph passes its arguments to a check in torch that rejects
    # non-wrapper subclasses as arguments of a custom op.
    wrapper = torch.utils._python_dispatch.is_traceable_wrapper_subclass
    return (
        torch.compiler.is_dynamo_compiling()
        and not isinstance(tensor, torch.nn.Parameter)
        and not wrapper(tensor)
    )


def kernel_ops(name: str, params: Params = ()) -> library.KernelOps:
    """The raw ops of the "native" or "triton" backend, in the variant for these hyperparameters."""
    if name == "triton":
        _load_triton()
    namespace = library.TRITON if name == "triton" else library.NATIVE
    return library.KERNEL_OPS[namespace, isinstance(params, Tensor)]


def settled(params: tuple[float, ...]) -> Params:
    """Prepares hyperparameters for a compiled graph. If any of them changes between calls, and is
    therefore a symbol to the compiler, all are packed into one tensor."""
    if not torch.compiler.is_compiling():
        return params
    known = torch.fx.experimental.symbolic_shapes.has_static_value
    if all(known(value) for value in params):
        return params
    one = torch.ones((), dtype=torch.float64)  # multiplication turns a symbol into a tensor
    return torch.stack([one * value for value in params])
