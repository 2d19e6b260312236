"""The kernel of the divergences.

It works like the kernel of the label losses, but makes one more pass over a row that does not fit
into registers: the gradient needs a sum over the classes, which in turn needs the distributions.
Without gradients, that pass is the last. The first pass is skipped if no side has logits and no
accuracy is requested.
"""

# Triton constants are upper case, and a branch on one is static.
# ruff: noqa: N806, RET505
import triton
import triton.language as tl

from lossops.core.triton.kernels import store
from lossops.softmax.triton.losses import times
from lossops.softmax.triton.rows import (
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


@triton.jit
def _side(numbers, label, place, classes, mask, form, FORM: tl.constexpr, COMPUTE: tl.constexpr):
    """The values and scores of one side. For labels, those of the one-hot distribution."""
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
    """Updates the running maximum m, the sum of exp(z - m) minus 1, and whether a score is NaN."""
    m, s, broken = state
    if FORM == "logits":
        m, s, _rescale, _change, _e, _centered = online(m, s, z)
    if ACCURACY:
        m = tl.maximum(m, tl.max(z, axis=1))
        broken = tl.maximum(broken, tl.max((z != z).to(tl.int32), axis=1))
    return m, s, broken


@triton.jit
def _divergence_walk(
    state, q_side, p_side, q_row, p_row, mask,
    LOSS: tl.constexpr, FORM: tl.constexpr, TARGET_FORM: tl.constexpr, ENTROPY: tl.constexpr,
):  # fmt: skip
    """Adds a block of classes to the sums: the divergence, its derivatives with respect to log q
    and log p, and -H."""
    value, by_q_sum, by_p_sum, energy = state
    q, log_q = distribution(q_side[0], q_side[1], q_row, FORM)
    p, log_p = _side_distribution(p_side[0], p_side[1], p_row, TARGET_FORM)
    f, _by_q, by_log_q, _by_p, by_log_p = LOSS(p, log_p, q, log_q)
    if ENTROPY:
        energy += tl.sum(tl.where(mask, times(q, log_q), 0.0), axis=1)
    return (
        value + tl.sum(tl.where(mask, f, 0.0), axis=1),
        by_q_sum + tl.sum(tl.where(mask, by_log_q, 0.0), axis=1),
        by_p_sum + tl.sum(tl.where(mask, by_log_p, 0.0), axis=1),
        energy,
    )


@triton.jit
def _by_side(x_or_probability, by, by_log, by_sum, FORM: tl.constexpr):
    """The derivative with respect to the values of one side."""
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
    _f, by_q, by_log_q, by_p, by_log_p = LOSS(p, log_p, q, log_q)
    if grad_input is not None:
        change = slope(q_side[0], form, FORM)
        by = _by_side(q, by_q, by_log_q, state[1], FORM) * change
        by = tl.where(counts[:, None], by * factor[:, None] * upstream[:, None], 0.0)
        if grad_lse is not None or grad_entropy is not None:
            by += by_rows(q, log_q, grad_lse, grad_entropy, -state[3], FORM) * change
        store(pointers(grad_input, place, classes), by, mask)
    if grad_target is not None:
        change = slope(p_side[0], form, TARGET_FORM)
        by = _by_side(p, by_p, by_log_p, state[2], TARGET_FORM) * change
        store(pointers(grad_target, place, classes), by * factor[:, None] * upstream[:, None], mask)


@triton.jit
def divergence_kernel(
    input,  # parameters as in label_loss_kernel
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

    # Pass 1: the normalisation of both distributions.
    q_state = (zeros + float("-inf"), zeros - 1, tl.full([ROWS], 0, tl.int32))
    p_state = (zeros + float("-inf"), zeros - 1, tl.full([ROWS], 0, tl.int32))
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
    q_row = settle(q_state[0], q_state[1], count, FORM)
    p_row = settle(p_state[0], p_state[1], count, TARGET_FORM)

    # Pass 2: the sums over the classes.
    state = (zeros, zeros, zeros, zeros)
    if RESIDENT:
        state = _divergence_walk(
            state, q_side, p_side, q_row, p_row, mask, LOSS, FORM, TARGET_FORM, ENTROPY
        )
    else:
        for start in range(0, count, BLOCK):
            at = start + classes
            mask = mask_of(place, at, count)
            q_side = _side(input, label, place, at, mask, form, FORM, COMPUTE)
            p_side = _side(target, label, place, at, mask, form, TARGET_FORM, COMPUTE)
            state = _divergence_walk(
                state, q_side, p_side, q_row, p_row, mask, LOSS, FORM, TARGET_FORM, ENTROPY
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

    # Pass 3: the gradients.
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
