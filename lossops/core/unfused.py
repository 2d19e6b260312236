"""Helpers for losses without kernels: formulas in plain torch that autograd can differentiate any
number of times.

These losses have the signatures, conventions and accuracy of the losses with kernels. In half
precision too, they compute in float32 and round once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lossops.core.arguments import HALF_DTYPES, REDUCTIONS, autocasts, check_reduction, promoted
from lossops.core.formulas import reduce


def composed(
    function: str,
    formula: Callable[..., Tensor],
    moving: tuple[Tensor, ...],
    reduction: str,
) -> Tensor:
    """Applies ``formula`` to the tensors in the compute dtype, then reduces and rounds."""
    check_reduction(reduction)
    dtype = moving[0].dtype
    for tensor in moving[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    if dtype in HALF_DTYPES:
        wide = torch.float32
        if autocasts(moving[0].device.type):
            dtype = torch.float32
    else:
        wide = dtype
    value = formula(*(tensor.to(wide) for tensor in moving))
    if reduction == "sample":
        reduced = mean_of_samples(function, value)
    elif not wide.is_floating_point and reduction == "mean":
        return value.mean()  # raises torch's error for integers
    else:
        reduced = reduce(value, *REDUCTIONS[reduction])
    return reduced if wide == dtype else reduced.to(dtype)


def mean_of_samples(function: str, value: Tensor) -> Tensor:
    """Reduces one or more values per sample to one value per sample."""
    if value.dim() == 0:
        raise ValueError(
            f"{function}(): reduction='sample' needs a batch dimension, got one loss alone"
        )
    return reduce(value, *REDUCTIONS["sample"])


def has_kernels(*tensors: Tensor) -> bool:
    """Whether kernels support these dtypes. They need at least one floating-point tensor."""
    return any(tensor.is_floating_point() for tensor in tensors)


def floating(tensor: Tensor, *others: Tensor) -> Tensor:
    """Converts an integer tensor to the default dtype if no tensor is floating point, as torch's
    own type promotion does."""
    if not isinstance(tensor, Tensor) or tensor.is_complex() or has_kernels(tensor, *others):
        return tensor
    return tensor.to(torch.get_default_dtype())


def difference(a: Tensor, b: Tensor) -> tuple[Tensor, torch.dtype]:
    """Returns a - b, computed in float32 for half precision, and the dtype of a loss of it."""
    dtype = promoted(a, b)
    if dtype not in HALF_DTYPES:
        return a - b, dtype
    if autocasts(a.device.type):
        dtype = torch.float32
    return a.to(torch.float32) - b.to(torch.float32), dtype
