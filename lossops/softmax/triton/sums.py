"""Auxiliary kernels of the softmax losses: the denominators of means over labels, and the sums of
calls that keep dimensions."""

# Triton constants are upper case, and a branch on one is static.
import triton
import triton.language as tl

from lossops.core.triton.kernels import reduce_splits, store


@triton.jit
def count_kernel(
    labels,  # [groups, group_size]
    class_weight,  # or None: every label counts 1
    normalizer,  # [groups]
    workspace,  # see reduce_splits; None for a single split
    group_size,
    count,  # number of classes
    ignore_index,
    ONE_IF_NONE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds up the weights of the labels in each group. The grid is (groups, splits)."""
    group = tl.program_id(0).to(tl.int64)
    split, splits = tl.program_id(1), tl.num_programs(1)
    sums = tl.full([BLOCK], 0.0, tl.float64)
    for start in range(split.to(tl.int64) * BLOCK, group_size, splits * BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = at < group_size
        label = tl.load(labels + group * group_size + at, mask=mask, other=0).to(tl.int64)
        mask &= (label != ignore_index) & (label >= 0) & (label < count)
        if class_weight is not None:
            sums += tl.load(class_weight + label, mask=mask, other=0.0).to(tl.float64)
        else:
            sums += mask.to(tl.float64)
    total = tl.sum(sums)
    if workspace is None:
        if ONE_IF_NONE:
            total = tl.where(total == 0, 1.0, total)
        store(normalizer + group, total, None)
    else:
        reduce_splits(
            total, workspace, normalizer, group, tl.num_programs(0), split, splits, 1.0, 1024,
            ONE_IF_NONE,
        )  # fmt: skip


@triton.jit
def reduce_kernel(
    value,  # [groups, group_size], float64
    normalizer,  # [1] or [groups], see NORMALIZER
    reduced,  # [groups]
    group_size,
    scale: tl.float64,
    NORMALIZER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Reduces the losses of the rows in each group. The grid is (groups,)."""
    group = tl.program_id(0).to(tl.int64)
    sums = tl.full([BLOCK], 0.0, tl.float64)
    for start in range(0, group_size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        sums += tl.load(value + group * group_size + at, mask=at < group_size, other=0.0)
    factor = tl.full([], scale, tl.float64)
    if normalizer is not None:
        factor /= tl.load(normalizer + (group if NORMALIZER == "group" else 0)).to(tl.float64)
    store(reduced + group, tl.sum(sums) * factor, None)
