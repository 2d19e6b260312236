"""Argument handling and dispatch of losses over rows of one to three vectors.

Each row of vectors yields one number. Higher-order derivatives and ``torch.func`` use the formulas
in :mod:`lossops.vectors.reference`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lossops.core import backends
from lossops.core.arguments import HALF_DTYPES, KERNEL_DTYPES, autocasts, check_reduction, savable
from lossops.core.fused import one_pass
from lossops.core.labels import are_checked, can_look, labels_are_checked
from lossops.core.library import accumulator
from lossops.core.spread import gathered
from lossops.core.transforms import transforms_active
from lossops.core.unfused import composed, mean_of_samples
from lossops.vectors.autograd import MOST_VECTORS, VectorsCall, formula_of
from lossops.vectors.ops import VECTOR_SIGNATURES, VectorsArguments


def _common_dtype(function: str, vectors, label: Tensor | None, row_weight: Tensor | None):
    """Returns the promoted dtype of the vectors. Rejects tensors that are on different devices or
    not dense."""
    first = vectors[0]
    dtype, device = first.dtype, first.device
    for tensor in (*vectors, label, row_weight):
        if tensor is None:
            continue
        if tensor.layout is not torch.strided:
            raise NotImplementedError(
                f"{function}(): tensors should be dense, got layout {tensor.layout}"
            )
        if tensor.device != device:
            raise RuntimeError(
                f"{function}(): expected all tensors to be on the same device, but found "
                f"{device} and {tensor.device}"
            )
    for tensor in vectors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _as_rows(loss: str, vectors, label, row_weight, dtype: torch.dtype) -> tuple:
    """Returns the shape of the rows, and the tensors in the form that the raw ops take."""
    first, lists = vectors[0], VECTOR_SIGNATURES[loss].label == "list"
    shape = first.shape
    if len(shape) == 2 and all(t.shape == shape and t.dtype == dtype for t in vectors):
        kept = shape[:1]
        if label is None or label.shape == (shape if lists else kept):
            return kept, vectors, label, row_weight
    of_rows = [tensor.shape[:-1] for tensor in vectors]
    if label is not None:
        of_rows.append(label.shape[:-1] if lists else label.shape)
    kept = torch.broadcast_shapes(*of_rows)
    length, count = first.shape[-1], math.prod(kept)
    rows = tuple(t.to(dtype).expand(*kept, length).reshape(count, length) for t in vectors)
    row_weight = row_weight if row_weight is None else row_weight.expand(kept).reshape(count)
    if lists:
        label = label.reshape(count, length)
    elif label is not None:
        label = label.expand(kept).reshape(count)
    return kept, rows, label, row_weight


def _check_labels(function: str, loss: str, label: Tensor | None, classes: int) -> None:
    """Rejects labels out of range, on the CPU and where label checks are requested: it needs their
    values."""
    takes = VECTOR_SIGNATURES[loss].label
    if takes not in ("index", "list") or not (can_look(label) or are_checked(label)):
        return
    if gathered(((label < (-1 if takes == "list" else 0)) | (label >= classes)).any()):
        raise RuntimeError(f"{function}(): target out of range, of {classes} classes")


def vectors_loss(
    function: str,
    loss: str,
    vectors: tuple[Tensor, ...],  # broadcast together; the last dimension runs within a row
    reduction: str,
    params: tuple[float, ...] = (),
    label: Tensor | None = None,  # of the shape of the rows; lists have that of the vectors
    row_weight: Tensor | None = None,  # of the shape of the rows; multiplies a row's loss
    widens: bool = True,  # whether autocast widens half precision to float32
) -> Tensor:
    """Normalises shapes and dtypes and runs the loss, with kernels if they support the call."""
    check_reduction(reduction)
    vectors = tuple(map(savable, vectors))
    label, row_weight = savable(label), savable(row_weight)
    dtype = _common_dtype(function, vectors, label, row_weight)
    backend = backends.resolve(*vectors, label, row_weight)
    # A norm is taken over the length of its own vectors, before broadcasting.
    one_length = all(tensor.shape[-1] == vectors[0].shape[-1] for tensor in vectors[1:])
    moves = row_weight is not None and row_weight.requires_grad and torch.is_grad_enabled()
    plain = not one_length or dtype not in KERNEL_DTYPES or moves or transforms_active()
    plain = plain or backend == "reference"
    # On the CPU the native kernels check labels themselves.
    if plain or backend == "triton" or labels_are_checked():
        _check_labels(function, loss, label, vectors[0].shape[-1])
    if plain:
        return composed(function, formula_of(loss, params, label, row_weight), vectors, reduction)
    kept, rows, label, row_weight = _as_rows(loss, vectors, label, row_weight, dtype)
    if dtype in HALF_DTYPES and widens and autocasts(rows[0].device.type):
        dtype = torch.float32
    single = reduction in ("mean", "sum")
    mode = reduction if single else "none"
    out_dtype = accumulator(dtype) if reduction == "sample" else dtype
    call = VectorsCall(backend, VectorsArguments(loss, params, mode), out_dtype)
    rows = (*rows, *[None] * (MOST_VECTORS - len(rows)))
    (value,) = one_pass(call, *rows, label, row_weight)
    if single:
        return value
    if len(kept) != 1:  # not a view, which could not be modified in place
        value = torch.ops.aten._unsafe_view(value, kept)
    return value if reduction == "none" else mean_of_samples(function, value).to(dtype)
