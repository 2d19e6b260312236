"""A CUDA device without a GPU: compiles the CUDA sources for the CPU and runs them. See
README.md."""

from __future__ import annotations

import functools
import os
import random
from pathlib import Path

import torch

from lossops.core import library

from . import build

NAMESPACE = "lossops_cuda_on_cpu"


@functools.cache
def device() -> build.Device:
    """The device with the kernels of ``csrc/cuda``, or of LOSSOPS_TEST_CUDA_LIBRARY."""
    return build.Device(Path(os.environ.get("LOSSOPS_TEST_CUDA_LIBRARY") or build.kernels()))


@functools.cache
def ops() -> _Ops:
    """The raw ops, computed by the CUDA kernels. Each call runs them twice, with threads and blocks
    in different orders, and requires identical bits."""
    device()  # must come first: the ops take their kernels from it
    library.declare_all(NAMESPACE)
    torch.ops.load_library(build.ops())
    return _Ops()


class _Ops:
    def __getattr__(self, name: str):
        op = getattr(getattr(torch.ops, NAMESPACE), name)
        return functools.partial(_in_place if name.endswith("_") else _twice, op)


def _seed() -> None:
    device().seed(random.getrandbits(63))


def _twice(op, *arguments):
    _seed()
    first = op(*arguments)
    _seed()
    _compare(op, first, op(*arguments))
    return first


def _in_place(op, written, *arguments):
    """The second call uses the same memory, because its alignment can affect the order of
    additions."""
    tensors = [written] if isinstance(written, torch.Tensor) else written
    before = [tensor.clone() for tensor in tensors]
    _seed()
    results = op(written, *arguments) or ()
    first = [tensor.clone() for tensor in tensors]
    for tensor, contents in zip(tensors, before, strict=True):
        tensor.copy_(contents)
    _seed()
    again = op(written, *arguments) or ()
    _compare(op, [*results, *tensors], [*again, *first])
    return results or None


def _compare(op, first, second) -> None:
    for a, b in zip(first, second, strict=True):
        if a is not None:
            bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
            same = torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))
            assert same, f"{op}: the result depends on the order of threads and blocks"
