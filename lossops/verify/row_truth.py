"""The truth of the losses over rows of class scores.

Written from the definitions, with derivatives by hand, independently of the reference. A unit is
one rounding of the result, plus the error that a careful algorithm cannot avoid: how far the result
moves, to first order and in multiples of eps, when the shifted logits, the exponentials and the
logarithms are rounded once each. A loss that is a small difference of large terms cannot be more
accurate than that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lossops.softmax import reference
from lossops.specs.softmax import RowSpec, Sample
from lossops.verify import numpy
from lossops.verify.dual import Dual
from lossops.verify.truth import Array, Exact, Truth, array, computed_in, sum_and_mean, ulp, wide


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


# How a loss depends on log q: its values (one number per class for divergences), how far rounding
# moves them, the derivative, and how far rounding moves that.
Slopes = tuple[Array, Array, Array, Array]


def of_rows(spec: RowSpec, sample: Sample, input: Tensor, target: Tensor, options) -> Truth:
    """The truth for an input [rows, classes]."""
    dtype, eps = input.dtype, computed_in(input.dtype).eps
    kind = wide(dtype)
    with numpy.errstate(all="ignore"):
        q = _distribution(array(input, kind), sample.input, options)
        p = _target(sample, target, q, options, kind)
        if spec.takes_forms:
            kernel = "reverse_kl" if options.get("reverse") else spec.kernel
            terms, moves, slope, slope_moves = DIVERGENCES[kernel](p, q, eps)
            value, moves = terms.sum(1), moves.sum(1)
        else:
            value, moves, slope, slope_moves = _label_loss(spec, p.probs, q, options, eps)
        gradient, gradient_moves = _by_input(sample.input, q, slope, slope_moves)
        zeta = options.get("z_loss", 0.0)
        if zeta:
            value, moves = value + zeta * q.lse**2, moves + 4 * abs(zeta) * q.lse**2
            more = 2 * zeta * q.lse[:, None] * q.probs * q.slope
            gradient, gradient_moves = gradient + more, gradient_moves + abs(more) * q.moves
        counts = numpy.ones(len(value), dtype=bool)
        if not sample.soft:  # ignored rows do not count
            counts = target.cpu().numpy() != options.get("ignore_index", -100)
            for numbers in (value, moves, gradient, gradient_moves):
                numbers[~counts] = 0
        weight = options.get("weight") if not sample.soft else None
        total = _picked(weight, target, counts, kind).sum()
        return Truth(
            Exact(spec.sign * value, ulp(abs(value), dtype) + eps * moves),
            [Exact(spec.sign * gradient, ulp(abs(gradient), dtype) + eps * gradient_moves)],
            list(sum_and_mean(spec.sign * value.sum(), moves.sum(), total, dtype)),
        )


def _picked(weight: Tensor | None, target: Tensor, counts: Array, kind) -> Array:
    """What each row counts in a mean."""
    if weight is None:
        return counts
    return counts * array(weight, kind)[target.cpu().numpy().clip(0)]


def _distribution(numbers: Array, form: str, options: dict[str, Any]) -> Distribution:
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


def _target(sample: Sample, target: Tensor, q: Distribution, options, kind) -> Distribution:
    """The distribution of the target. That of a label is exact."""
    if sample.soft:
        cooled = {"temperature": options.get("temperature", 1.0)}
        return _distribution(array(target, kind), sample.target, cooled)
    probs = numpy.zeros(q.log.shape, kind)
    probs[numpy.arange(len(probs)), target.cpu().numpy().clip(0)] = 1
    return Distribution(numpy.log(probs), probs, numpy.zeros_like(probs), numpy.zeros_like(probs))


def _times(x: Array, y: Array) -> Array:
    """x y, and 0 where x is 0."""
    return numpy.where(x == 0, 0, x * numpy.where(x == 0, 0, y))


def _focal(u: Array, u_moves: Array, sure: Array, gamma: float, eps: float):
    doubt = -numpy.expm1(-u)
    power = doubt**gamma
    steep = gamma * doubt ** (gamma - 1) * sure  # derivative of ``power``
    # In doubt^γ, doubt moves as far as u does, and by its own rounding. If doubt is as small as
    # these, its power is at most that of their sum.
    steepest = numpy.maximum(steep, gamma * (doubt + eps * u_moves) ** (gamma - 1))
    bent = steepest * (2 + gamma * u * sure / doubt + u) * (u_moves + doubt)
    return power * u, power + steep * u, bent


def _by_reference(kernel: str):
    """The reference formula on dual numbers. Its derivative moves by its own rounding, and as far
    as that at a rounded u."""

    def loss(u: Array, u_moves: Array, sure: Array, parameter: float | None, eps: float):
        formula = reference.LABEL_LOSSES[kernel]
        own = () if parameter is None else (parameter,)
        found, beside = (
            formula(Dual(at, numpy.ones_like(u)), *own) for at in (u, u + eps * (u_moves + u))
        )
        slope = found.derivative + numpy.zeros_like(u)
        bent = abs(beside.derivative - slope) / eps + abs(slope)
        return found.value, slope, numpy.where(numpy.isfinite(bent), bent, abs(slope))

    return loss


# The value of a loss of u = -log q_y, its derivative, and how far rounding moves the derivative,
# where the reference formula on dual numbers is not exact enough.
LABEL_LOSSES: dict[str, Callable[..., tuple[Array, Array, Array]]] = {
    "focal": _focal,
}


def _label_loss(spec: RowSpec, p: Array, q: Distribution, options, eps: float) -> Slopes:
    """A loss of log q_y, or the cross entropy with a distribution p."""
    weight = options.get("weight", options.get("alpha"))
    if isinstance(weight, Tensor):
        weight = array(weight, p.dtype)
    else:
        weight = numpy.full(p.shape[1], 1.0 if weight is None else weight, p.dtype)
    if spec.kernel == "cross_entropy":
        smoothing = options.get("label_smoothing", 0.0)
        share = weight * ((1 - smoothing) * p + p.dtype.type(smoothing) / p.shape[1])
        terms, moves = -_times(share, q.log), _times(share, q.log_moves)
        return terms.sum(1), (abs(terms) + moves).sum(1), -share, 2 * share
    parameter = spec.own_parameter(options)
    label = p.argmax(1)
    at = numpy.arange(len(p)), label
    u, u_moves, w, sure = -q.log[at], q.log_moves[at], weight[label], numpy.exp(q.log[at])
    loss = LABEL_LOSSES.get(spec.kernel) or _by_reference(spec.kernel)
    value, slope, bent = loss(u, u_moves, sure, parameter, eps)
    moves = abs(w) * (
        abs(slope) * u_moves + 2 * (abs(value) + u + abs((parameter or 0) * (1 - sure)))
    )
    return w * value, moves, -p * (w * slope)[:, None], p * (w * (2 * abs(slope) + bent))[:, None]


def _apart(p: Distribution, q: Distribution) -> Array:
    """How far log p - log q moves."""
    return p.log_moves + q.log_moves + abs(p.log - q.log)


def _of_logs(p: Distribution, logs: Array, apart: Array) -> Slopes:
    """Σ p logs, where the logarithms fall with log q and move by ``apart``."""
    moves = _times(p.probs, apart) + _times(p.moves * p.probs, abs(logs))
    return _times(p.probs, logs), moves, -p.probs, p.probs * p.moves


def _kl(p: Distribution, q: Distribution, eps: float) -> Slopes:
    return _of_logs(p, p.log - q.log, _apart(p, q))


def _soft_cross_entropy(p: Distribution, q: Distribution, eps: float) -> Slopes:
    return _of_logs(p, -q.log, q.log_moves + abs(q.log))


def _reverse_kl(p: Distribution, q: Distribution, eps: float) -> Slopes:
    terms = _times(q.probs, q.log - p.log)
    moves = _times(q.probs, _apart(p, q)) + abs(terms) * q.moves
    return terms, moves, terms + q.probs, moves + q.probs * (1 + q.moves)


def _jensen_shannon(p: Distribution, q: Distribution, eps: float) -> Slopes:
    log_m = numpy.log(0.5 * (p.probs + q.probs))
    mine, theirs = (0.5 * _times(x.probs, x.log - log_m) for x in (q, p))
    terms = mine + theirs
    away = numpy.minimum(_apart(p, q) + abs(log_m), 1 / eps)  # how far log q - log m moves
    slope_moves = abs(mine) * (1 + q.moves) + 0.5 * _times(q.probs, away)
    moves = abs(terms) + abs(mine) * (1 + q.moves) + abs(theirs) * (1 + p.moves)
    return terms, moves, mine, slope_moves


def _distance(factor: float) -> Callable[..., Slopes]:
    def l1(p: Distribution, q: Distribution, eps: float) -> Slopes:
        terms = factor * abs(p.probs - q.probs)
        slope = factor * q.probs * numpy.sign(q.probs - p.probs)
        uncertain = p.probs * p.moves + q.probs * q.moves
        # Where p and q are equal up to rounding, either sign is correct.
        either = (abs(p.probs - q.probs) <= 4 * eps * uncertain) & (uncertain > 0)
        slope_moves = abs(slope) * q.moves + numpy.where(either, 2 * factor * q.probs / eps, 0)
        return terms, factor * uncertain + terms, slope, slope_moves

    return l1


DIVERGENCES: dict[str, Callable[[Distribution, Distribution, float], Slopes]] = {
    "kl": _kl,
    "reverse_kl": _reverse_kl,
    "soft_cross_entropy": _soft_cross_entropy,
    "jensen_shannon": _jensen_shannon,
    "total_variation": _distance(0.5),
    "l1_distribution": _distance(1.0),
}


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
