"""The elementwise losses in Triton: their formulas and the kernels that evaluate them.

This is the twin of ``csrc/losses/elementwise.h``: it has the same formulas, tie handling and NaN
handling. Each loss is a function of a few lines, passed to the kernel as a ``tl.constexpr``. One
kernel serves the whole family.
"""

from typing import NamedTuple

# Triton constants are upper case, including parameters. A branch on a constant is static, but code
# after a `return` in it would still be compiled.
# ruff: noqa: N806, RET505, SIM300
import triton
import triton.language as tl

from lossops.core.triton.kernels import reduce_splits, store
from lossops.core.triton.math import divide, expm1, log1p
from lossops.elementwise.triton.likelihoods import gaussian, poisson, poisson_log
from lossops.elementwise.triton.margins import hinge_embedding, margin_ranking, soft_margin
from lossops.elementwise.triton.probabilities import (
    bce,
    bce_with_logits,
    kl_div,
    kl_div_log_target,
    sigmoid_focal,
)

# ---------------------------------------------------------------------------------------------
# The losses: functions of d = x - y and of two parameters. They return the value and its first and
# second derivative with respect to d. The compiler removes what a kernel does not use.


@triton.jit
def mse(d, p0, p1):
    return d * d, d + d, 2.0


@triton.jit
def l1(d, p0, p1):
    # The derivative at 0 (and at NaN) is 0, as for torch.sign.
    return tl.abs(d), tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0)), 0.0


# Both Huber-like losses test for `outside`, not `inside`, so that NaN takes the quadratic branch
# and propagates.


@triton.jit
def smooth_l1(d, beta, p1):
    z = tl.abs(d)
    outside = z >= beta
    # z / beta first: z * z would overflow for a large beta and underflow for a small one. For beta
    # = 0 these quotients are NaN or infinite, but the other branch is selected.
    ratio = divide(z, beta)
    sign = tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0))
    value = tl.where(outside, z - 0.5 * beta, 0.5 * z * ratio)
    first = tl.where(outside, sign, tl.where(d < 0, -ratio, ratio))
    second = tl.where(outside, 0.0, divide(tl.full([], 1.0, d.dtype), beta))
    return value, first, second


@triton.jit
def huber(d, delta, p1):
    z = tl.abs(d)
    outside = z >= delta
    # At z = delta both branches agree, except for infinities, where only the quadratic is not NaN.
    value = tl.where(z > delta, delta * (z - 0.5 * delta), 0.5 * d * d)
    first = tl.where(outside, tl.where(d < 0, -delta, delta), d)
    second = tl.where(outside, 0.0, 1.0)
    return value, first, second


@triton.jit
def cosh_minus_one(a2):
    """cosh(a) - 1 = a^2/2! + a^4/4! + ... as a function of a^2 < 1, to float64 accuracy."""
    total = a2 * (1.0 / 6402373705728000) + 1.0 / 20922789888000  # 18! and 16!
    total = total * a2 + 1.0 / 87178291200
    total = total * a2 + 1.0 / 479001600
    total = total * a2 + 1.0 / 3628800
    total = total * a2 + 1.0 / 40320
    total = total * a2 + 1.0 / 720
    total = total * a2 + 1.0 / 24
    return a2 * (total * a2 + 0.5)


@triton.jit
def log_cosh(d, p0, p1):
    # With a = |d|:
    #   near 0, log(cosh(a)) = log1p(cosh(a) - 1), with the argument from its series. This avoids
    #   the
    #   cancellation of |d| + softplus(-2|d|) - log 2, which loses every digit;
    #   far from 0, log(cosh(a)) = a - log 2 + log1p(exp(-2a)), which cannot overflow.
    # Selecting the argument first leaves a single log1p, with an argument of at most 1/2.
    a = tl.abs(d)
    v = expm1(-2 * a)
    e2 = 1 + v  # exp(-2a)
    near = a < 0.96
    tail = log1p(tl.where(near, cosh_minus_one(a * a), e2))
    value = tl.where(near, tail, a - 0.693147180559945309417232121458 + tail)
    tanh = divide(-v, 2 + v)
    e = tl.exp(-a)  # not from e2: the rounding error of 1 + v would be the error of sech
    sech = divide(e + e, 1 + e * e)
    return value, tl.where(d < 0, -tanh, tanh), sech * sech


@triton.jit
def quantile(d, above, below):
    # The pinball loss, with slopes 1 - q above the target and q below it.
    slope = tl.where(d > 0, above, tl.where(d < 0, -below, 0.0))
    # NaN has slope 0 and still the value NaN, which is 0 * NaN.
    return slope * d, slope, 0.0


@triton.jit
def charbonnier(d, epsilon, p1):
    # sqrt(d² + epsilon²), without squaring large or small numbers.
    a = tl.abs(d)
    far = a > epsilon
    larger = tl.where(far, a, epsilon)
    ratio = divide(tl.where(far, epsilon, a), larger)
    root = tl.sqrt_rn(ratio * ratio + 1) if d.dtype == tl.float32 else tl.sqrt(ratio * ratio + 1)
    value = larger * root
    slope = divide(tl.where(far, 1.0, ratio), root)
    cosine = divide(tl.where(far, ratio, 1.0), root)
    return value, tl.where(d < 0, -slope, slope), divide(cosine * cosine, value)


class Loss(NamedTuple):
    """A loss, in the form that the kernel takes."""

    function: object
    num_params: int
    # f(d, p0, p1) -> (value, first, second) with d = x - y; otherwise
    # f(x, y, p0, p1) -> (value, dx, dy, dxx, dxy, dyy).
    of_difference: bool = True
    # Maximum number of registers per thread. By default ptxas aims at full occupancy, which suits
    # short formulas. It spills if that misses by a single register.
    max_registers: int | None = None


LOSSES = {
    "mse": Loss(mse, 0),
    "l1": Loss(l1, 0),
    "smooth_l1": Loss(smooth_l1, 1),
    "huber": Loss(huber, 1),
    "log_cosh": Loss(log_cosh, 0, max_registers=128),
    "quantile": Loss(quantile, 2),
    "kl_div": Loss(kl_div, 0, of_difference=False),
    "kl_div_log_target": Loss(kl_div_log_target, 0, of_difference=False),
    "bce": Loss(bce, 1, of_difference=False, max_registers=168),
    "bce_with_logits": Loss(bce_with_logits, 2, of_difference=False, max_registers=168),
    "sigmoid_focal": Loss(sigmoid_focal, 2, of_difference=False, max_registers=255),
    "charbonnier": Loss(charbonnier, 1),
    "soft_margin": Loss(soft_margin, 0, of_difference=False),
    "hinge_embedding": Loss(hinge_embedding, 1, of_difference=False),
    "margin_ranking": Loss(margin_ranking, 1, of_difference=False),
    "poisson_log": Loss(poisson_log, 1, of_difference=False, max_registers=128),
    "poisson": Loss(poisson, 2, of_difference=False, max_registers=128),
    "gaussian": Loss(gaussian, 2, of_difference=False),
}


# ---------------------------------------------------------------------------------------------
# The kernels.


@triton.jit
def _jet(x, y, p0, p1, LOSS: tl.constexpr, OF_DIFFERENCE: tl.constexpr):
    """The value of the loss and its derivatives with respect to x, y, xx, xy and yy."""
    if OF_DIFFERENCE:
        value, first, second = LOSS(x - y, p0, p1)
        return value, first, -first, second, -second, second
    else:
        return LOSS(x, y, p0, p1)


@triton.jit
def _summand(
    operands,  # input, target, weight
    tangents,  # tangents of the operands
    at,
    lanes,
    mask,
    params,
    LOSS: tl.constexpr,
    OF_DIFFERENCE: tl.constexpr,
    ORDER: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The term of each element, and its derivatives with respect to input, target and weight.

    For ORDER 1 the term is w f. For ORDER 2 it is the derivative along the tangents (a, b, c),
    which is w (a f_x + b f_y) + c f. A missing weight is 1, a missing tangent 0.
    """
    input, target, weight = operands
    x = tl.load(input + at + lanes, mask=mask).to(COMPUTE)
    y = tl.load(target + at + lanes, mask=mask).to(COMPUTE)
    w = 1.0
    if weight is not None:
        w = tl.load(weight + at + lanes, mask=mask).to(COMPUTE)
    p0, p1 = params
    f, f_x, f_y, f_xx, f_xy, f_yy = _jet(x, y, p0, p1, LOSS, OF_DIFFERENCE)
    if ORDER == 1:
        return w * f, w * f_x, w * f_y, f
    else:
        tangent_input, tangent_target, tangent_weight = tangents
        zero = tl.full(f.shape, 0.0, COMPUTE)
        along, along_x, along_y = zero, zero, zero  # a f_x + b f_y and its derivatives in x and y
        if tangent_input is not None:
            a = tl.load(tangent_input + at + lanes, mask=mask).to(COMPUTE)
            along, along_x, along_y = along + a * f_x, along_x + a * f_xx, along_y + a * f_xy
        if tangent_target is not None:
            b = tl.load(tangent_target + at + lanes, mask=mask).to(COMPUTE)
            along, along_x, along_y = along + b * f_y, along_x + b * f_xy, along_y + b * f_yy
        total, total_x, total_y = w * along, w * along_x, w * along_y
        if tangent_weight is not None:
            c = tl.load(tangent_weight + at + lanes, mask=mask).to(COMPUTE)
            total, total_x, total_y = total + c * f, total_x + c * f_x, total_y + c * f_y
        return total, total_x, total_y, along


@triton.jit
def _tile(
    operands,
    tangents,
    grad_output,  # one per element, or None where it is the scalar `upstream`
    value,
    grads,  # of input, target and weight
    at,  # offset of the tile's first element
    count,  # elements of the tile; may exceed BLOCK
    factor,  # multiplies every derivative
    upstream,  # applied last, as when a forward-pass gradient is rescaled: same bits
    params,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    FOLD: tl.constexpr,
    LOSS: tl.constexpr,
    OF_DIFFERENCE: tl.constexpr,
    ORDER: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Evaluates BLOCK elements, writes the requested outputs and returns partial sums of the
    terms."""
    lanes = tl.arange(0, BLOCK)
    mask = lanes < count if MASKED else None
    total, dx, dy, dw = _summand(
        operands, tangents, at, lanes, mask, params, LOSS, OF_DIFFERENCE, ORDER, COMPUTE
    )
    g = factor.to(COMPUTE)
    upstream = upstream.to(COMPUTE)
    if grad_output is not None:
        upstream = tl.load(grad_output + at + lanes, mask=mask).to(COMPUTE)
    grad_input, grad_target, grad_weight = grads
    if value is not None:
        store(value + at + lanes, total, mask)
    if grad_input is not None:
        store(grad_input + at + lanes, g * dx * upstream, mask)
    if grad_target is not None:
        store(grad_target + at + lanes, g * dy * upstream, mask)
    if grad_weight is not None:
        store(grad_weight + at + lanes, g * dw * upstream, mask)
    if MASKED:  # f(0, 0) need not be 0
        total = tl.where(mask, total, 0.0)
    # FOLD neighbouring elements, held by one thread, are added in COMPUTE, and all else in float64,
    # so that the error does not grow with the number of tiles.
    return tl.sum(tl.reshape(total, [BLOCK // FOLD, FOLD]), axis=1).to(tl.float64)


@triton.jit
def elementwise_kernel(
    input,  # [groups, group_size], like all tensors without a shape below
    target,
    weight,  # or None, like all tensors below
    tangent_input,
    tangent_target,
    tangent_weight,
    grad_output,  # [1], [groups] or [groups, group_size], see GRAD_OUTPUT
    normalizer,  # [1] or [groups], see NORMALIZER
    value,
    reduced,  # [groups]
    workspace,  # see reduce_splits; None for a single split
    grad_input,
    grad_target,
    grad_weight,
    group_size,
    scale: tl.float64,
    p0: tl.float64,
    p1: tl.float64,
    LOSS: tl.constexpr,
    OF_DIFFERENCE: tl.constexpr,
    ORDER: tl.constexpr,
    COMPUTE: tl.constexpr,
    GROUPED: tl.constexpr,  # more than one group
    GRAD_OUTPUT: tl.constexpr,  # "one", "group" or "element"
    NORMALIZER: tl.constexpr,  # "one" or "group"
    SKIP_ONE: tl.constexpr,  # do nothing if grad_output is 1
    BLOCK: tl.constexpr,
):
    """Evaluates a loss, its reduction and its gradients in one pass.

    The grid is (groups, splits). The programs of a group take its tiles in turn.
    """
    group = tl.program_id(0).to(tl.int64) if GROUPED else tl.full([], 0, tl.int64)
    split, splits = tl.program_id(1), tl.num_programs(1)
    factor = tl.full([], scale, tl.float64)
    if normalizer is not None:
        factor /= tl.load(normalizer + (group if NORMALIZER == "group" else 0)).to(tl.float64)
    upstream = tl.full([], 1.0, tl.float64)
    if grad_output is not None and GRAD_OUTPUT != "element":
        upstream = tl.load(grad_output + (group if GRAD_OUTPUT == "group" else 0)).to(tl.float64)
        if SKIP_ONE:  # not `and`: the inner branch is dynamic
            if upstream == 1:
                return

    operands = (input, target, weight)
    tangents = (tangent_input, tangent_target, tangent_weight)
    grads = (grad_input, grad_target, grad_weight)
    params = (tl.full([], p0, COMPUTE), tl.full([], p1, COMPUTE))
    elements = grad_output if GRAD_OUTPUT == "element" else None
    FOLD: tl.constexpr = 1 if COMPUTE == tl.float64 else 4
    base = group * group_size
    # Only the tile that may be incomplete is masked. A mask would prevent 16-byte accesses in all
    # others.
    whole = group_size // BLOCK * BLOCK
    sums = tl.full([BLOCK // FOLD], 0.0, tl.float64)
    for start in range(split.to(tl.int64) * BLOCK, whole, splits * BLOCK):
        sums += _tile(
            operands, tangents, elements, value, grads, base + start, BLOCK, factor,
            upstream, params,
            False, BLOCK, FOLD, LOSS, OF_DIFFERENCE, ORDER, COMPUTE,
        )  # fmt: skip
    if (split == splits - 1) & (whole < group_size):
        sums += _tile(
            operands, tangents, elements, value, grads, base + whole, group_size - whole,
            factor, upstream, params,
            True, BLOCK, FOLD, LOSS, OF_DIFFERENCE, ORDER, COMPUTE,
        )  # fmt: skip

    if reduced is not None:
        total = tl.sum(sums)
        if workspace is None:
            store(reduced + group, total * factor, None)
        else:
            reduce_splits(
                total, workspace, reduced, group, tl.num_programs(0), split, splits, factor, 1024
            )


@triton.jit
def rescale_kernel(
    grad,  # [size]
    grad_output,  # [1]
    size,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Multiplies grad by grad_output in place. Does nothing if grad_output is 1."""
    g = tl.load(grad_output).to(COMPUTE)
    if g == 1:
        return
    split, splits = tl.program_id(0), tl.num_programs(0)
    lanes = tl.arange(0, BLOCK)
    whole = size // BLOCK * BLOCK
    for start in range(split.to(tl.int64) * BLOCK, whole, splits * BLOCK):
        pointers = grad + start + lanes
        tl.store(pointers, tl.load(pointers).to(COMPUTE) * g)
    if split == splits - 1:
        pointers = grad + whole + lanes
        mask = lanes < size - whole
        tl.store(pointers, tl.load(pointers, mask=mask).to(COMPUTE) * g, mask=mask)
