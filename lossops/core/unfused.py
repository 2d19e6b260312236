"""Losses that are formulas in plain torch, differentiable any number of times by torch itself: what
they share.

They have the signatures, the conventions and the accuracy of their kin with kernels, half precision
included: computed in float32, rounded once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lossops.core.arguments import HALF_DTYPES, REDUCTIONS, autocasts, promoted
from lossops.core.contract import check_reduction
from lossops.core.formulas import reduce


def composed(
    function: str,
    formula: Callable[..., Tensor],
    moving: tuple[Tensor, ...],
    reduction: str,
) -> Tensor:
    """``formula`` of the tensors in the dtype to compute in, reduced and rounded."""
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
        return value.mean()  # which torch refuses, of integers
    else:
        reduced = reduce(value, *REDUCTIONS[reduction])
    return reduced if wide == dtype else reduced.to(dtype)


def mean_of_samples(function: str, value: Tensor) -> Tensor:
    """What is left of a number per sample, or of several."""
    if value.dim() == 0:
        raise ValueError(
            f"{function}(): reduction='sample' needs a batch dimension, got one loss alone"
        )
    return reduce(value, *REDUCTIONS["sample"])


def has_kernels(*tensors: Tensor) -> bool:
    """Whether the tensors are of dtypes that kernels take; they have none of integers alone."""
    return any(tensor.is_floating_point() for tensor in tensors)


def floating(tensor: Tensor, *others: Tensor) -> Tensor:
    """The tensor; integers among integers as torch makes numbers of them."""
    if not isinstance(tensor, Tensor) or tensor.is_complex() or has_kernels(tensor, *others):
        return tensor
    return tensor.to(torch.get_default_dtype())


def difference(a: Tensor, b: Tensor) -> tuple[Tensor, torch.dtype]:
    """a - b, of half precision in float32; and the dtype that a loss of it has."""
    dtype = promoted(a, b)
    if dtype not in HALF_DTYPES:
        return a - b, dtype
    if autocasts(a.device.type):
        dtype = torch.float32
    return a.to(torch.float32) - b.to(torch.float32), dtype
