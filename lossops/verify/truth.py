"""The value and derivative of a loss, more precisely than the dtype under test can represent.

The reference formula runs on dual numbers: pairs of a value and its derivative w.r.t. ``input``, in
float64, or in numpy's longdouble to judge float64. Where a formula selects a branch, dual numbers
select the derivative as well. Unlike in autograd, an infinity in the branch not taken does no harm.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lossops.elementwise import reference
from lossops.verify import optional


class Dual:
    """A value and its derivative, as numpy arrays, with the methods named as in torch."""

    def __init__(self, value: Any, derivative: Any = 0.0):
        self.value = value
        self.derivative = derivative

    def __add__(self, other):
        other = _lift(other)
        return Dual(self.value + other.value, self.derivative + other.derivative)

    def __sub__(self, other):
        other = _lift(other)
        return Dual(self.value - other.value, self.derivative - other.derivative)

    def __rsub__(self, other):
        return _lift(other) - self

    def __mul__(self, other):
        if isinstance(other, numbers.Number):  # avoids 0 * inf with the derivative of a constant
            return Dual(self.value * other, self.derivative * other)
        derivative = _product(self.derivative, other.value) + _product(other.derivative, self.value)
        return Dual(self.value * other.value, derivative)

    def __truediv__(self, other):
        if isinstance(other, numbers.Number):
            return Dual(self.value / other, self.derivative / other)
        quotient = self.value / other.value
        return Dual(quotient, (self.derivative - quotient * other.derivative) / other.value)

    def __rtruediv__(self, other):
        return _lift(other) / self

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self):
        return Dual(-self.value, -self.derivative)

    def __pow__(self, exponent: float):
        value = self.value**exponent
        if exponent == 0:
            return Dual(value)
        return Dual(value, self.derivative * exponent * self.value ** (exponent - 1))

    def __and__(self, other):
        return Dual(self.value & other.value)

    def __or__(self, other):
        return Dual(self.value | other.value)

    def __ne__(self, other):
        return Dual(self.value != _lift(other).value)

    def __eq__(self, other):
        return Dual(self.value == _lift(other).value)

    __hash__ = None

    def __lt__(self, other):
        return Dual(self.value < _lift(other).value)

    def __le__(self, other):
        return Dual(self.value <= _lift(other).value)

    def __gt__(self, other):
        return Dual(self.value > _lift(other).value)

    def __ge__(self, other):
        return Dual(self.value >= _lift(other).value)

    def __invert__(self):
        return Dual(~self.value)

    def isinf(self):
        return Dual(optional("numpy").isinf(self.value))

    def abs(self):
        return Dual(abs(self.value), self.derivative * optional("numpy").sign(self.value))

    def square(self):
        return Dual(self.value * self.value, 2 * self.value * self.derivative)

    def sqrt(self):
        root = optional("numpy").sqrt(self.value)
        return Dual(root, self.derivative / (2 * root))

    def exp(self):
        value = optional("numpy").exp(self.value)
        return Dual(value, self.derivative * value)

    def log(self):
        return Dual(optional("numpy").log(self.value), self.derivative / self.value)

    def special_entr(self):
        """-y log(y)."""
        log = optional("numpy").log(self.value)
        value = optional("numpy").where(self.value == 0, 0, -self.value * log)
        return Dual(value, -self.derivative * (log + 1))

    def detach(self):
        return Dual(self.value)

    def log1p(self):
        return Dual(optional("numpy").log1p(self.value), self.derivative / (1 + self.value))

    def sinh(self):
        numpy = optional("numpy")
        return Dual(numpy.sinh(self.value), self.derivative * numpy.cosh(self.value))

    def where(self, yes, no):
        """Selects from ``yes`` and ``no``; ``self`` is the condition."""
        choose, yes, no = optional("numpy").where, _lift(yes), _lift(no)
        return Dual(
            choose(self.value, yes.value, no.value),
            choose(self.value, yes.derivative, no.derivative),
        )

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """Implements ``torch.log1p(dual)`` and other torch functions of dual numbers."""
        name = function.__name__
        if name.startswith("_") or not hasattr(cls, name):
            raise NotImplementedError(f"torch.{name} of a dual number: add it to {__name__}.Dual")
        return getattr(args[0], name)(*args[1:])


def _product(derivative, value):
    """The product, but 0 where the derivative is 0, even if the value is infinite."""
    numpy = optional("numpy")
    return numpy.where(numpy.equal(derivative, 0), 0, derivative * value)


def _lift(other) -> Dual:
    return other if isinstance(other, Dual) else Dual(other)


@dataclass(frozen=True)
class Truth:
    """The exact results for each element, as numpy arrays."""

    difference: Any
    value: Any
    gradient: Any
    value_size: Any  # the sum of the absolute values of the terms
    gradient_size: Any


def exact(kernel: str, params: tuple[float, ...], input: Tensor, target: Tensor) -> Truth:
    """The loss ``reference.FORMULAS[kernel]`` of each element and its derivative with respect to
    ``input``, in float64, or in numpy's longdouble for float64 tensors.

    In losses of the difference, a difference that is too large for the compute dtype under test
    (float32, or float64 for float64 tensors) is infinite.
    """
    numpy = optional("numpy")
    double = input.dtype == torch.float64
    wide = numpy.longdouble if double else numpy.float64
    largest = torch.finfo(torch.float64 if double else torch.float32).max
    with numpy.errstate(all="ignore"):
        x, y = (t.detach().cpu().double().numpy().astype(wide) for t in (input, target))
        if kernel not in reference.TERMS:  # a function of the difference
            x = numpy.where(abs(x - y) > largest, numpy.copysign(numpy.inf, x - y), x)
        terms = reference.TERMS.get(kernel, lambda *args: (reference.FORMULAS[kernel](*args),))
        terms = terms(Dual(x, numpy.ones_like(x)), Dual(y), *params)
        derivatives = [term.derivative + numpy.zeros_like(x) for term in terms]
        values = [term.value for term in terms]
        sizes = (sum(abs(part) for part in parts) for parts in (values, derivatives))
        return Truth(x - y, sum(values), sum(derivatives), *sizes)


def judges_float64() -> bool:
    """Whether numpy's longdouble is more precise than float64 on this machine."""
    return optional("numpy").finfo(optional("numpy").longdouble).nmant > 52
