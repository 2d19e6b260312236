"""The kernel of the label losses.

A program processes a tile of ROWS rows. A row that fits into registers (RESIDENT) is read once: its
log-sum-exp, loss and gradient are computed from the same values. A longer row is read in blocks of
classes, and a second time for its gradient.
"""

# Triton constants are upper case, and a branch on one is static.
# ruff: noqa: N806
import triton
import triton.language as tl

from lossops.core.triton.kernels import store
from lossops.core.triton.math import divide, expm1
from lossops.softmax.triton.losses import times
from lossops.softmax.triton.rows import (
    below_maximum,
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
    walked_distribution,
)


@triton.jit
def _shares(
    target, class_weight, place, classes, mask, keep, spread,
    COUNT, SMOOTHED: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """The part of t_c that does not come from a label, and the class weights."""
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
    """Adds a block of classes to the running values: the maximum m and the sum of exp(z - m) minus
    1; sum t_c and sum t_c (z_c - m); sum exp(z_c - m) (z_c - m); and whether a score is NaN. Also
    returns the inputs of `walked_distribution`, for a row that consists of this block only."""
    m, s, a, dot, energy, broken = state
    walked = None
    if FORM == "logits":
        old = 1 + s
        m, s, rescale, change, e, centered = online(m, s, z)
        walked = centered, e
        if DENSE:
            dot += times(a, change)
        if ENTROPY:
            energy = rescale * energy + times(rescale * old, change)
            energy += tl.sum(times(e, centered), axis=1)
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
    return (m, s, a, dot, energy, broken), walked


@triton.jit
def _label_gradients(
    grad_input, grad_target, x, z, t, w, place, classes, mask, row, walked, entropy, label, counts,
    kappa, own_slope, keep, factor, upstream, grad_lse, grad_entropy, form,
    FORM: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    if walked is None:
        q, log_q = distribution(x, z, row, FORM)
    else:
        q, log_q = walked_distribution(walked, row)
    if grad_input is not None:
        by = kappa[:, None] * q if FORM == "logits" else tl.zeros_like(z)
        if label is not None:
            by = tl.where(classes[None, :] == label[:, None], own_slope[:, None], by)
        if DENSE:
            by -= t
        if FORM == "probs":
            by = tl.where(by == 0, 0.0, divide(by, x))
        change = slope(x, form, FORM)
        by = tl.where(counts[:, None], by * change * factor[:, None] * upstream[:, None], 0.0)
        if grad_lse is not None or grad_entropy is not None:
            by += by_rows(q, log_q, grad_lse, grad_entropy, entropy, FORM) * change
        store(pointers(grad_input, place, classes), by, mask)
    if grad_target is not None:
        by_target = -keep * w * log_q * factor[:, None] * upstream[:, None]
        store(pointers(grad_target, place, classes), by_target, mask)


@triton.jit
def label_loss_kernel(
    input,  # (tensor, strides), see lossops/softmax/triton/rows.py
    target,  # likewise, or None for labels
    grad_input,  # likewise; or None, like all tensors below
    grad_target,
    labels,  # [rows], like all tensors without a shape below
    class_weight,  # [classes]
    normalizer,  # [1] or [groups], see NORMALIZER
    grad_output,  # [1], [groups] or [rows], see GRAD_OUTPUT
    grad_lse,
    grad_entropy,
    value,
    lse,
    entropy,
    accuracy,
    reduced,  # [1]
    workspace,  # see reduce_splits; None for a single program
    tiles_per_outer,
    inner,
    count,  # number of classes
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
    SKIP_ONE: tl.constexpr,  # do nothing if grad_output is 1
    RESIDENT: tl.constexpr,  # a row is one block
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,  # number of partial sums added at once
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

    # Pass 1: the sums over the classes.
    state = (zeros + float("-inf"), zeros - 1, zeros, zeros, zeros, tl.full([ROWS], 0, tl.int32))
    classes = tl.arange(0, BLOCK)
    mask = mask_of(place, classes, count)
    if RESIDENT:
        x, z = read(input, place, classes, mask, form, FORM, COMPUTE)
        t, w = _shares(
            target, class_weight, place, classes, mask, keep, spread, count, SMOOTHED, COMPUTE
        )
        state, walked = _label_walk(state, z, t, FORM, DENSE, ENTROPY, ACCURACY)
    else:
        for start in range(0, count, BLOCK):
            at = start + classes
            mask = mask_of(place, at, count)
            x, z = read(input, place, at, mask, form, FORM, COMPUTE)
            t, w = _shares(
                target, class_weight, place, at, mask, keep, spread, count, SMOOTHED, COMPUTE
            )
            state, _ = _label_walk(state, z, t, FORM, DENSE, ENTROPY, ACCURACY)
    m, s, a, dot, energy, broken = state

    # The losses of the rows.
    row = settle(m, s, count, FORM)
    rows_entropy = row[1] - energy * row[2]
    loss = zeros
    at_label, own_slope = zeros, zeros
    if DENSE:
        if FORM == "logits":
            dot = tl.where(m == float("-inf"), 0.0, dot)
        loss += a * row[1] - dot
    if labels is not None:
        # Both terms are non-negative, so their sum is, too.
        information = row[1] - below_maximum(own, row[0])
        f, slope_of_f = LOSS(information, tl.full([], p0, COMPUTE))
        loss += times(keep * own_weight, f)
        at_label = keep * own_weight * slope_of_f
    rest = a + 2 * times(z_loss, row[3])
    kappa = at_label + rest
    if labels is not None:
        # The derivative with respect to the label's score contains q - 1, written so that it does
        # not cancel for q near 1.
        own_slope = -at_label
        if FORM == "logits":
            own_slope = at_label * expm1(-information) + rest * tl.exp(-information)
    loss += times(z_loss, row[3] * row[3])
    loss = tl.where(counts, tl.where(inside, loss, float("nan")), 0.0)
    store_rows(value, place, loss)
    store_rows(lse, place, row[3])
    store_rows(entropy, place, rows_entropy)
    if ACCURACY:
        store_rows(accuracy, place, tl.where(inside & (own >= m) & (broken == 0), 1.0, 0.0))
    total = tl.sum(loss.to(tl.float64))

    # Pass 2: the gradients.
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
                grad_input, grad_target, x, z, t, w, place, classes, mask, row, walked,
                rows_entropy, label, inside, kappa, own_slope, keep, factor, upstream, by_lse,
                by_entropy, form, FORM, DENSE,
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
                    grad_input, grad_target, x, z, t, w, place, at, mask, row, None,
                    rows_entropy, label, inside, kappa, own_slope, keep, factor, upstream, by_lse,
                    by_entropy, form, FORM, DENSE,
                )  # fmt: skip

    conclude(total, reduced, workspace, normalizer, scale, SPAN)
