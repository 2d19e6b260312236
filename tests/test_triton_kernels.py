"""The raw ops of the Triton backend, judged by the reference formulas in float64.

These run on a GPU, or else in Triton's interpreter on the CPU, which is chosen by an environment
variable when Triton is imported: test_triton.py runs this file in a process of its own.
"""

import itertools
import math
import random

import pytest
import torch
from conftest import away_from_kinks, each_spec, expect_ops

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402, F401, the interpreter wants it beside a jit function

import lossops  # noqa: E402
import lossops.triton  # noqa: E402
from lossops import reference, specs  # noqa: E402
from lossops.triton import elementwise  # noqa: E402
from lossops.triton.elementwise_kernels import LOSSES, Loss  # noqa: E402

lossops.triton.load()
ops = torch.ops.lossops_triton

INTERPRETED = triton.knobs.runtime.interpret
DEVICE = torch.device("cpu") if INTERPRETED else torch.device("cuda", 0)
runs_kernels = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(),
    reason="needs a GPU or the interpreter, in which test_triton.py runs this file",
)

# The branch not taken may divide by zero, which numpy, behind the interpreter, reports.
pytestmark = [runs_kernels, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

FLOAT64, FLOAT32, BFLOAT16, FLOAT16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
DTYPES = [
    (FLOAT64, FLOAT64),
    (FLOAT32, FLOAT32),
    (BFLOAT16, BFLOAT16),
    (FLOAT16, FLOAT16),
    (BFLOAT16, FLOAT32),
    (BFLOAT16, FLOAT64),
]
REDUCTIONS = [("none", 0), ("mean", 0), ("sum", 0), ("mean", 1), ("sum", 2), ("sum", 3)]
# Hyperparameters other than the defaults, where a loss has them: 1 would hide a factor.
PARAMS = {row.kernel: list(row.params(row.samples[-1])) for row in specs.SPECS} | {
    "smooth_l1": [0.75],  # not its 0
    "huber": [1.25],  # not its infinity
}
NO_GRADIENTS = [False, False, False]
ALL = [True, True, True]


def name_of(value):
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


# ---------------------------------------------------------------------------------------------
# The truth.


def formula(loss, d, params):
    return reference.FORMULAS[loss](d, torch.zeros_like(d), *params)


def reduced(values, reduction, keep_dims, normalizer=None):
    if reduction == "none":
        return values
    groups = values.unsqueeze(-1).flatten(keep_dims)
    total = groups.sum(-1)
    if normalizer is not None:
        return total / normalizer
    return total / groups.shape[-1] if reduction == "mean" else total


class Case:
    """Random arguments of the raw ops, and what should come out."""

    def __init__(self, rng, shape, dtypes, loss, reduction="mean", keep_dims=0, **options):
        self.loss, self.params = loss, options.get("params") or PARAMS[loss]
        self.reduction, self.keep_dims = reduction, keep_dims
        draw = torch.Generator().manual_seed(rng.getrandbits(60))
        x_dtype, y_dtype = dtypes

        def tensor(dtype, shape=shape):
            return torch.randn(shape, generator=draw, dtype=FLOAT64).to(dtype)

        # Differences on both sides of every threshold, and exactly on it: 0, beta and delta, beside
        # targets short enough for the input to be exact in any dtype.
        input, target = 2 * tensor(x_dtype), tensor(y_dtype)
        for tie in (0.0, *self.params):
            tied = torch.rand(shape, generator=draw) < 0.1
            target = torch.where(tied, (4 * target).round() / 4, target)
            input = torch.where(tied, target.to(x_dtype) + tie, input)
        self.operands = [input, target, None]
        if options.get("weighted"):
            self.operands[2] = tensor(x_dtype)
        self.tangents = [None if t is None else tensor(t.dtype) for t in self.operands]
        self.normalizer = options.get("normalizer")
        kept = shape if reduction == "none" else shape[:keep_dims]
        self.out_dtype = torch.promote_types(*dtypes)
        self.grad_output = tensor(self.out_dtype, kept)

    @property
    def call(self):
        return self.loss, self.params, self.reduction, self.keep_dims

    def to_device(self):
        def moved(t):
            return None if t is None else t.to(DEVICE)

        self.operands = [moved(t) for t in self.operands]
        self.tangents = [moved(t) for t in self.tangents]
        self.normalizer, self.grad_output = moved(self.normalizer), moved(self.grad_output)
        return self

    def total(self, x, y, w):
        """The reduced loss, in float64."""
        values = formula(self.loss, x - y, self.params)
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
        """The loss's derivative along the tangents, and its gradients for grad_output."""
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
        """What these numbers are without the signs of their terms: rounding is relative to that.

        Of the loss, its derivative along the tangents, and the gradients of that one.
        """
        w = 1 if self.operands[2] is None else self.operands[2].double().abs()
        a, b, c = (0 if t is None else t.double().abs() for t in self.tangents)
        d = (self.operands[0].double() - self.operands[1].double()).requires_grad_()
        f = formula(self.loss, d, self.params)
        (first,) = torch.autograd.grad(f.sum(), d, create_graph=True)
        second = torch.zeros_like(d)
        if first.requires_grad:
            (second,) = torch.autograd.grad(first.sum(), d, materialize_grads=True)
        f, first, second = (t.detach().abs() for t in (f, first, second))
        along, slope = (a + b) * first, (a + b) * second

        leaf = torch.zeros_like(d, requires_grad=True)
        normalizer = None if self.normalizer is None else self.normalizer.double()
        adjoint = reduced(leaf, *self.call[2:], normalizer)
        (g,) = torch.autograd.grad(adjoint, leaf, self.grad_output.double().abs())

        def total(terms):
            return reduced(terms, *self.call[2:], normalizer)

        by_input = g * (w * slope + c * first)
        return total(w * f), total(w * along + c * f), (by_input, by_input, g * along)

    # What the kernels make of it.

    def forward(self, mask=ALL):
        return ops.elementwise_forward(
            *self.operands, self.normalizer, *self.call, self.out_dtype, self.mask(mask)
        )

    def backward(self, mask=ALL):
        arguments = (self.grad_output, *self.operands, self.normalizer, *self.call)
        return ops.elementwise_backward(*arguments, self.mask(mask))

    def backward_(self, grads, mask=ALL):
        arguments = (self.grad_output, *self.operands, self.normalizer, *self.call)
        ops.elementwise_backward_(grads, *arguments, self.mask(mask))

    def double_backward(self):
        return ops.elementwise_double_backward(
            self.grad_output, *self.operands, self.normalizer, *self.tangents, *self.call,
            self.out_dtype, [True, *self.mask(ALL)],
        )  # fmt: skip

    def mask(self, wanted):
        return [yes and t is not None for yes, t in zip(wanted, self.operands, strict=True)]

    def check(self):
        """Value, gradients and second derivatives."""
        self.to_device()
        scalar = self.reduction != "none" and self.keep_dims == 0
        size, *_ = self.magnitudes()
        value, gradients = self.truth()
        got, *got_gradients = self.forward(ALL if scalar else NO_GRADIENTS)
        self.compare(got, value, size)
        if scalar:
            g = self.grad_output.double()
            self.compare_gradients(got_gradients, [gradient / g for gradient in gradients])
        else:
            assert got_gradients == [None, None, None]
        self.compare_gradients(self.backward(), gradients)
        self.check_double_backward()

    def check_double_backward(self):
        _, size, sizes = self.magnitudes()
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
        """Holds an error to one rounding of the result and a few in the computation."""
        assert got.shape == expected.shape
        compute = FLOAT64 if FLOAT64 in {t.dtype for t in self.operands[:2]} else FLOAT32
        output = torch.finfo(got.dtype)
        # The interpreter converts to bfloat16 by cutting bits off.
        rounding = 1.0 if INTERPRETED and got.dtype == BFLOAT16 else 0.5
        bound = output.eps * (rounding * expected.abs() + output.smallest_normal)
        bound += 16 * torch.finfo(compute).eps * (expected.abs() + size)
        error = (got.double() - expected).abs()
        if not (error <= bound).all():
            i = (error / bound).argmax()
            worst = (t.flatten()[i].item() for t in (got, expected, bound))
            pytest.fail("at {}: {} should be {}, within {}".format(i.item(), *worst))


@pytest.fixture
def rng():
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")  # pytest shows it on failure
    return random.Random(seed)


# ---------------------------------------------------------------------------------------------
# Numbers.


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: "-".join(map(name_of, pair)))
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_and_reduction(loss, dtypes, rng):
    for reduction, keep_dims in REDUCTIONS:
        shape = (rng.randint(1, 2), rng.randint(1, 3), rng.randint(1, 60 if keep_dims < 3 else 2))
        Case(rng, shape, dtypes, loss, reduction, keep_dims, weighted=rng.random() < 0.5).check()


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: "-".join(map(name_of, pair)))
def test_sizes_around_the_tiles(dtypes, rng):
    tile = elementwise.TILE_BYTES // min(dtype.itemsize for dtype in dtypes)
    rounds = elementwise._programs(DEVICE)
    for size in (1, tile - 1, tile, tile + 1, 3 * tile, (rounds + 1) * tile + 1):
        Case(rng, (size,), dtypes, "huber", "mean").check()
    for group in (1, 16, tile, 2 * tile + 3):
        Case(rng, (3, group), dtypes, "smooth_l1", "mean", 1, weighted=True).check()


@pytest.mark.parametrize(("reduction", "keep_dims"), [("mean", 0), ("sum", 1), ("mean", 2)])
def test_normalizer(reduction, keep_dims, rng):
    shape = (3, 4, 50)
    for kept in {(), shape[:keep_dims]}:
        normalizer = torch.rand(kept) + 0.5
        Case(
            rng, shape, (FLOAT32, FLOAT32), "mse", reduction, keep_dims,
            normalizer=normalizer, weighted=True,
        ).check()  # fmt: skip


LAYOUTS = {
    "transposed": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "outermost_last": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "broadcast": lambda t: t[:, :1, :, :1].expand_as(t),
    "one_number": lambda t: t[:1, :1, :1, :1].expand_as(t),
    "sliced": lambda t: torch.cat((t, t), dim=2)[:, :, 1 : 1 + t.shape[2]],
    "shifted": lambda t: torch.cat((t.flatten(), t.flatten()))[1 : 1 + t.numel()].view_as(t),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("reduction", "keep_dims"), [("none", 0), ("mean", 0), ("sum", 1)])
def test_layouts(layout, reduction, keep_dims, rng):
    arrange = LAYOUTS[layout]
    for which in ("all", "input", "others"):
        case = Case(
            rng, (3, 4, 5, 7), (FLOAT32, FLOAT32), "log_cosh", reduction, keep_dims, weighted=True
        ).to_device()
        first, *others = case.operands
        if which != "others":
            first = arrange(first)
        if which != "input":
            others = [arrange(t) for t in others]
        case.operands = [first, *others]
        if reduction == "none":
            case.grad_output = arrange(case.grad_output)
        case.check()


def test_dense_tensors_are_not_copied(monkeypatch):
    def refuse(*_):
        raise AssertionError("a copy")

    x, y = (torch.randn(2, 3, 4, 5, device=DEVICE) for _ in range(2))
    x, y = (t.to(memory_format=torch.channels_last) for t in (x, y))
    monkeypatch.setattr(torch.Tensor, "copy_", refuse)
    monkeypatch.setattr(torch.Tensor, "contiguous", refuse)
    for reduction, keep_dims in (("mean", 0), ("mean", 1), ("none", 0)):
        call = ("mse", [], reduction, keep_dims)
        elementwise.elementwise_forward(x, y, None, None, *call, FLOAT32, [True, True, False])
    with pytest.raises(AssertionError, match="a copy"):  # samples split over dimension 1
        elementwise.elementwise_forward(x, y, None, None, "mse", [], "mean", 2, FLOAT32, ALL[:2])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_special_values(loss, dtype):
    d = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-4, -1e-4, 1e4, -1e4, 1e30, 1e-30, 60.0]
    x = torch.tensor(d, dtype=dtype, device=DEVICE)
    y = torch.zeros_like(x)
    params = PARAMS[loss]
    leaf = x.double().clone().requires_grad_()
    expected = formula(loss, leaf, params)
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    if loss in {
        row.kernel for row in specs.SPECS if row.differentiable == 1
    }:  # torch.where makes the first a NaN; both have sign(NaN) = 0
        gradient = gradient.nan_to_num(0.0)
    call = (loss, params, "none", 0)
    value, *_ = ops.elementwise_forward(x, y, None, None, *call, dtype, NO_GRADIENTS)
    one = torch.ones((), device=DEVICE).expand_as(x)
    grad, *_ = ops.elementwise_backward(one, x, y, None, None, *call, [True, False, False])
    tolerance = {"rtol": 10 * torch.finfo(dtype).eps, "atol": 1e-44, "equal_nan": True}
    torch.testing.assert_close(value, expected.to(dtype), **tolerance)
    torch.testing.assert_close(grad, gradient.to(dtype), **tolerance)
    # A NaN is not lost in a reduction, behind a mask or otherwise.
    total, *_ = ops.elementwise_forward(
        x, y, None, None, loss, params, "sum", 0, dtype, NO_GRADIENTS
    )
    assert total.isnan()


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_log_cosh_keeps_its_digits(dtype):
    x = torch.logspace(-15, 5, 4001, dtype=FLOAT64, device=DEVICE).to(dtype)
    y, one = torch.zeros_like(x), torch.ones((), device=DEVICE).expand_as(x)
    call = ("log_cosh", [], "none", 0)
    value, *_ = ops.elementwise_forward(x, y, None, None, *call, dtype, NO_GRADIENTS)
    first, *_ = ops.elementwise_backward(one, x, y, None, None, *call, [True, False, False])
    _, second, *_ = ops.elementwise_double_backward(
        one, x, y, None, None, torch.ones_like(x), None, None, *call, dtype,
        [False, True, False, False],
    )  # fmt: skip
    leaf = x.double().clone().requires_grad_()
    expected = formula("log_cosh", leaf, [])
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    sech = 2 * torch.exp(-leaf.detach()) / (1 + torch.exp(-2 * leaf.detach()))
    units = torch.finfo(dtype).eps
    for got, truth, factor in ((value, expected, 16), (first, slope, 8), (second, sech**2, 16)):
        kept = truth.abs() > torch.finfo(dtype).tiny
        error = ((got.double() - truth) / truth)[kept].abs().amax()
        assert error < factor * units


def test_smooth_l1_with_beta_zero_is_l1(rng):
    case = Case(rng, (700,), (FLOAT32, FLOAT32), "smooth_l1", params=[0.0], weighted=True)
    case.check()


@triton.jit
def offset_product(x, y, p0, p1):
    """x^2 y + p0 + p1: not a function of x - y, and not 0 where both are."""
    return x * x * y + p0 + p1, 2 * x * y, x * x, 2 * y, 2 * x, 0.0


def test_loss_of_two_variables_with_an_offset(monkeypatch, rng):
    monkeypatch.setitem(LOSSES, "offset_product", Loss(offset_product, 2, of_difference=False))
    monkeypatch.setattr(
        Case, "total", lambda case, x, y, w: reduced(x * x * y + 0.75, *case.call[2:])
    )
    for shape, keep_dims in (((700,), 0), ((3, 700), 1)):
        case = Case(
            rng, shape, (FLOAT64, FLOAT64), "offset_product", "sum", keep_dims,
            params=[0.5, 0.25],
        ).to_device()  # fmt: skip
        value, gradients = case.truth()
        got, *_ = case.forward(NO_GRADIENTS)
        case.compare(got, value, size=1e4)
        case.compare_gradients(case.backward(), gradients)
        along, gradients = case.second_truth()
        got, *got_gradients = case.double_backward()
        case.compare(got, along, size=1e4)
        case.compare_gradients(got_gradients, gradients, (100, 100, 100))


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: "-".join(map(name_of, pair)))
def test_in_place(dtypes, rng):
    for mask in ([True, True, True], [True, False, False], [False, True, True]):
        case = Case(rng, (3, 700), dtypes, "huber", weighted=True).to_device()
        _, expected = case.truth()
        expected = [g for g, yes in zip(expected, mask, strict=True) if yes]

        _, *grads = case.forward(mask)
        grads = [g for g in grads if g is not None]
        ops.elementwise_rescale_(grads, case.grad_output)
        for got, gradient in zip(grads, expected, strict=True):
            unit = 4 * torch.finfo(got.dtype).eps  # rounded twice
            torch.testing.assert_close(got.double(), gradient, rtol=unit, atol=1e-6)

        # Written over whatever stood there, but for grad_output == 1.
        grads = [torch.full_like(g, 7.0) for g in grads]
        case.backward_(grads, mask)
        for got, gradient in zip(grads, expected, strict=True):
            case.compare(got, gradient)
        grads = [torch.full_like(g, 7.0) for g in grads]
        case.grad_output = torch.ones_like(case.grad_output)
        case.backward_(grads, mask)
        ops.elementwise_rescale_(grads, case.grad_output)
        assert all((g == 7).all() for g in grads)


def test_in_place_on_other_layouts(rng):
    case = Case(rng, (6, 70), (FLOAT32, FLOAT32), "mse", weighted=True).to_device()
    x, y, w = case.operands
    case.operands = [x, y.t().contiguous().t(), w[:1].expand_as(w)]
    _, expected = case.truth()
    grads = [torch.full_like(t, 7.0) for t in case.operands]
    scattered = torch.full((6, 140), 7.0, device=DEVICE)[:, ::2]
    case.backward_([grads[0], grads[1], scattered])
    for got, gradient in zip((grads[0], grads[1], scattered), expected, strict=True):
        case.compare(got, gradient)
    with pytest.raises(RuntimeError, match="dense"):
        ops.elementwise_rescale_([scattered], torch.tensor(2.0, device=DEVICE))
    case.grad_output = torch.ones((), device=DEVICE)
    scattered.fill_(7.0)
    case.backward_([grads[0], grads[1], scattered])
    assert (scattered == 7).all()


def test_missing_tangents_and_outputs(rng):
    for present in itertools.product([False, True], repeat=3):
        case = Case(rng, (4, 50), (FLOAT32, FLOAT32), "huber", "sum", 1, weighted=True).to_device()
        case.tangents = [t if yes else None for t, yes in zip(case.tangents, present, strict=True)]
        got = case.check_double_backward()
    along_alone, *_ = ops.elementwise_double_backward(
        None, *case.operands, None, *case.tangents, *case.call, FLOAT32, [True, *NO_GRADIENTS]
    )
    assert torch.equal(along_alone, got)


def test_no_elements():
    for shape, keep_dims, kept in (((0,), 0, ()), ((3, 0), 1, (3,)), ((0, 3), 1, (0,))):
        x = torch.empty(shape, device=DEVICE)
        for reduction, expected in (("mean", math.nan), ("sum", 0.0)):
            call = ("mse", [], reduction, keep_dims)
            loss, grad, *_ = ops.elementwise_forward(
                x, x, None, None, *call, FLOAT32, [True, False, False]
            )
            full = torch.full(kept, expected, device=DEVICE)
            torch.testing.assert_close(loss, full, equal_nan=True)
            assert grad.shape == shape
        call = ("mse", [], "none", keep_dims)
        loss, *_ = ops.elementwise_forward(x, x, None, None, *call, FLOAT32, NO_GRADIENTS)
        assert loss.shape == shape
        ops.elementwise_rescale_([loss], torch.ones((), device=DEVICE))
    two = torch.tensor(2.0, device=DEVICE)
    loss, *_ = ops.elementwise_forward(x, x, None, two, "mse", [], "mean", 0, FLOAT32, NO_GRADIENTS)
    assert loss.item() == 0


def test_the_same_bits_every_time(rng):
    tiles = elementwise._programs(DEVICE) + 3
    case = Case(rng, (tiles * elementwise.TILE_BYTES // 4 + 5,), (FLOAT32, FLOAT32), "log_cosh")
    first, second = (case.to_device().forward()[0] for _ in range(2))
    assert torch.equal(first, second)


def test_what_would_read_out_of_bounds_is_refused():
    x, short = torch.ones(3, 4, device=DEVICE), torch.ones(3, 3, device=DEVICE)
    grad_output = torch.ones((), device=DEVICE)
    call = ("mse", [], "mean", 0)
    for operands in ((x, short, None), (x, x, short), (short, x, None)):
        with pytest.raises(RuntimeError, match="should have the shape of input"):
            ops.elementwise_forward(*operands, None, *call, FLOAT32, NO_GRADIENTS)
    with pytest.raises(RuntimeError, match=r"shape \(3,\) or \(\) was expected, got \(4,\)"):
        ops.elementwise_backward(
            torch.ones(4, device=DEVICE), x, x, None, None, "mse", [], "mean", 1, NO_GRADIENTS
        )
    with pytest.raises(RuntimeError, match="was expected"):
        ops.elementwise_backward_(
            [short], grad_output, x, x, None, None, *call, [True, False, False]
        )
    with pytest.raises(RuntimeError, match="single number"):
        ops.elementwise_rescale_([x], torch.ones(2, device=DEVICE))
    with pytest.raises(RuntimeError, match="unknown elementwise loss 'mes'"):
        ops.elementwise_forward(x, x, None, None, "mes", *call[1:], FLOAT32, NO_GRADIENTS)
    with pytest.raises(NotImplementedError, match="int64"):
        ops.elementwise_forward(x.long(), x, None, None, *call, FLOAT32, NO_GRADIENTS)


# ---------------------------------------------------------------------------------------------
# Autograd on top of the kernels.


@each_spec
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_autograd(spec, reduction):
    kwargs = spec.defaults
    x, y = (t.to(DEVICE).requires_grad_() for t in away_from_kinks(spec, kwargs, 2, 2))
    w = (torch.rand(2, 2, dtype=FLOAT64, device=DEVICE) + 0.2).requires_grad_()

    def loss(input, target, weight):
        return spec.function(input, target, reduction=reduction, weight=weight, **kwargs)

    with lossops.backend("triton"):
        with expect_ops("lossops_triton::elementwise_forward"):
            loss(x, y, w)
        torch.autograd.gradcheck(loss, (x, y, w), check_forward_ad=True, fast_mode=True)
        torch.autograd.gradgradcheck(loss, (x, y, w), fast_mode=True)
        found = torch.vmap(torch.func.grad(lambda *rows: spec.function(*rows, **kwargs)))(x, y)
    expected = torch.vmap(torch.func.grad(lambda *rows: spec.function(*rows, **kwargs)))(x, y)
    torch.testing.assert_close(found, expected)


@each_spec
def test_training_step(spec):
    """The gradient comes from the forward pass, once; a second backward recomputes it."""
    x, y = (t.to(DEVICE) for t in torch.randn(2, 300))
    x.requires_grad_()
    with (
        lossops.backend("triton"),
        expect_ops("lossops_triton::elementwise_rescale_", "lossops_triton::elementwise_backward"),
    ):
        loss = spec.function(x, y, **spec.defaults)
        (first,) = torch.autograd.grad(loss, x, torch.full_like(loss, 2), retain_graph=True)
        (second,) = torch.autograd.grad(loss, x, torch.full_like(loss, 2))
    torch.testing.assert_close(first, second)
    own = torch.autograd.grad(spec.function(x, y, **spec.defaults) * 2, x)[0]
    torch.testing.assert_close(first, own)
