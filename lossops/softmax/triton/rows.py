"""Helpers of the softmax kernels for rows: their addresses, scores and distributions.

A tensor of rows x classes, ``numbers``, is passed as (tensor, strides) with strides (outer, class,
inner). Row r has the outer index r / inner and the inner index r % inner. Triton compiles a stride
of 1 as a constant. Tensors with one value per row are contiguous. ``form`` is (softcap,
temperature), each None if the call has none.

With logits z, their maximum m and S = sum exp(z - m): log q_c = (z_c - m) - log S, which loses no
digits for large m.
"""

# Triton constants are upper case, and a branch on one is static.
# ruff: noqa: RET505
import triton
import triton.language as tl

from lossops.core.triton.kernels import reduce_splits, store
from lossops.core.triton.math import divide, expm1, log1p
from lossops.softmax.triton.losses import times


@triton.jit
def place_of(tiles_per_outer, inner, ROWS: tl.constexpr):
    """The rows of a program: outer index, inner indices, which rows exist, and row numbers."""
    tile = tl.program_id(0).to(tl.int64)
    outer_at = tile // tiles_per_outer
    inner_at = tile % tiles_per_outer * ROWS + tl.arange(0, ROWS)
    return outer_at, inner_at, inner_at < inner, outer_at * inner + inner_at


@triton.jit
def starts(numbers, place):
    """Pointers to the starts of the rows."""
    tensor, strides = numbers
    return tensor + (place[0] * strides[0] + place[1] * strides[2])


@triton.jit
def pointers(numbers, place, classes):
    at = classes.to(tl.int64) * numbers[1][1]
    return starts(numbers, place)[:, None] + at[None, :]


@triton.jit
def load_own(numbers, place, label, inside, COMPUTE: tl.constexpr):
    """The values at the labels' classes."""
    at = starts(numbers, place) + label.to(tl.int64) * numbers[1][1]
    return tl.load(at, mask=inside, other=0.0).to(COMPUTE)


@triton.jit
def mask_of(place, classes, count):
    return place[2][:, None] & (classes < count)[None, :]


@triton.jit
def store_rows(tensor, place, values):
    if tensor is not None:
        store(tensor + place[3], values, place[2])


@triton.jit
def of_rows(tensor, place, HOW: tl.constexpr, group_size):
    """Loads a quantity of which there is one in total, one per group or one per row."""
    if HOW == "one":
        return tl.load(tensor).to(tl.float64)
    elif HOW == "group":
        return tl.load(tensor + place[3] // group_size, mask=place[2], other=1.0).to(tl.float64)
    else:
        return tl.load(tensor + place[3], mask=place[2], other=0.0).to(tl.float64)


@triton.jit
def factors(
    normalizer, grad_output, scale, place, group_size,
    NORMALIZER: tl.constexpr, GRAD_OUTPUT: tl.constexpr, COMPUTE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The factor of a row's derivatives, and a second factor that is applied last. The order is the
    same as when a forward-pass gradient is rescaled, so the bits are the same, too."""
    factor = tl.full([ROWS], scale, tl.float64)
    if normalizer is not None:
        factor /= of_rows(normalizer, place, NORMALIZER, group_size)
    upstream = tl.full([ROWS], 1.0, tl.float64)
    if grad_output is not None:
        upstream *= of_rows(grad_output, place, GRAD_OUTPUT, group_size)
    return factor.to(COMPUTE), upstream.to(COMPUTE)


@triton.jit
def labels_of(labels, place, ignore_index, count):
    """The labels, which rows count, and which of those have a valid class. Any other label is
    -1."""
    label = tl.load(labels + place[3], mask=place[2], other=0).to(tl.int64)
    counts = place[2] & (label != ignore_index)
    inside = counts & (label >= 0) & (label < count)
    return tl.where(inside, label, -1).to(tl.int32), counts, inside


@triton.jit
def scores(x, form, FORM: tl.constexpr):
    """The logits after softcap and temperature, or the log-probabilities."""
    if FORM == "probs":
        return tl.where(x > 0, tl.log(x), tl.where(x == x, float("-inf"), x))
    elif FORM == "log_probs":
        return x
    else:
        cap, temperature = form
        if cap is not None:
            v = expm1(-2 * tl.abs(divide(x, cap)))
            tanh = divide(-v, 2 + v)
            x = cap * tl.where(x < 0, -tanh, tanh)
        if temperature is not None:
            x = divide(x, temperature)
        return x


@triton.jit
def read(numbers, place, classes, mask, form, FORM: tl.constexpr, COMPUTE: tl.constexpr):
    """The values of rows and their scores. Masked elements get those of an impossible class."""
    other: tl.constexpr = 0.0 if FORM == "probs" else float("-inf")
    x = tl.load(pointers(numbers, place, classes), mask=mask, other=other).to(COMPUTE)
    z = scores(x, form, FORM)
    if FORM == "logits" and form[0] is not None:
        z = tl.where(mask, z, float("-inf"))
    return x, z


@triton.jit
def slope(x, form, FORM: tl.constexpr):
    """dz/dx of softcap and temperature."""
    cap, temperature = form
    by = tl.full([1, 1], 1.0, x.dtype)
    if FORM == "logits":
        if cap is not None:
            e = tl.exp(-2 * tl.abs(divide(x, cap)))
            by = divide(4 * e, (1 + e) * (1 + e))  # 1 - tanh², without cancellation
        if temperature is not None:
            by = divide(by, temperature)
    return by


@triton.jit
def above(z, m):
    """z - m for the maximum m so far. Equal infinities give 0, the limit. If m is -inf, because
    nothing else has been seen, z is returned unchanged."""
    base = tl.where(m == float("-inf"), 0.0, m)
    return tl.where(z == base, 0.0, z - base)


@triton.jit
def online(m, others, z):
    """Updates the maximum m and the sum of exp(z - m) minus 1: one term that equals 1, such as the
    maximum's, is left out. If one class is nearly certain, the digits of the log-probabilities come
    from the other terms alone.

    Also returns the change of the maximum, the factor that rescales the old sum, and z - m and its
    exp for the new scores.
    """
    m_new = tl.maximum(m, tl.max(z, axis=1))
    change = above(m, m_new)
    rescale = tl.exp(change)
    centered = above(z, m_new[:, None])
    e = tl.exp(centered)
    equal = (centered == 0) & (z > float("-inf"))
    lower = tl.sum(tl.where(equal, 0.0, e), axis=1)
    count = tl.sum(equal.to(e.dtype), axis=1)
    same = (m == m_new) & (m > float("-inf"))
    others = tl.where(same, others + lower + count, rescale * (1 + others) + lower + (count - 1))
    return m_new, others, rescale, change, e, centered


@triton.jit
def settle(m, others, count, FORM: tl.constexpr):
    """m, log S, 1 / S and lse of rows of `count` classes, where S is the sum of exp(z - m): log q =
    (z - m) - log S. If all scores are -inf, the classes are equally probable."""
    if FORM == "logits":
        equal = (m == float("-inf")) & (others == others)
        others = tl.where(equal, (count - 1).to(others.dtype), others)
        log_s = log1p(others)
        return m, log_s, divide(tl.zeros_like(others) + 1, 1 + others), m + log_s
    else:
        zero = tl.zeros_like(others)
        return zero, zero, zero + 1, zero


@triton.jit
def below_maximum(z, m):
    """z - m for the maximum m of the row; 0 where both are the same infinity."""
    base = tl.where(m == float("-inf"), 0.0, m)  # without this, the longest rows spill on sm_100
    return tl.where(z == m, 0.0, z - base)


@triton.jit
def distribution(x, z, row, FORM: tl.constexpr):
    """Probabilities and their logarithms. In a row of only -inf, masked elements get the same
    values as the classes."""
    if FORM == "logits":
        centered = below_maximum(z, row[0][:, None])
        return tl.exp(centered) * row[2][:, None], centered - row[1][:, None]
    elif FORM == "probs":
        return x, z
    else:
        return tl.exp(z), z


@triton.jit
def walked_distribution(walked, row):
    """The same for a row of logits that `online` processed in one step, from its z - m and exp(z -
    m): these take fewer registers than a second exp."""
    equal = (row[0] == float("-inf"))[:, None]
    centered = tl.where(equal, 0.0, walked[0])
    return tl.where(equal, 1.0, walked[1]) * row[2][:, None], centered - row[1][:, None]


@triton.jit
def by_rows(q, log_q, grad_lse, grad_entropy, entropy, FORM: tl.constexpr):
    """The derivative of grad_lse lse + grad_entropy H with respect to the scores."""
    total = tl.zeros_like(q)
    if FORM == "logits":
        if grad_lse is not None:
            total += grad_lse[:, None] * q
        if grad_entropy is not None:
            total -= grad_entropy[:, None] * (times(q, log_q) + q * entropy[:, None])
    elif FORM == "log_probs":
        if grad_entropy is not None:
            total -= grad_entropy[:, None] * (times(q, log_q) + q)
    else:
        if grad_entropy is not None:
            total -= grad_entropy[:, None] * (log_q + 1)
    return total


@triton.jit
def conclude(total, reduced, workspace, normalizer, scale, SPAN: tl.constexpr):
    """Reduces the sums of all programs to one value, for calls that keep no dimension."""
    if reduced is not None:
        factor = tl.full([], scale, tl.float64)
        if normalizer is not None:
            factor /= tl.load(normalizer).to(tl.float64)
        if workspace is None:
            store(reduced, total * factor, None)
        else:
            one = tl.full([], 1, tl.int32)
            program, programs = tl.program_id(0), tl.num_programs(0)
            reduce_splits(total, workspace, reduced, 0, one, program, programs, factor, SPAN)
