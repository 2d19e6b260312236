"""The losses over pairs of a label and a class that is not one, in Triton: the twin of
``csrc/cuda/vectors/label_lists.cu``.

A Triton program has no private memory in which it could mark classes. The marks are a tensor
instead, with 4 bytes per class.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from lossops.core.triton.launch import OPTIONS, on

# Classes that a program holds at once, from one row or several.
TILE, TILE_DOUBLE = 1024, 512
MAX_REGISTERS = 168  # by default ptxas aims at full occupancy, and spills
# Number of hinges added before the sum is widened.
TOGETHER = 64


@triton.jit
def list_kernel(
    label,  # [rows, length]
    strides,
    times,  # [rows, length], zeroed: counts how often each class is listed
    counts,  # [rows]: the number of labels of a row, or -1 if one is out of range
    length,
    BLOCK: tl.constexpr,
):
    """Reads the labels of a row up to the first negative one. The grid is (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    count, outside, start = 0, 0, 0
    while start < length:
        place = start + places
        at = label + row * strides[0] + place.to(tl.int64) * strides[1]
        found = tl.load(at, mask=place < length, other=-1).to(tl.int64)
        # Masked labels end the row. Set here, because -1 may not fit the labels' dtype.
        found = tl.where(place < length, found, -1)
        listed = tl.min(tl.where(found < 0, places, BLOCK), 0)
        counts_here = places < listed
        tl.atomic_add(times + row * length + found, 1, mask=counts_here & (found < length))
        outside += tl.sum((counts_here & (found >= length)).to(tl.int32), 0)
        count += listed
        start = tl.where(listed < BLOCK, length, start + BLOCK)
    tl.store(counts + row, tl.where(outside > 0, -1, count))


@triton.jit
def _of_label(x, stride, label, strides, row, place, mask, COMPUTE: tl.constexpr):
    """One label per row, and the amount that the hinge adds to a class's score."""
    at = label + row * strides[0] + tl.cast(place, tl.int64) * strides[1]
    index = tl.load(at, mask=mask, other=0).to(tl.int64)
    return index, 1 - tl.load(x + row * stride + index, mask=mask, other=0.0).to(COMPUTE)


@triton.jit
def pairs_kernel(
    x,  # [rows, length], contiguous within a row
    stride,
    label, strides,
    times, counts,  # as written by list_kernel
    row_weight,  # [rows], or None
    grad_output,  # [rows], or one value with stride 0; or None
    grad_output_stride,
    value,  # [rows], or None
    grad,  # [rows, length], contiguous, or None
    rows,
    length,
    scale: tl.float64,
    COMPUTE: tl.constexpr,
    TOGETHER: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss of rows and its gradient. The grid is (rows / ROWS,)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    count = tl.load(counts + row, mask=there, other=0)
    known = count >= 0
    most = tl.max(count, 0)
    columns = tl.arange(0, BLOCK).to(tl.int64)[None, :]
    wide_row = row[:, None]
    share = tl.full([ROWS], 1.0, tl.float64) / length
    if row_weight is not None:
        share *= tl.load(row_weight + row, mask=there, other=0.0).to(tl.float64)
    factor = share * tl.full([], scale, tl.float64)
    if grad_output is not None:
        upstream = tl.load(grad_output + row * grad_output_stride, mask=there, other=0.0)
        factor *= upstream.to(tl.float64)
    factor = tl.where(known, factor, 0.0).to(COMPUTE)

    total = tl.full([ROWS], 0.0, tl.float64)
    for start in range(0, length, BLOCK):
        column = start + columns
        inside = there[:, None] & (column < length)
        scores = tl.load(x + wide_row * stride + column, mask=inside, other=0.0).to(COMPUTE)
        listed = tl.load(times + wide_row * length + column, mask=inside, other=1)
        other = inside & (listed == 0)
        open_ = tl.full([ROWS, BLOCK], 0.0, COMPUTE)
        for first in range(0, most, TOGETHER):
            hinges = tl.full([ROWS, BLOCK], 0.0, COMPUTE)
            for place in range(first, tl.minimum(first + TOGETHER, most)):
                given = place < count
                _, lead = _of_label(x, stride, label, strides, row, place, given, COMPUTE)
                z = tl.where(given[:, None], lead[:, None] + scores, 0.0)
                hinges += tl.where(z < 0, 0.0, z)
                open_ += tl.where(z > 0, 1.0, 0.0)
            total += tl.sum(tl.where(other, hinges, 0.0).to(tl.float64), 1)
        if grad is not None:
            # Labels are written, too, and overwritten below: stores without gaps are 16 bytes wide.
            number = (tl.where(other, open_, 0.0) * factor[:, None]).to(grad.dtype.element_ty)
            tl.store(grad + wide_row * length + column, number, mask=inside)
    if value is not None:
        total = tl.where(known, total * share, float("nan"))
        tl.store(value + row, total.to(value.dtype.element_ty), mask=there)

    if grad is not None:
        tl.debug_barrier()
        for place in range(most):
            given = place < count
            index, lead = _of_label(x, stride, label, strides, row, place, given, COMPUTE)
            of_label = tl.full([ROWS], 0.0, COMPUTE)
            for start in range(0, length, BLOCK):
                column = start + columns
                inside = given[:, None] & (column < length)
                scores = tl.load(x + wide_row * stride + column, mask=inside, other=0.0)
                listed = tl.load(times + wide_row * length + column, mask=inside, other=1)
                z = lead[:, None] + scores.to(COMPUTE)
                of_label += tl.sum(tl.where((listed == 0) & (z > 0), 1.0, 0.0).to(COMPUTE), 1)
            often = tl.load(times + row * length + index, mask=given, other=0).to(COMPUTE)
            # A label that is listed several times gets its gradient that many times.
            number = (-factor * (often * of_label)).to(grad.dtype.element_ty)
            tl.store(grad + row * length + index, number, mask=given)


def run(x, label, row_weight, grad_output, grad_output_stride, scale, value, grad) -> None:
    """Writes the values and the gradient of the rows; each is skipped if None."""
    rows, length = x.shape
    if length == 0:
        if value is not None:
            value.fill_(math.nan)
        return
    tile = TILE_DOUBLE if x.dtype == torch.float64 else TILE
    block = min(triton.next_power_of_2(length), tile)
    lanes = min(tile // block, triton.next_power_of_2(rows))
    times = torch.zeros(rows, length, dtype=torch.int32, device=x.device)
    counts = torch.empty(rows, dtype=torch.int32, device=x.device)
    strides = label.stride()
    with on(x.device):
        list_kernel[(rows,)](label, strides, times, counts, length, BLOCK=block, **OPTIONS)
        pairs_kernel[(triton.cdiv(rows, lanes),)](
            x, x.stride(0), label, strides, times, counts, row_weight, grad_output,
            grad_output_stride, value, grad, rows, length, scale,
            COMPUTE=tl.float64 if x.dtype == torch.float64 else tl.float32,
            TOGETHER=TOGETHER, ROWS=lanes, BLOCK=block, maxnreg=MAX_REGISTERS, **OPTIONS,
        )  # fmt: skip
