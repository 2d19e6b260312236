"""Dual numbers: pairs of a value and its derivative, as numpy arrays of any precision."""

from __future__ import annotations

import numbers
import operator
from typing import Any

from lossops.verify import numpy

# The derivative of a function, from that of its argument x and its value y.
_RULES = {
    "abs": lambda dx, x, y: dx * numpy.sign(x),
    "square": lambda dx, x, y: 2 * x * dx,
    "sqrt": lambda dx, x, y: dx / (2 * y),
    "exp": lambda dx, x, y: dx * y,
    "expm1": lambda dx, x, y: dx * (1 + y),
    "log": lambda dx, x, y: dx / x,
    "log1p": lambda dx, x, y: dx / (1 + x),
    "sinh": lambda dx, x, y: dx * numpy.cosh(x),
    "isinf": lambda dx, x, y: 0.0,
}


class Dual:
    """A value and its derivative. The methods are named as in torch, and torch's functions accept
    dual numbers."""

    def __init__(self, value: Any, derivative: Any = 0.0):
        self.value = value
        self.derivative = derivative

    def __add__(self, other):
        other = _lift(other)
        return Dual(self.value + other.value, self.derivative + other.derivative)

    def __sub__(self, other):
        return self + -_lift(other)

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

    def __invert__(self):
        return Dual(~self.value)

    def detach(self):
        return Dual(self.value)

    def special_entr(self):
        """-y log(y)."""
        log = numpy.log(self.value)
        value = numpy.where(self.value == 0, 0, -self.value * log)
        return Dual(value, -self.derivative * (log + 1))

    def where(self, yes, no):
        """Selects from ``yes`` and ``no``; ``self`` is the condition."""
        yes, no = _lift(yes), _lift(no)
        return Dual(
            numpy.where(self.value, yes.value, no.value),
            numpy.where(self.value, yes.derivative, no.derivative),
        )

    def __getattr__(self, name: str):
        if name not in _RULES:
            raise AttributeError(f"{name} of a dual number: add it to {__name__}")
        value = getattr(numpy, name)(self.value)
        return lambda: Dual(value, _RULES[name](self.derivative, self.value, value))

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """Implements ``torch.log1p(dual)`` and other torch functions of dual numbers."""
        return getattr(args[0], function.__name__)(*args[1:])


def _comparison(compare):
    return lambda self, other: Dual(compare(self.value, _lift(other).value))


for _name in ("__and__", "__or__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"):
    setattr(Dual, _name, _comparison(getattr(operator, _name)))


def _product(derivative, value):
    """The product, but 0 where the derivative is 0, even if the value is infinite."""
    return numpy.where(numpy.equal(derivative, 0), 0, derivative * value)


def _lift(other) -> Dual:
    return other if isinstance(other, Dual) else Dual(other)
