"""The value and gradient of a loss over rows, more precisely than the dtype under test can
represent.

Written from the definitions, with derivatives by hand, independently of the reference: in float64,
or in numpy's longdouble to judge float64. Each result comes with the error that a careful algorithm
cannot avoid: how far the result moves, to first order and in multiples of eps, when the shifted
logits, the exponentials and the logarithms are rounded once each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lossops.specs.softmax import RowSpec, Sample
from lossops.verify import optional

Array = Any  # a numpy array


@dataclass(frozen=True)
class Distribution:
    """For each row, log q and q [rows, classes] and how far rounding moves them: ``log_moves`` is
    absolute, ``moves`` is relative to q. The other fields are for distributions given as logits."""

    log: Array
    probs: Array
    log_moves: Array
    moves: Array
    lse: Array | None = None  # [rows]
    slope: Array | float = 1.0  # d(soft-capped, temperature-scaled logits) / d(input)
    capped: bool = False


@dataclass(frozen=True)
class RowTruth:
    """The exact results as numpy arrays, and how far rounding moves them, in eps."""

    value: Array  # [rows]
    value_moves: Array
    gradient: Array  # [rows, classes], of the sum over the rows, w.r.t. the input
    gradient_moves: Array


def exact(
    spec: RowSpec, sample: Sample, input: Tensor, target: Tensor, options: dict[str, Any]
) -> RowTruth:
    """The exact loss of each row of an input [rows, classes], and its gradient."""
    numpy = optional("numpy")
    double = input.dtype == torch.float64
    wide = numpy.longdouble if double else numpy.float64
    eps = torch.finfo(torch.float64 if double else torch.float32).eps
    input, target = input.detach().cpu(), target.detach().cpu()
    with numpy.errstate(all="ignore"):
        q = _distribution(_array(input, wide), sample.input, options)
        if spec.takes_forms:
            p = _compared(sample, target, q, options, wide)
            found = _divergence(_kernel(spec, options), p, q, eps)
        else:
            found = _label_loss(spec, q, target, options, wide, eps)
        value, moves, slope, slope_moves = found
        gradient, gradient_moves = _by_input(sample.input, q, slope, slope_moves)
        zeta = options.get("z_loss", 0.0)
        if zeta:
            value, moves = value + zeta * q.lse**2, moves + 4 * abs(zeta) * q.lse**2
            more = 2 * zeta * q.lse[:, None] * q.probs * q.slope
            gradient, gradient_moves = gradient + more, gradient_moves + abs(more) * q.moves
        if not sample.soft:  # ignored rows do not count
            ignored = target.numpy() == options.get("ignore_index", -100)
            for array in (value, moves, gradient, gradient_moves):
                array[ignored] = 0
    return RowTruth(spec.sign * value, moves, spec.sign * gradient, gradient_moves)


def _kernel(spec: RowSpec, options: dict[str, Any]) -> str:
    return "reverse_kl" if options.get("reverse") else spec.kernel


def _array(tensor: Tensor, wide) -> Array:
    return tensor.detach().cpu().double().numpy().astype(wide)


def _distribution(numbers: Array, form: str, options: dict[str, Any]) -> Distribution:
    numpy = optional("numpy")
    if form == "probs":
        log_q = numpy.log(numbers)
        return Distribution(log_q, numbers, abs(log_q), numpy.zeros_like(numbers))
    if form == "log_probs":
        return Distribution(numbers, numpy.exp(numbers), numpy.zeros_like(numbers),
                            numpy.ones_like(numbers))  # fmt: skip
    z, slope, capped = numbers, 1.0, options.get("softcap") is not None
    if capped:
        bent = numpy.tanh(z / options["softcap"])
        z, slope = options["softcap"] * bent, 1 - bent**2
    temperature = options.get("temperature", 1.0)
    z, slope = z / temperature, slope / temperature
    rows, best = numpy.arange(len(z)), z.argmax(1)
    largest = z[rows, best][:, None]
    others = numpy.exp(z - largest)
    others[rows, best] = 0
    # log1p keeps the logarithm of a nearly certain class exact.
    beyond = numpy.log1p(others.sum(1))[:, None]
    log_q = -(beyond + (largest - z))
    probs = numpy.exp(log_q)
    # The shifted logits are rounded, and so are the results of soft capping and temperature.
    shifts = largest - z
    if capped or temperature != 1:
        shifts = shifts + abs(z) + abs(largest)
    log_moves = shifts + (probs * shifts).sum(1, keepdims=True) + abs(log_q)
    return Distribution(
        log_q, probs, log_moves, 1 + log_moves, (largest + beyond)[:, 0], slope, capped
    )


def _times(x: Array, y: Array) -> Array:
    """x y, and 0 where x is 0."""
    numpy = optional("numpy")
    return numpy.where(x == 0, 0, x * numpy.where(x == 0, 0, y))


def _label_loss(spec: RowSpec, q: Distribution, target: Tensor, options, wide, eps: float):
    """Returns the values and the derivatives w.r.t. log q, and how far rounding moves them."""
    numpy = optional("numpy")
    rows, classes = q.log.shape
    weight = options.get("weight", options.get("alpha"))
    if isinstance(weight, Tensor):
        weight = _array(weight, wide)
    else:
        weight = numpy.full(classes, 1.0 if weight is None else weight, wide)
    if target.is_floating_point():
        p = _array(target, wide)
    else:
        p = numpy.zeros((rows, classes), wide)
        labels = target.numpy().clip(0)
        p[numpy.arange(rows), labels] = 1
    if spec.parameter is None:
        smoothing = options.get("label_smoothing", 0.0)
        share = weight * ((1 - smoothing) * p + wide(smoothing) / classes)
        terms, moves = -_times(share, q.log), _times(share, q.log_moves)
        return terms.sum(1), (abs(terms) + moves).sum(1), -share, 2 * share
    name, default = spec.parameter
    parameter = options.get(name, default)
    at = numpy.arange(rows), labels
    u, u_moves, w = -q.log[at], q.log_moves[at], weight[labels]
    sure = numpy.exp(-u)
    if spec.kernel == "focal":
        doubt = -numpy.expm1(-u)
        power = doubt**parameter
        value = power * u
        steep = parameter * doubt ** (parameter - 1) * sure  # derivative of ``power``
        slope = power + steep * u
        # In doubt^γ, doubt moves as far as u does, and by its own rounding. If doubt is as small as
        # these, its power is at most that of their sum.
        steepest = numpy.maximum(steep, parameter * (doubt + eps * u_moves) ** (parameter - 1))
        bent = steepest * (2 + parameter * u * sure / doubt + u) * (u_moves + doubt)
    else:
        value = u - parameter * numpy.expm1(-u)
        slope = 1 + parameter * sure
        bent = abs(parameter) * sure * (1 + u_moves)
    moves = abs(w) * (abs(slope) * u_moves + 2 * (abs(value) + u + abs(parameter * (1 - sure))))
    return w * value, moves, -p * (w * slope)[:, None], p * (w * (2 * abs(slope) + bent))[:, None]


def _compared(sample: Sample, target: Tensor, q: Distribution, options, wide) -> Distribution:
    """The distribution of the target."""
    numpy = optional("numpy")
    if sample.soft:
        cooled = {"temperature": options.get("temperature", 1.0)}
        return _distribution(_array(target, wide), sample.target, cooled)
    probs = numpy.zeros(q.log.shape, wide)
    probs[numpy.arange(len(probs)), target.numpy()] = 1
    return Distribution(numpy.log(probs), probs, numpy.zeros_like(probs), numpy.zeros_like(probs))


def _divergence(kernel: str, p: Distribution, q: Distribution, eps: float):
    """Returns the values and the derivatives w.r.t. log q, and how far rounding moves them."""
    numpy = optional("numpy")
    apart = p.log_moves + q.log_moves + abs(p.log - q.log)  # how far log p - log q moves
    if kernel in ("kl", "soft_cross_entropy"):
        logs = p.log - q.log if kernel == "kl" else -q.log
        terms, slope = _times(p.probs, logs), -p.probs
        moves = _times(p.probs, apart if kernel == "kl" else q.log_moves + abs(q.log))
        moves = moves + _times(p.moves * p.probs, abs(logs))
        slope_moves = p.probs * p.moves
    elif kernel == "reverse_kl":
        terms = _times(q.probs, q.log - p.log)
        slope = terms + q.probs
        moves = _times(q.probs, apart) + abs(terms) * q.moves
        slope_moves = moves + q.probs * (1 + q.moves)
    elif kernel == "jensen_shannon":
        log_m = numpy.log(0.5 * (p.probs + q.probs))
        mine, theirs = (0.5 * _times(x.probs, x.log - log_m) for x in (q, p))
        terms, slope = mine + theirs, mine
        away = numpy.minimum(apart + abs(log_m), 1 / eps)  # how far log q - log m moves
        slope_moves = abs(mine) * (1 + q.moves) + 0.5 * _times(q.probs, away)
        moves = abs(terms) + abs(mine) * (1 + q.moves) + abs(theirs) * (1 + p.moves)
    else:
        factor = 0.5 if kernel == "total_variation" else 1.0
        terms = factor * abs(p.probs - q.probs)
        slope = factor * q.probs * numpy.sign(q.probs - p.probs)
        uncertain = p.probs * p.moves + q.probs * q.moves
        moves = factor * uncertain + terms
        # Where p and q are equal up to rounding, either sign is correct.
        either = (abs(p.probs - q.probs) <= 4 * eps * uncertain) & (uncertain > 0)
        slope_moves = abs(slope) * q.moves + numpy.where(either, 2 * factor * q.probs / eps, 0)
    return terms.sum(1), moves.sum(1), slope, slope_moves


def _by_input(form: str, q: Distribution, slope: Array, moves: Array) -> tuple[Array, Array]:
    """Converts derivatives w.r.t. log q to derivatives w.r.t. the input."""
    if form == "log_probs":
        return slope.copy(), moves + abs(slope)
    if form == "probs":
        return slope / q.probs, (moves + abs(slope)) / q.probs
    total = slope.sum(1, keepdims=True)
    before = slope - q.probs * total
    moved = moves + abs(slope) + q.probs * moves.sum(1, keepdims=True)
    moved = moved + q.probs * q.moves * abs(total)
    # The derivative of tanh is 1 - tanh², a difference that may cancel.
    return before * q.slope, moved * q.slope + (4 * abs(before) if q.capped else 0)
