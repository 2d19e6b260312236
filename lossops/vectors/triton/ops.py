"""The raw ops of the losses over rows of vectors, and their Triton kernel.

The contract is in ``lossops/vectors/ops.py``.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from lossops.core.library import accumulator
from lossops.core.triton.launch import OPTIONS, on
from lossops.vectors.ops import VECTOR_SIGNATURES, VectorsArguments
from lossops.vectors.triton import label_lists
from lossops.vectors.triton.losses import LOSSES

OPS = ("vectors_forward", "vectors_backward")

# Elements of a vector that a program holds at once. Rows up to this length are read once.
TILE, TILE_DOUBLE = 2048, 1024


@triton.jit
def _load(data, row_stride, row, column, mask, COMPUTE: tl.constexpr):
    return tl.load(data + row * row_stride + column, mask=mask, other=0.0).to(COMPUTE)


@triton.jit
def _element(x, y, z, strides, row, column, mask, COMPUTE: tl.constexpr):
    first = _load(x, strides[0], row, column, mask, COMPUTE)
    second, third = first, first
    if y is not None:
        second = _load(y, strides[1], row, column, mask, COMPUTE)
    if z is not None:
        third = _load(z, strides[2], row, column, mask, COMPUTE)
    return first, second, third


@triton.jit
def _sum(terms, mask):
    return tl.sum(tl.where(mask, terms, 0.0), 1).to(tl.float64)


@triton.jit
def _store(grad, number, row, length, column, mask):
    if grad is not None:
        tl.store(grad + row * length + column, number.to(grad.dtype.element_ty), mask=mask)


@triton.jit
def vectors_kernel(
    x, y, z,  # [rows, length], contiguous within a row; y and z or None
    strides,  # row strides
    label,  # [rows], or None
    row_weight,  # [rows], or None
    grad_output,  # [rows], or one value with stride 0; or None
    grad_output_stride,
    value,  # [rows], or None
    grad_x, grad_y, grad_z,  # [rows, length], contiguous, or None
    rows,
    length,
    scale: tl.float64,
    p0: tl.float64,
    p1: tl.float64,
    p2: tl.float64,
    CONSTANT: tl.constexpr,
    TERMS: tl.constexpr,
    FINISH: tl.constexpr,
    GRADIENT: tl.constexpr,
    HAS_OWN: tl.constexpr,
    COMPUTE: tl.constexpr,
    RESIDENT: tl.constexpr,  # a tile holds whole rows
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss of rows and its gradients. The grid is (rows / ROWS,)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    number = tl.full([ROWS], 0.0, tl.float64)
    known, own = there, tl.full([ROWS], -1, tl.int64)
    if HAS_OWN:
        own = tl.load(label + row, mask=there, other=0).to(tl.int64)
        known = (own >= 0) & (own < length)
        own = tl.where(known, own, -1)
    elif label is not None:
        number = tl.load(label + row, mask=there, other=0.0).to(tl.float64)
    own_number = tl.full([ROWS], 0.0, COMPUTE)
    if HAS_OWN:
        own_number = tl.load(x + row * strides[0] + own, mask=own >= 0, other=0.0).to(COMPUTE)
    p0, p1, p2 = (
        tl.full([], p0, tl.float64),
        tl.full([], p1, tl.float64),
        tl.full([], p2, tl.float64),
    )
    constant = CONSTANT(own_number, p0, p1, p2)[:, None]
    wide_row, wide_own = row[:, None], own[:, None]
    columns = tl.arange(0, BLOCK).to(tl.int64)[None, :]

    s0 = tl.full([ROWS], 0.0, tl.float64)
    s1, s2 = s0, s0
    if RESIDENT:
        inside = there[:, None] & (columns < length)
        a, b, c = _element(x, y, z, strides, wide_row, columns, inside, COMPUTE)
        t0, t1, t2 = TERMS(a, b, c, constant)
        counts = inside & (columns != wide_own)
        s0, s1, s2 = _sum(t0, counts), _sum(t1, counts), _sum(t2, counts)
    else:
        for start in range(0, length, BLOCK):
            column = start + columns
            inside = there[:, None] & (column < length)
            a, b, c = _element(x, y, z, strides, wide_row, column, inside, COMPUTE)
            t0, t1, t2 = TERMS(a, b, c, constant)
            counts = inside & (column != wide_own)
            s0 += _sum(t0, counts)
            s1 += _sum(t1, counts)
            s2 += _sum(t2, counts)

    found, f0, f1, f2 = FINISH(s0, s1, s2, number, length, p0, p1, p2)
    weight = tl.full([ROWS], 1.0, tl.float64)
    if row_weight is not None:
        weight = tl.load(row_weight + row, mask=there, other=0.0).to(tl.float64)
    if value is not None:
        found = tl.where(known, found * weight, float("nan"))
        tl.store(value + row, found.to(value.dtype.element_ty), mask=there)
    if grad_x is not None or grad_y is not None or grad_z is not None:
        factor = weight * scale
        if grad_output is not None:
            upstream = tl.load(grad_output + row * grad_output_stride, mask=there, other=0.0)
            factor *= upstream.to(tl.float64)
        f0 = tl.where(known, f0 * factor, 0.0).to(COMPUTE)[:, None]
        f1 = tl.where(known, f1 * factor, 0.0).to(COMPUTE)[:, None]
        f2 = tl.where(known, f2 * factor, 0.0).to(COMPUTE)[:, None]
        if RESIDENT:
            inside = there[:, None] & (columns < length)
            g0, g1, g2 = GRADIENT(a, b, c, constant, f0, f1, f2)
            g0 = tl.where(columns == wide_own, f2, g0)
            _store(grad_x, g0, wide_row, length, columns, inside)
            _store(grad_y, g1, wide_row, length, columns, inside)
            _store(grad_z, g2, wide_row, length, columns, inside)
        else:
            for start in range(0, length, BLOCK):
                column = start + columns
                inside = there[:, None] & (column < length)
                a, b, c = _element(x, y, z, strides, wide_row, column, inside, COMPUTE)
                g0, g1, g2 = GRADIENT(a, b, c, constant, f0, f1, f2)
                g0 = tl.where(column == wide_own, f2, g0)
                _store(grad_x, g0, wide_row, length, column, inside)
                _store(grad_y, g1, wide_row, length, column, inside)
                _store(grad_z, g2, wide_row, length, column, inside)


def vectors_forward(vectors, label, row_weight, call, out_dtype, output_mask):
    first = vectors[0]
    value = first.new_empty(first.shape[:1], dtype=accumulator(first.dtype))
    grads = _empty_gradients(vectors, output_mask)
    _launch(vectors, label, row_weight, call, None, value, grads)
    if call.reduction != "none":
        value = value.sum(dtype=torch.float64)
        if call.reduction == "mean":
            value = value / first.shape[0] if first.shape[0] else value.fill_(math.nan)
    return value.to(out_dtype), *grads


def vectors_backward(grad_output, vectors, label, row_weight, call, output_mask):
    grads = _empty_gradients(vectors, output_mask)
    _launch(vectors, label, row_weight, call, grad_output, None, grads)
    return grads


def _empty_gradients(vectors, mask) -> tuple:
    first = vectors[0]
    return tuple(first.new_empty(first.shape) if wanted else None for wanted in mask)


def _launch(vectors, label, row_weight, call: VectorsArguments, grad_output, value, grads) -> None:
    rows, length = vectors[0].shape
    if rows == 0:
        return
    vectors = [v if v.stride(1) == 1 or length == 1 else v.contiguous() for v in vectors]
    row_weight = row_weight if row_weight is None else row_weight.expand(rows).contiguous()
    scale = 1 / rows if call.reduction == "mean" else 1.0
    grad_output_stride = (
        0 if grad_output is None or grad_output.dim() == 0 else grad_output.stride(0)
    )
    given = (row_weight, grad_output, grad_output_stride, scale)
    if VECTOR_SIGNATURES[call.loss].label == "list":
        label_lists.run(vectors[0], label, *given, value, grads[0])
    else:
        _launch_sums(vectors, label, *given, call.loss, call.params, value, grads)


def _launch_sums(
    vectors, label, row_weight, grad_output, grad_output_stride, scale, loss, params, value, grads
) -> None:
    rows, length = vectors[0].shape
    x, y, z = (*vectors, None, None)[:3]
    strides = tuple(v.stride(0) for v in (*vectors, x, x)[:3])
    double = x.dtype == torch.float64
    tile = TILE_DOUBLE if double else TILE
    block = min(triton.next_power_of_2(max(length, 1)), tile)
    lanes = min(tile // block, triton.next_power_of_2(rows))
    kind = LOSSES[loss]
    p0, p1, p2 = (*params, 0.0, 0.0)[:3]
    label = label if label is None else label.expand(rows).contiguous()
    with on(x.device):
        vectors_kernel[(triton.cdiv(rows, lanes),)](
            x, y, z, strides, label, row_weight, grad_output, grad_output_stride,
            value, *grads, rows, length, scale, p0, p1, p2,
            CONSTANT=kind.constant, TERMS=kind.terms, FINISH=kind.finish, GRADIENT=kind.gradient,
            HAS_OWN=VECTOR_SIGNATURES[loss].label == "index",
            COMPUTE=tl.float64 if double else tl.float32,
            RESIDENT=block >= length, ROWS=lanes, BLOCK=block, **OPTIONS,
        )  # fmt: skip
