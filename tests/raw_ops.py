"""The contract of the raw ops, for checking any backend: random arguments, and the expected results
in float64 from the reference formulas."""

from __future__ import annotations

import math
import random

import pytest
import torch

from lossops.elementwise import reference
from lossops.specs import elementwise as specs

FLOAT64, FLOAT32, BFLOAT16, FLOAT16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
LOSSES = [row.kernel for row in specs.SPECS]
# Hyperparameters other than the defaults where a loss has them, because 1 would hide a factor.
PARAMS = {row.kernel: list(row.params(row.samples[-1])) for row in specs.SPECS} | {
    "smooth_l1": [0.75],  # the default sample has 0
    "huber": [1.25],  # the default sample has infinity
}
NO_GRADIENTS = [False, False, False]
ALL = [True, True, True]


def each_pair(pairs):
    """Parametrises a test by the dtypes of input and target."""
    names = ["-".join(str(dtype).removeprefix("torch.") for dtype in pair) for pair in pairs]
    return pytest.mark.parametrize("dtypes", pairs, ids=names)


class Backend:
    """The namespace and the device on which the raw ops run."""

    def __init__(self, ops, device="cpu", bfloat16_rounding=0.5, raises_index_errors=False):
        self.ops = ops
        self.device = torch.device(device)
        self.bfloat16_rounding = bfloat16_rounding  # in units in the last place
        # Whether out-of-range labels raise: labels in host memory can be checked.
        self.raises_index_errors = raises_index_errors


def generator() -> torch.Generator:
    """A generator of random arguments, which the seed of the test determines."""
    return torch.Generator().manual_seed(random.getrandbits(60))


def compare(what: str, backend: Backend, got, expected, error, double: bool) -> None:
    """Allows one rounding of the result, and ``error`` in units of the dtype of the computation."""
    assert got.shape == expected.shape, what
    if not got.numel():
        return
    got, dtype = got.to(expected.device), got.dtype
    output, compute = torch.finfo(dtype), torch.finfo(FLOAT64 if double else FLOAT32)
    rounding = backend.bfloat16_rounding if dtype == BFLOAT16 else 0.5
    bound = output.eps * rounding * (expected.abs() + output.smallest_normal) + compute.eps * error
    overflow = expected.abs() > output.max  # a gradient may overflow in float16
    got = torch.where(overflow & got.isinf(), expected, got.double())
    off = (got - expected).abs()
    right = (off <= bound) | (got == expected) | (got.isnan() & expected.isnan())
    if not right.all():
        i = torch.where(right, 0.0, off / bound).nan_to_num(math.inf).argmax()
        worst = (t.expand_as(got).flatten()[i].item() for t in (got, expected, bound))
        where = tuple(n.item() for n in torch.unravel_index(i, got.shape))
        pytest.fail("{}, at {}: {} should be {}, within {}".format(what, where, *worst))


# ---------------------------------------------------------------------------------------------
# Expected results.


SPEC = {row.kernel: row for row in specs.SPECS}


def formula(loss, x, y, params):
    return reference.FORMULAS[loss](x, y, *params)


def terms_of(loss, x, y, params):
    """The terms that the loss is the sum of."""
    if loss in reference.TERMS:
        return reference.TERMS[loss](x, y, *params)
    return (formula(loss, x, y, params),)


def reduced(values, reduction, keep_dims, normalizer=None):
    if reduction == "none":
        return values
    groups = values.unsqueeze(-1).flatten(keep_dims)
    total = groups.sum(-1)
    if normalizer is not None:
        return total / normalizer
    return total / groups.shape[-1] if reduction == "mean" else total


class Case:
    """Random arguments of the raw ops, and the expected results."""

    def __init__(self, backend, shape, dtypes, loss, reduction="mean", keep_dims=0, **options):
        self.backend = backend
        self.loss, self.params = loss, options.get("params") or PARAMS[loss]
        self.reduction, self.keep_dims = reduction, keep_dims
        draw = generator()
        x_dtype, y_dtype = dtypes

        def tensor(dtype, shape=shape):
            return torch.randn(shape, generator=draw, dtype=FLOAT64).to(dtype)

        # Differences on both sides of every threshold and exactly at it: 0, beta and delta. The
        # targets have few digits, so that the input is exact in any dtype.
        input, target = 2 * tensor(x_dtype), tensor(y_dtype)
        regression = SPEC[loss].regression if loss in SPEC else True
        if not regression:
            wide = SPEC[loss].inner(input.double(), target.double())
            input, target = wide[0].to(x_dtype), wide[1].to(y_dtype)
        for tie in (0.0, *self.params) if regression else ():
            tied = torch.rand(shape, generator=draw) < 0.1
            target = torch.where(tied, (4 * target).round() / 4, target)
            input = torch.where(tied, target.to(x_dtype) + tie, input)
        self.operands = [input, target, None]
        if options.get("weighted"):
            self.operands[2] = tensor(x_dtype)
        self.tangents = [None if t is None else tensor(t.dtype) for t in self.operands]
        self.normalizer = options.get("normalizer")
        kept = shape if reduction == "none" else shape[:keep_dims]
        self.out_dtype = options.get("out_dtype") or torch.promote_types(*dtypes)
        self.grad_output = tensor(self.out_dtype, kept)

    @property
    def call(self):
        return self.loss, self.params, self.reduction, self.keep_dims

    def to_device(self):
        def moved(t):
            return None if t is None else t.to(self.backend.device)

        self.operands = [moved(t) for t in self.operands]
        self.tangents = [moved(t) for t in self.tangents]
        self.normalizer, self.grad_output = moved(self.normalizer), moved(self.grad_output)
        return self

    def total(self, x, y, w):
        """The reduced loss, in float64."""
        values = formula(self.loss, x, y, self.params)
        normalizer = None if self.normalizer is None else self.normalizer.double()
        return reduced(values if w is None else w * values, *self.call[2:], normalizer)

    def leaves(self):
        return [
            None if t is None else t.detach().double().clone().requires_grad_()
            for t in self.operands
        ]

    def truth(self):
        """The loss, and its gradients for grad_output."""
        leaves = self.leaves()
        total = self.total(*leaves)
        present = [leaf for leaf in leaves if leaf is not None]
        return total.detach(), torch.autograd.grad(total, present, self.grad_output.double())

    def second_truth(self):
        """The derivative of the loss along the tangents, and its gradients for grad_output."""
        leaves = self.leaves()
        present = [leaf for leaf in leaves if leaf is not None]
        tangents = [
            torch.zeros_like(leaf) if t is None else t.double()
            for leaf, t in zip(leaves, self.tangents, strict=True)
            if leaf is not None
        ]

        def total(*values):
            rest = iter(values)
            return self.total(*(None if leaf is None else next(rest) for leaf in leaves))

        _, along = torch.func.jvp(total, tuple(present), tuple(tangents))
        grads = torch.autograd.grad(
            along, present, self.grad_output.double(), materialize_grads=True
        )
        return along.detach(), grads

    def magnitudes(self):
        """The values with all terms taken as absolute values, because rounding errors are relative
        to them.

        Returns them for the loss, for its derivative along the tangents, and for the gradients of
        both.
        """
        w = 1 if self.operands[2] is None else self.operands[2].double().abs()
        a, b, c = (0 if t is None else t.double().abs() for t in self.tangents)
        x, y, _ = self.leaves()
        f, f_x, f_y, f_xx, f_xy, f_yy = sizes = [torch.zeros_like(x.detach()) for _ in range(6)]
        for term in terms_of(self.loss, x, y, self.params):
            first = torch.autograd.grad(term.sum(), (x, y), create_graph=True, allow_unused=True)
            second = [
                torch.autograd.grad(t.sum(), (x, y), retain_graph=True, materialize_grads=True)
                if t is not None and t.requires_grad
                else (torch.zeros_like(x), torch.zeros_like(y))
                for t in first
            ]
            parts = (term, *first, *second[0], second[1][1])
            for size, part in zip(sizes, parts, strict=True):
                if part is not None:
                    size += part.detach().abs()
        if self.loss == "kl_div":  # the derivative of y log(y) is a sum as well
            f_y += y.detach().log().abs() + 1
        if self.loss == "soft_margin":  # so is the mixed derivative: z sigmoid'(z) - sigmoid(z)
            z = -(x * y).detach()
            f_xy += torch.sigmoid(z) + z.abs() * torch.sigmoid(z) * torch.sigmoid(-z)
        along, slope_x, slope_y = a * f_x + b * f_y, a * f_xx + b * f_xy, a * f_xy + b * f_yy

        leaf = torch.zeros_like(f, requires_grad=True)
        normalizer = None if self.normalizer is None else self.normalizer.double()
        adjoint = reduced(leaf, *self.call[2:], normalizer)
        (g,) = torch.autograd.grad(adjoint, leaf, self.grad_output.double().abs())

        def total(terms):
            return reduced(terms, *self.call[2:], normalizer)

        by_input, by_target = g * (w * slope_x + c * f_x), g * (w * slope_y + c * f_y)
        firsts = (g * w * f_x, g * w * f_y, g * f)
        along_sizes = (by_input, by_target, g * along)
        return total(w * f), total(w * along + c * f), along_sizes, firsts

    # Results of the kernels.

    def forward(self, mask=ALL):
        return self.backend.ops.elementwise_forward(
            *self.operands, self.normalizer, *self.call, self.out_dtype, self.mask(mask)
        )

    def backward(self, mask=ALL):
        arguments = (self.grad_output, *self.operands, self.normalizer, *self.call)
        return self.backend.ops.elementwise_backward(*arguments, self.mask(mask))

    def backward_(self, grads, mask=ALL):
        arguments = (self.grad_output, *self.operands, self.normalizer, *self.call)
        self.backend.ops.elementwise_backward_(grads, *arguments, self.mask(mask))

    def double_backward(self):
        return self.backend.ops.elementwise_double_backward(
            self.grad_output, *self.operands, self.normalizer, *self.tangents, *self.call,
            self.out_dtype, [True, *self.mask(ALL)],
        )  # fmt: skip

    def mask(self, wanted):
        return [yes and t is not None for yes, t in zip(wanted, self.operands, strict=True)]

    def check(self):
        """Checks value, gradients and second derivatives."""
        self.to_device()
        scalar = self.reduction != "none" and self.keep_dims == 0
        size, *_, sizes = self.magnitudes()
        value, gradients = self.truth()
        got, *got_gradients = self.forward(ALL if scalar else NO_GRADIENTS)
        self.compare(got, value, size)
        if scalar:
            g = self.grad_output.double()
            scaled = [size / g.abs() for size in sizes]
            self.compare_gradients(got_gradients, [gradient / g for gradient in gradients], scaled)
        else:
            assert got_gradients == [None, None, None]
        self.compare_gradients(self.backward(), gradients, sizes)
        self.check_double_backward()

    def check_double_backward(self):
        _, size, sizes, _ = self.magnitudes()
        along, gradients = self.second_truth()
        got, *got_gradients = self.double_backward()
        self.compare(got, along, size)
        self.compare_gradients(got_gradients, gradients, sizes)
        return got

    def compare_gradients(self, got, expected, sizes=(0, 0, 0)):
        expected = iter(expected)
        for tensor, operand, size in zip(got, self.operands, sizes, strict=True):
            if operand is None:
                assert tensor is None
                continue
            assert tensor.dtype == operand.dtype
            assert tensor.stride() == torch.empty_like(operand).stride()
            self.compare(tensor, next(expected), size)

    def compare(self, got, expected, size=0):
        double, roundings = FLOAT64 in {t.dtype for t in self.operands[:2]}, 16.0
        if self.loss == "sigmoid_focal":
            # A probability has an error of 1.5 eps, and the expected one, if it is float64 too,
            # another 2.5. The power multiplies this by γ.
            roundings += (4.0 if double else 1.5) * self.params[1]
        error = roundings * (expected.abs() + size)
        compare(self.loss, self.backend, got, expected, error, double)
