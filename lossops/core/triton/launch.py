"""Launch options shared by the kernels."""

from __future__ import annotations

import contextlib
import functools

import torch
from torch import Tensor

NUM_WARPS = 4
PROGRAMS_PER_PROCESSOR = 16
# The CUDA compiler also fuses multiply and add; Triton's default depends on its version. No loop
# here feeds a matrix product, so there is nothing to pipeline.
OPTIONS = {"num_warps": NUM_WARPS, "num_stages": 1, "enable_fp_fusion": True}


def sizes_and_strides(tensor: Tensor):
    return zip(tensor.shape, tensor.stride(), strict=True)


@functools.cache
def programs(device: torch.device) -> int:
    """Number of programs that fill the device. Elsewhere the interpreter runs them one by one."""
    if device.type != "cuda":
        return PROGRAMS_PER_PROCESSOR
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return PROGRAMS_PER_PROCESSOR * processors


def on(device: torch.device):
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
