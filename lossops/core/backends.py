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

from lossops.core import library
from lossops.core.spread import is_spread

NAMES = ("native", "triton", "reference")
Params = tuple[float, ...] | Tensor

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
    """The backends that can run a call on this device type, best first."""
    return tuple(name for name in NAMES if _runs_on(name, device))


def resolve(input: Tensor, *others: Tensor | None) -> str:
    """The backend for a call on these tensors."""
    if torch._C._get_tracing_state() is not None:  # which knows no arguments like the kernels'
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
    if not _runs_on(name, device):
        available = ", ".join(backends_for(device))
        raise RuntimeError(
            f"backend {name!r} was asked for and cannot run on {device} tensors here; "
            f"available: {available} (see lossops.info())"
        )
    return name


def _is_for_torch(tensor: Tensor) -> bool:
    """Whether only torch's own ops know what to do with a tensor of this class."""
    if is_spread(tensor):
        return True
    # A compiled graph hands its first call's arguments to a check of torch's, which refuses
    # subclasses that are no wrappers as arguments of a custom op.
    wrapper = torch.utils._python_dispatch.is_traceable_wrapper_subclass
    return (
        torch.compiler.is_dynamo_compiling()
        and not isinstance(tensor, torch.nn.Parameter)
        and not wrapper(tensor)
    )


def kernel_ops(name: str, params: Params = ()) -> library.KernelOps:
    """The raw ops of "native" or "triton", in the form for these hyperparameters."""
    if name == "triton":
        _load_triton()
    namespace = library.TRITON if name == "triton" else library.NATIVE
    return library.KERNEL_OPS[namespace, isinstance(params, Tensor)]


def settled(params: tuple[float, ...]) -> Params:
    """Hyperparameters as a graph that is compiled takes them: those that change from call to call,
    and are symbols to the compiler, in a tensor."""
    if not torch.compiler.is_compiling():
        return params
    known = torch.fx.experimental.symbolic_shapes.has_static_value
    if all(known(value) for value in params):
        return params
    one = torch.ones((), dtype=torch.float64)  # times which a symbol is a tensor
    return torch.stack([one * value for value in params])
