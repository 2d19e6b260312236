"""The kernels of the losses over rows of class scores.

A program takes a tile of ROWS rows. Where a row fits into registers (RESIDENT), it is read
once: its log-sum-exp, its loss and its gradient come of the same numbers. A longer row is walked
through by blocks of classes, and again for its gradient, which reads it again; a divergence has a
walk in between, for the sums in its gradient.

The formulas are those of ``lossops/library.py``.
"""

# Triton's constants are written in capitals, and a branch on one is static.
# ruff: noqa: N806, RET505, SIM300
import triton
import triton.language as tl

from lossops.triton.elementwise_kernels import _reduce_splits, _store, divide
from lossops.triton.softmax_losses import times
from lossops.triton.softmax_rows import (
    by_rows,
    conclude,
    distribution,
    factors,
    labels_of,
    load_own,
    mask_of,
    of_rows,
    online,
    place_of,
    pointers,
    read,
    scores,
    settle,
    slope,
    store_rows,
)

# ---------------------------------------------------------------------------------------------
# Label losses.


@triton.jit
def _shares(
    target, class_weight, place, classes, mask, keep, spread,
    COUNT, SMOOTHED: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """t_c as far as it does not come of a label, and the class weights."""
    w = tl.full([1, 1], 1.0, COMPUTE)
    if class_weight is not None:
        w = tl.load(class_weight + classes, mask=classes < COUNT, other=0.0).to(COMPUTE)[None, :]
    t = tl.full([1, 1], 0.0, COMPUTE)
    if target is not None:
        t = keep * tl.load(pointers(target, place, classes), mask=mask, other=0.0).to(COMPUTE)
    if SMOOTHED:
        t = tl.where(mask, t + spread, 0.0)
    return t * w, w


@triton.jit
def _label_walk(state, z, t, FORM: tl.constexpr, DENSE: tl.constexpr, ENTROPY: tl.constexpr,
                ACCURACY: tl.constexpr):  # fmt: skip
    """Takes more classes into account: the maximum m and sum S of exp(z - m); sum t_c and
    sum t_c (z_c - m); sum exp(z_c - m) (z_c - m); and whether a score is NaN."""
    m, s, a, dot, energy, broken = state
    if FORM == "logits":
        old = s
        m, s, rescale, shift, e = online(m, s, z)
        centered = z - tl.where(tl.abs(m) == float("inf"), 0.0, m)[:, None]
        if DENSE:
            dot += times(a, shift)
        if ENTROPY:
            energy = rescale * (energy + old * shift) + tl.sum(times(e, centered), axis=1)
    else:
        centered = z
        if ENTROPY:
            energy += tl.sum(times(tl.exp(z), z), axis=1)
    if DENSE:
        a += tl.sum(t, axis=1)
        dot += tl.sum(times(t, centered), axis=1)
    if ACCURACY:
        m = tl.maximum(m, tl.max(z, axis=1))
        broken = tl.maximum(broken, tl.max((z != z).to(tl.int32), axis=1))
    return m, s, a, dot, energy, broken


@triton.jit
def _label_gradients(
    grad_input, grad_target, x, z, t, w, place, classes, mask, row, entropy, label, counts,
    kappa, at_label, keep, factor, upstream, grad_lse, grad_entropy, form,
    FORM: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    q, log_q = distribution(x, z, row, FORM)
    if grad_input is not None:
        by = tl.zeros_like(z)
        if label is not None:
            by = tl.where(classes[None, :] == label[:, None], -at_label[:, None], 0.0)
        if FORM == "logits":
            by = kappa[:, None] * q + by
        if DENSE:
            by -= t
        if FORM == "probs":
            by = tl.where(by == 0, 0.0, divide(by, x))
        change = slope(z, form, FORM)
        by = by * change * factor[:, None] * upstream[:, None]
        if grad_lse is not None or grad_entropy is not None:
            by += by_rows(q, log_q, grad_lse, grad_entropy, entropy, FORM) * change
        by = tl.where(counts[:, None], by, 0.0)
        _store(pointers(grad_input, place, classes), by, mask)
    if grad_target is not None:
        by_target = -keep * w * log_q * factor[:, None] * upstream[:, None]
        _store(pointers(grad_target, place, classes), by_target, mask)


@triton.jit
def label_loss_kernel(
    input,  # (tensor, strides), see softmax_rows
    target,  # the same, or None for labels
    grad_input,  # the same, or None, as the rest
    grad_target,
    labels,  # [rows], like all tensors but the next ones
    class_weight,  # [classes]
    normalizer,  # [1] or [groups], as NORMALIZER says
    grad_output,  # [1], [groups] or [rows], as GRAD_OUTPUT says
    grad_lse,
    grad_entropy,
    value,
    lse,
    entropy,
    accuracy,
    reduced,  # [1]
    workspace,  # see _reduce_splits; None for a single program
    tiles_per_outer,
    inner,
    count,  # of classes
    group_size,
    ignore_index,
    scale: tl.float64,
    softcap: tl.float64,
    temperature: tl.float64,
    smoothing: tl.float64,
    z_loss: tl.float64,
    p0: tl.float64,
    LOSS: tl.constexpr,
    FORM: tl.constexpr,
    CAPPED: tl.constexpr,
    COOLED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    COMPUTE: tl.constexpr,
    NORMALIZER: tl.constexpr,
    GRAD_OUTPUT: tl.constexpr,
    SKIP_ONE: tl.constexpr,  # do nothing where grad_output is 1
    RESIDENT: tl.constexpr,  # a row is one block
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,  # programs whose sums are added up at once
):
    """Evaluates a label loss, its reduction and its gradients."""
    if SKIP_ONE:
        if tl.load(grad_output).to(tl.float64) == 1:
            return
    DENSE: tl.constexpr = SMOOTHED or target is not None
    ENTROPY: tl.constexpr = entropy is not None or grad_entropy is not None
    ACCURACY: tl.constexpr = accuracy is not None
    GRADIENTS: tl.constexpr = grad_input is not None or grad_target is not None
    form = (
        tl.full([], softcap, COMPUTE) if CAPPED else None,
        tl.full([], temperature, COMPUTE) if COOLED else None,
    )
    keep = (1 - tl.full([], smoothing, tl.float64)).to(COMPUTE)
    spread = (tl.full([], smoothing, tl.float64) / count).to(COMPUTE)
    z_loss = tl.full([], z_loss, COMPUTE)
    zeros = tl.full([ROWS], 0.0, COMPUTE)
    place = place_of(tiles_per_outer, inner, ROWS)
    counts, inside, label = place[2], place[2], None
    if labels is not None:
        label, counts, inside = labels_of(labels, place, ignore_index, count)
        own = scores(load_own(input, place, label, inside, COMPUTE), form, FORM)
        own_weight = zeros + 1
        if class_weight is not None:
            own_weight = tl.load(class_weight + label, mask=inside, other=0.0).to(COMPUTE)

    # What the classes add up to.
    state = (zeros + float("-inf"), zeros, zeros, zeros, zeros, tl.full([ROWS], 0, tl.int32))
    classes = tl.arange(0, BLOCK)
    mask = mask_of(place, classes, count)
    if RESIDENT:
        x, z = read(input, place, classes, mask, form, FORM, COMPUTE)
        t, w = _shares(
            target, class_weight, place, classes, mask, keep, spread, count, SMOOTHED, COMPUTE
        )
        state = _label_walk(state, z, t, FORM, DENSE, ENTROPY, ACCURACY)
    else:
        for start in range(0, count, BLOCK):
            at = start + classes
            mask = mask_of(place, at, count)
            x, z = read(input, place, at, mask, form, FORM, COMPUTE)
            t, w = _shares(
                target, class_weight, place, at, mask, keep, spread, count, SMOOTHED, COMPUTE
            )
            state = _label_walk(state, z, t, FORM, DENSE, ENTROPY, ACCURACY)
    m, s, a, dot, energy, broken = state

    # The row.
    row = settle(m, s, FORM)
    rows_entropy = row[1] - energy * row[2]
    loss = zeros
    at_label = zeros
    if DENSE:
        loss += a * row[1] - dot
    if labels is not None:
        # Both terms are at least 0, and so is their sum.
        f, slope_of_f = LOSS(row[1] - (own - row[0]), tl.full([], p0, COMPUTE))
        loss += keep * own_weight * f
        at_label = keep * own_weight * slope_of_f
    kappa = a + at_label + 2 * z_loss * row[3]
    loss += z_loss * row[3] * row[3]
    loss = tl.where(counts, tl.where(inside, loss, float("nan")), 0.0)
    store_rows(value, place, loss)
    store_rows(lse, place, row[3])
    store_rows(entropy, place, rows_entropy)
    if ACCURACY:
        store_rows(accuracy, place, tl.where(inside & (own >= m) & (broken == 0), 1.0, 0.0))
    total = tl.sum(loss.to(tl.float64))

    # The gradient.
    if GRADIENTS:
        factor, upstream = factors(
            normalizer, grad_output, scale, place, group_size,
            NORMALIZER, GRAD_OUTPUT, COMPUTE, ROWS,
        )  # fmt: skip
        by_lse, by_entropy = None, None
        if grad_lse is not None:
            by_lse = of_rows(grad_lse, place, "row", group_size).to(COMPUTE)
        if grad_entropy is not None:
            by_entropy = of_rows(grad_entropy, place, "row", group_size).to(COMPUTE)
        if RESIDENT:
            _label_gradients(
                grad_input, grad_target, x, z, t, w, place, classes, mask, row, rows_entropy,
                label, inside, kappa, at_label, keep, factor, upstream, by_lse, by_entropy,
                form, FORM, DENSE,
            )  # fmt: skip
        else:
            for start in range(0, count, BLOCK):
                at = start + classes
                mask = mask_of(place, at, count)
                x, z = read(input, place, at, mask, form, FORM, COMPUTE)
                t, w = _shares(
                    target, class_weight, place, at, mask, keep, spread, count, SMOOTHED,
                    COMPUTE,
                )  # fmt: skip
                _label_gradients(
                    grad_input, grad_target, x, z, t, w, place, at, mask, row, rows_entropy,
                    label, inside, kappa, at_label, keep, factor, upstream, by_lse, by_entropy,
                    form, FORM, DENSE,
                )  # fmt: skip

    conclude(total, reduced, workspace, normalizer, scale, SPAN)


# ---------------------------------------------------------------------------------------------
# Divergences.


@triton.jit
def _side(
    numbers, label, place, classes, mask, form, FORM: tl.constexpr, COMPUTE: tl.constexpr
):
    """The numbers and scores of one side; of a label those of its one-hot distribution."""
    if FORM == "labels":
        x = tl.where(classes[None, :] == label[:, None], 1.0, 0.0).to(COMPUTE)
        return x, tl.where(x > 0, 0.0, float("-inf"))
    else:
        return read(numbers, place, classes, mask, form, FORM, COMPUTE)


@triton.jit
def _side_distribution(x, z, row, FORM: tl.constexpr):
    if FORM == "labels":
        return x, z
    else:
        return distribution(x, z, row, FORM)


@triton.jit
def _normalize(state, z, FORM: tl.constexpr, ACCURACY: tl.constexpr):
    """Takes more scores into account: their maximum m, the sum of exp(z - m), whether one is NaN."""
    m, s, broken = state
    if FORM == "logits":
        m, s, rescale, shift, e = online(m, s, z)
    if ACCURACY:
        m = tl.maximum(m, tl.max(z, axis=1))
        broken = tl.maximum(broken, tl.max((z != z).to(tl.int32), axis=1))
    return m, s, broken


@triton.jit
def _divergence_walk(
    state, q_side, p_side, q_row, p_row,
    LOSS: tl.constexpr, FORM: tl.constexpr, TARGET_FORM: tl.constexpr, ENTROPY: tl.constexpr,
):  # fmt: skip
    """Adds more classes to: the divergence; its derivatives by log q and by log p; -H."""
    value, by_q_sum, by_p_sum, energy = state
    q, log_q = distribution(q_side[0], q_side[1], q_row, FORM)
    p, log_p = _side_distribution(p_side[0], p_side[1], p_row, TARGET_FORM)
    f, by_q, by_log_q, by_p, by_log_p = LOSS(p, log_p, q, log_q)
    if ENTROPY:
        energy += tl.sum(times(q, log_q), axis=1)
    return (
        value + tl.sum(f, axis=1),
        by_q_sum + tl.sum(by_log_q, axis=1),
        by_p_sum + tl.sum(by_log_p, axis=1),
        energy,
    )


@triton.jit
def _by_side(x_or_probability, by, by_log, by_sum, FORM: tl.constexpr):
    """The derivative by the numbers of a side."""
    if FORM == "logits":
        return by_log - x_or_probability * by_sum[:, None]
    elif FORM == "log_probs":
        return by_log
    else:
        return by


@triton.jit
def _divergence_gradients(
    grad_input, grad_target, q_side, p_side, q_row, p_row, place, classes, mask, counts, state,
    factor, upstream, grad_lse, grad_entropy, form,
    LOSS: tl.constexpr, FORM: tl.constexpr, TARGET_FORM: tl.constexpr,
):  # fmt: skip
    q, log_q = distribution(q_side[0], q_side[1], q_row, FORM)
    p, log_p = _side_distribution(p_side[0], p_side[1], p_row, TARGET_FORM)
    f, by_q, by_log_q, by_p, by_log_p = LOSS(p, log_p, q, log_q)
    if grad_input is not None:
        change = slope(q_side[1], form, FORM)
        by = _by_side(q, by_q, by_log_q, state[1], FORM) * change
        by = by * factor[:, None] * upstream[:, None]
        if grad_lse is not None or grad_entropy is not None:
            by += by_rows(q, log_q, grad_lse, grad_entropy, -state[3], FORM) * change
        by = tl.where(counts[:, None], by, 0.0)
        _store(pointers(grad_input, place, classes), by, mask)
    if grad_target is not None:
        change = slope(p_side[1], form, TARGET_FORM)
        by = _by_side(p, by_p, by_log_p, state[2], TARGET_FORM) * change
        _store(pointers(grad_target, place, classes), by * factor[:, None] * upstream[:, None], mask)


@triton.jit
def divergence_kernel(
    input,  # as in label_loss_kernel, all of them
    target,
    grad_input,
    grad_target,
    labels,
    normalizer,
    grad_output,
    grad_lse,
    grad_entropy,
    value,
    lse,
    entropy,
    accuracy,
    reduced,
    workspace,
    tiles_per_outer,
    inner,
    count,
    group_size,
    ignore_index,
    scale: tl.float64,
    temperature: tl.float64,
    LOSS: tl.constexpr,
    FORM: tl.constexpr,
    TARGET_FORM: tl.constexpr,
    COOLED: tl.constexpr,
    COMPUTE: tl.constexpr,
    NORMALIZER: tl.constexpr,
    GRAD_OUTPUT: tl.constexpr,
    SKIP_ONE: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Evaluates a divergence, its reduction and its gradients."""
    if SKIP_ONE:
        if tl.load(grad_output).to(tl.float64) == 1:
            return
    ENTROPY: tl.constexpr = entropy is not None or grad_entropy is not None
    GRADIENTS: tl.constexpr = grad_input is not None or grad_target is not None
    form = (
        None,
        tl.full([], temperature, COMPUTE) if COOLED else None,
    )
    zeros = tl.full([ROWS], 0.0, COMPUTE)
    place = place_of(tiles_per_outer, inner, ROWS)
    counts, inside, label = place[2], place[2], None
    if labels is not None:
        label, counts, inside = labels_of(labels, place, ignore_index, count)

    # The distributions.
    q_state = (zeros + float("-inf"), zeros, tl.full([ROWS], 0, tl.int32))
    p_state = (zeros + float("-inf"), zeros, tl.full([ROWS], 0, tl.int32))
    classes = tl.arange(0, BLOCK)
    mask = mask_of(place, classes, count)
    if RESIDENT:
        q_side = _side(input, label, place, classes, mask, form, FORM, COMPUTE)
        p_side = _side(target, label, place, classes, mask, form, TARGET_FORM, COMPUTE)
        q_state = _normalize(q_state, q_side[1], FORM, accuracy is not None)
        p_state = _normalize(p_state, p_side[1], TARGET_FORM, False)
    elif FORM == "logits" or TARGET_FORM == "logits" or accuracy is not None:
        for start in range(0, count, BLOCK):
            at = start + classes
            mask = mask_of(place, at, count)
            if FORM == "logits" or accuracy is not None:
                q_side = _side(input, label, place, at, mask, form, FORM, COMPUTE)
                q_state = _normalize(q_state, q_side[1], FORM, accuracy is not None)
            if TARGET_FORM == "logits":
                p_side = _side(target, label, place, at, mask, form, TARGET_FORM, COMPUTE)
                p_state = _normalize(p_state, p_side[1], TARGET_FORM, False)
    q_row = settle(q_state[0], q_state[1], FORM)
    p_row = settle(p_state[0], p_state[1], TARGET_FORM)

    # What the classes add up to.
    state = (zeros, zeros, zeros, zeros)
    if RESIDENT:
        state = _divergence_walk(
            state, q_side, p_side, q_row, p_row, LOSS, FORM, TARGET_FORM, ENTROPY
        )
    else:
        for start in range(0, count, BLOCK):
            at = start + classes
            mask = mask_of(place, at, count)
            q_side = _side(input, label, place, at, mask, form, FORM, COMPUTE)
            p_side = _side(target, label, place, at, mask, form, TARGET_FORM, COMPUTE)
            state = _divergence_walk(
                state, q_side, p_side, q_row, p_row, LOSS, FORM, TARGET_FORM, ENTROPY
            )
    loss = tl.where(counts, tl.where(inside, state[0], float("nan")), 0.0)
    store_rows(value, place, loss)
    store_rows(lse, place, q_row[3])
    store_rows(entropy, place, -state[3])
    if accuracy is not None:
        own = scores(load_own(input, place, label, inside, COMPUTE), form, FORM)
        best = (own >= q_state[0]) & (q_state[2] == 0)
        store_rows(accuracy, place, tl.where(inside & best, 1.0, 0.0))
    total = tl.sum(loss.to(tl.float64))

    # The gradients.
    if GRADIENTS:
        factor, upstream = factors(
            normalizer, grad_output, scale, place, group_size,
            NORMALIZER, GRAD_OUTPUT, COMPUTE, ROWS,
        )  # fmt: skip
        by_lse, by_entropy = None, None
        if grad_lse is not None:
            by_lse = of_rows(grad_lse, place, "row", group_size).to(COMPUTE)
        if grad_entropy is not None:
            by_entropy = of_rows(grad_entropy, place, "row", group_size).to(COMPUTE)
        if RESIDENT:
            _divergence_gradients(
                grad_input, grad_target, q_side, p_side, q_row, p_row, place, classes, mask,
                inside, state, factor, upstream, by_lse, by_entropy, form,
                LOSS, FORM, TARGET_FORM,
            )  # fmt: skip
        else:
            for start in range(0, count, BLOCK):
                at = start + classes
                mask = mask_of(place, at, count)
                q_side = _side(input, label, place, at, mask, form, FORM, COMPUTE)
                p_side = _side(target, label, place, at, mask, form, TARGET_FORM, COMPUTE)
                _divergence_gradients(
                    grad_input, grad_target, q_side, p_side, q_row, p_row, place, at, mask,
                    inside, state, factor, upstream, by_lse, by_entropy, form,
                    LOSS, FORM, TARGET_FORM,
                )  # fmt: skip
    conclude(total, reduced, workspace, normalizer, scale, SPAN)


# ---------------------------------------------------------------------------------------------
# Around them.


@triton.jit
def count_kernel(
    labels,  # [groups, group_size]
    class_weight,  # or None: every label counts 1
    normalizer,  # [groups]
    workspace,  # see _reduce_splits; None for a single split
    group_size,
    count,  # of classes
    ignore_index,
    ONE_IF_NONE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds up the weights of each group's labels. The grid is (groups, splits)."""
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
        _store(normalizer + group, total, None)
    else:
        _reduce_splits(
            total, workspace, normalizer, group, tl.num_programs(0), split, splits, 1.0, 1024,
            ONE_IF_NONE,
        )  # fmt: skip


@triton.jit
def reduce_kernel(
    value,  # [groups, group_size], float64
    normalizer,  # [1] or [groups], as NORMALIZER says
    reduced,  # [groups]
    group_size,
    scale: tl.float64,
    NORMALIZER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Reduces the losses of each group's rows. The grid is (groups,)."""
    group = tl.program_id(0).to(tl.int64)
    sums = tl.full([BLOCK], 0.0, tl.float64)
    for start in range(0, group_size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        sums += tl.load(value + group * group_size + at, mask=at < group_size, other=0.0)
    factor = tl.full([], scale, tl.float64)
    if normalizer is not None:
        factor /= tl.load(normalizer + (group if NORMALIZER == "group" else 0)).to(tl.float64)
    _store(reduced + group, tl.sum(sums) * factor, None)
