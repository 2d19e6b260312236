"""The Triton backend: the raw ops of ``lossops_triton``, for any GPU that Triton compiles for.

Importing this package does not import Triton, which is slow to import and may not be installed.
:func:`load` imports it on first use.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util


@functools.cache
def available() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def load() -> None:
    """Imports Triton and registers the kernels for the raw ops. Raises if Triton is not installed.

    The kernels run on CUDA (and ROCm) tensors. Under Triton's interpreter they are also registered
    for CPU tensors, so that they can be tested without a GPU; Triton cannot run on a CPU otherwise.
    Triton decides whether to interpret when the kernels are defined, that is, during this import.
    It reads the environment variable ``TRITON_INTERPRET``.
    """
    if not available():
        raise ImportError("the Triton backend needs the package `triton`: pip install triton")
    import triton

    from lossops.core import library
    from lossops.families import FAMILIES

    devices = ("CUDA", "CPU") if triton.knobs.runtime.interpret else ("CUDA",)
    for family in FAMILIES:
        ops = importlib.import_module(f"lossops.{family}.triton.ops")
        for op in ops.OPS:
            for device in devices:
                library.implement(library.TRITON, op, device, getattr(ops, op))
