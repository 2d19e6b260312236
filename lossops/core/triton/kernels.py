"""Device functions shared by the kernels of all families."""

import triton
import triton.language as tl


@triton.jit
def store(pointers, values, mask):
    """Stores in the tensor's dtype. Converts float64 to a half dtype through float32."""
    if pointers.dtype.scalar.element_ty.primitive_bitwidth == 16:
        values = values.to(tl.float32)
    tl.store(pointers, values, mask=mask)


@triton.jit
def reduce_splits(
    total,  # this program's partial sum of its group, float64
    workspace,  # [groups, splits] partial sums, then [groups] tickets; float64, zeroed
    reduced,  # [groups]
    group,
    groups,
    split,
    splits,
    factor,
    SPAN: tl.constexpr,
    ONE_IF_NONE: tl.constexpr = False,  # writes 1 instead of 0
):
    """The last program of a group to arrive adds up the partial sums and writes the reduced loss.

    The order of the additions does not depend on which program arrives last.
    """
    shares = workspace + group * splits
    tickets = (workspace + groups.to(tl.int64) * splits).to(tl.pointer_type(tl.int32))
    tl.store(shares + split, total)
    tl.debug_barrier()  # the partial sum must be written before the ticket is taken
    if tl.atomic_add(tickets + group, 1, sem="acq_rel", scope="gpu") == splits - 1:
        sums = tl.full([SPAN], 0.0, tl.float64)
        for start in range(0, splits, SPAN):
            lanes = start + tl.arange(0, SPAN)
            # Read from L2: the L1 of this multiprocessor does not see writes by other
            # multiprocessors.
            sums += tl.load(shares + lanes, mask=lanes < splits, other=0.0, cache_modifier=".cg")
        result = tl.sum(sums) * factor
        if ONE_IF_NONE:
            result = tl.where(result == 0, 1.0, result)
        store(reduced + group, result, None)
