"""The contract of the raw ops (``lossops/elementwise/ops.py``), for every engine: C++; CUDA C++, on
the CPU and, if there is one, on the GPU; Triton, on the GPU or in its interpreter, in which
test_triton.py runs this file."""

import itertools
import math
import random

import pytest
import torch
from conftest import each_spec
from raw_ops import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    LOSSES,
    NO_GRADIENTS,
    PARAMS,
    Case,
    each_pair,
    formula,
)  # fmt: skip

from lossops.specs import elementwise as specs

DTYPES = [
    (FLOAT64, FLOAT64),
    (FLOAT32, FLOAT32),
    (BFLOAT16, BFLOAT16),
    (FLOAT16, FLOAT16),
    (BFLOAT16, FLOAT32),
    (FLOAT16, FLOAT32),
    (BFLOAT16, FLOAT64),
    (FLOAT32, FLOAT16),
]
REDUCTIONS = [("none", 0), ("mean", 0), ("sum", 0), ("mean", 1), ("sum", 2), ("sum", 3)]

# The branch that is not selected may divide by zero, which numpy reports in Triton's interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")


@each_pair(DTYPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_and_reduction(backend, loss, dtypes):
    for reduction, keep_dims in REDUCTIONS:
        inner = random.randint(1, 60 if keep_dims < 3 else 2)
        shape = (random.randint(1, 2), random.randint(1, 3), inner)
        weighted = random.random() < 0.5
        Case(backend, shape, dtypes, loss, reduction, keep_dims, weighted=weighted).check()


@pytest.mark.parametrize(("reduction", "keep_dims"), [("mean", 0), ("sum", 1), ("mean", 2)])
def test_normalizer(backend, reduction, keep_dims):
    shape = (3, 4, 50)
    for kept in {(), shape[:keep_dims]}:
        normalizer = torch.rand(kept) + 0.5
        Case(
            backend, shape, (FLOAT32, FLOAT32), "mse", reduction, keep_dims,
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
def test_layouts(backend, layout, reduction, keep_dims):
    arrange = LAYOUTS[layout]
    for which in ("all", "input", "others"):
        pair = (FLOAT32, FLOAT32)
        shape = (3, 4, 5, 7)
        case = Case(backend, shape, pair, "log_cosh", reduction, keep_dims, weighted=True)
        first, *others = case.to_device().operands
        if which != "others":
            first = arrange(first)
        if which != "input":
            others = [arrange(t) for t in others]
        case.operands = [first, *others]
        if reduction == "none":
            case.grad_output = arrange(case.grad_output)
        case.check()


def test_eight_dimensions(backend):
    """No two dimensions can be merged."""
    shape = (2, 3, 2, 3, 2, 2, 3, 2)
    for reduction, keep_dims in (("none", 0), ("mean", 0), ("sum", 1)):
        case = Case(backend, shape, (FLOAT32, FLOAT32), "mse", reduction, keep_dims, weighted=True)
        x, y, w = case.to_device().operands
        order = random.sample(range(1, 8), 7)
        strided = y.permute(0, *order).contiguous()
        inverse = [0, *(order.index(d) + 1 for d in range(1, 8))]
        case.operands = [x, strided.permute(inverse), w[:, :1, :, :1, :, :1].expand_as(w)]
        case.check()


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
@pytest.mark.parametrize(("reduction", "keep_dims"), [("none", 0), ("mean", 0), ("mean", 1)])
def test_loss_of_another_dtype(backend, dtype, reduction, keep_dims):
    """As under autocast: half-precision tensors, a float32 loss and its gradient."""
    for shape in ((3, 1000), (2, 7)):
        options = {"out_dtype": FLOAT32, "weighted": random.random() < 0.5}
        Case(backend, shape, (dtype, dtype), "huber", reduction, keep_dims, **options).check()


def test_an_infinite_loss_and_no_tangent_of_its_weight(backend):
    x = torch.tensor([math.inf, 1.0], device=backend.device)
    y, w = torch.zeros_like(x), torch.ones_like(x)
    along, *_ = backend.ops.elementwise_double_backward(
        None, x, y, w, None, torch.ones_like(x), None, None, "l1", [], "none", 0, FLOAT32,
        [True, *NO_GRADIENTS],
    )  # fmt: skip
    assert along.tolist() == [1.0, 1.0]


INF, NAN = math.inf, math.nan
# input and target, followed by the expected value and derivatives with respect to input and target.
# None is not checked.
SPECIAL = {
    ("kl_div", ()): [
        (-INF, 0.0, 0.0, 0.0, -INF),
        (-1.0, 0.0, 0.0, 0.0, -INF),
        (-INF, 0.5, INF, -0.5, INF),
        (0.0, 1.0, 0.0, -1.0, 1.0),
        (NAN, 0.0, NAN, None, NAN),
        (-1.0, NAN, NAN, NAN, NAN),
    ],
    ("kl_div_log_target", ()): [
        (-INF, -INF, 0.0, 0.0, 0.0),
        (-1.0, -INF, 0.0, 0.0, 0.0),
        (-INF, 0.0, INF, -1.0, INF),
        (-INF, -2000.0, INF, 0.0, INF),
        (-1.0, -2000.0, 0.0, 0.0, 0.0),
        (-2.0, 0.0, 2.0, -1.0, 3.0),
        (NAN, -INF, NAN, None, NAN),
        (-1.0, NAN, NAN, NAN, NAN),
    ],
    ("bce", (0.0,)): [
        (0.0, 0.0, 0.0, 0.0, 100.0),
        (1.0, 1.0, 0.0, 0.0, -100.0),
        (0.0, 1.0, 100.0, -1e12, 100.0),
        (1.0, 0.0, 100.0, 1e12, -100.0),
        (1e-20, 0.0, 1e-20, 1e-8, None),
        (0.5, 0.25, math.log(2), 1.0, 0.0),
        (-0.25, 0.5, NAN, NAN, None),
        (1.25, 1.0, NAN, NAN, None),
        (0.5, 1.25, NAN, NAN, None),
        (0.5, -0.25, NAN, NAN, None),
        (NAN, 1.0, NAN, NAN, NAN),
        (0.5, NAN, NAN, NAN, None),
    ],
    ("bce_with_logits", (1.0, 0.0)): [
        (INF, 1.0, 0.0, 0.0, -INF),
        (-INF, 0.0, 0.0, 0.0, INF),
        (INF, 0.0, INF, 1.0, -INF),
        (-INF, 1.0, INF, -1.0, INF),
        (INF, 0.25, INF, 0.75, -INF),
        (60.0, 1.0, math.exp(-60), -math.exp(-60), -60.0),
        (-60.0, 0.0, math.exp(-60), math.exp(-60), 60.0),
        (1e30, 0.0, 1e30, 1.0, -1e30),
        (0.0, 1.0, math.log(2), -0.5, 0.0),
        (NAN, 1.0, NAN, NAN, NAN),
        (0.0, NAN, NAN, NAN, None),
    ],
    ("bce_with_logits", (3.0, 0.0)): [
        (INF, 1.0, 0.0, 0.0, -INF),
        (-INF, 1.0, INF, -3.0, INF),
        (0.0, 1.0, 3 * math.log(2), -1.5, 2 * math.log(2)),
    ],
    ("bce_with_logits", (1.0, 0.5)): [
        (INF, 1.0, INF, 0.25, -INF),
        (0.0, 1.0, math.log(2), -0.25, 0.0),
    ],
    ("sigmoid_focal", (0.25, 2.0)): [
        (INF, 1.0, 0.0, 0.0, 0.0),
        (-INF, 0.0, 0.0, 0.0, 0.0),
        (INF, 0.0, INF, 0.75, -INF),
        (-INF, 1.0, INF, -0.25, None),
        (1e4, 0.0, 7.5e3, 0.75, None),
        (20.0, 1.0, 0.25 * math.exp(-60), -0.75 * math.exp(-60), None),
        (-20.0, 0.0, 0.75 * math.exp(-60), 2.25 * math.exp(-60), None),
        (0.0, 1.0, 0.0625 * math.log(2), -0.0625 * (math.log(2) + 0.5), None),
        (NAN, 1.0, NAN, NAN, NAN),
        (0.0, NAN, NAN, NAN, NAN),
    ],
    ("sigmoid_focal", (-1.0, 0.0)): [
        (INF, 1.0, 0.0, 0.0, -INF),
        (INF, 0.0, INF, 1.0, None),
        (-60.0, 0.0, math.exp(-60), math.exp(-60), None),
        (0.0, 1.0, math.log(2), -0.5, 0.0),
        (NAN, 1.0, NAN, NAN, NAN),
    ],
    ("sigmoid_focal", (-1.0, 0.5)): [
        (INF, 1.0, 0.0, 0.0, 0.0),
        (40.0, 1.0, math.exp(-60), -1.5 * math.exp(-60), None),
    ],
    ("sigmoid_focal", (-1.0, 1.0)): [(0.0, 0.5, 0.5 * math.log(2), 0.0, 0.0)],
    ("sigmoid_focal", (-1.0, 50.0)): [
        (0.0, 1.0, 2**-50 * math.log(2), -(2**-50) * (25 * math.log(2) + 0.5), None),
        (3.0, 1.0, 0.0, 0.0, 0.0),
    ],
}


@pytest.mark.parametrize("call", SPECIAL, ids=str)
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_special_probabilities(backend, call, dtype):
    loss, params = call
    args = (loss, list(params), "none", 0)
    columns = torch.tensor(
        [[NAN if number is None else number for number in row] for row in SPECIAL[call]],
        dtype=FLOAT64, device=backend.device,
    ).to(dtype)  # fmt: skip
    x, y, *expected = (column.contiguous() for column in columns.unbind(1))
    one = torch.ones((), device=backend.device).expand_as(x)
    value, *_ = backend.ops.elementwise_forward(x, y, None, None, *args, dtype, NO_GRADIENTS)
    grads = backend.ops.elementwise_backward(one, x, y, None, None, *args, [True, True, False])
    for i, found in enumerate((value, *grads[:2])):
        for row, got, right in zip(
            SPECIAL[call], found.tolist(), expected[i].tolist(), strict=True
        ):
            if row[2 + i] is not None:
                assert got == pytest.approx(right, rel=1e-5, abs=1e-38, nan_ok=True), (row, i)
    # A tangent of the input alone is not affected by an infinite derivative with respect to the
    # target.
    along, second, *_ = backend.ops.elementwise_double_backward(
        one, x, y, None, None, torch.ones_like(x), None, None, *args, dtype,
        [True, True, False, False],
    )  # fmt: skip
    for row, got, other in zip(SPECIAL[call], along.tolist(), second.tolist(), strict=True):
        if row[3] is not None:
            assert got == pytest.approx(row[3], rel=1e-5, abs=1e-38, nan_ok=True), row
            assert math.isfinite(other) or math.isnan(row[3]), row


@pytest.mark.parametrize("loss", [row.kernel for row in specs.REGRESSION])
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_special_values(backend, loss, dtype):
    ops = backend.ops
    d = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-4, -1e-4, 1e4, -1e4, 1e30, 1e-30, 60.0]
    x = torch.tensor(d, dtype=dtype, device=backend.device)
    y = torch.zeros_like(x)
    params = PARAMS[loss]
    leaf = x.double().clone().requires_grad_()
    expected = formula(loss, leaf, y.double(), params)
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    if loss in {
        row.kernel for row in specs.SPECS if row.differentiable == 1
    }:  # torch.where makes the first a NaN; sign(NaN) is 0 in both
        gradient = gradient.nan_to_num(0.0)
    call = (loss, params, "none", 0)
    value, *_ = ops.elementwise_forward(x, y, None, None, *call, dtype, NO_GRADIENTS)
    one = torch.ones((), device=backend.device).expand_as(x)
    grad, *_ = ops.elementwise_backward(one, x, y, None, None, *call, [True, False, False])
    tolerance = {"rtol": 10 * torch.finfo(dtype).eps, "atol": 1e-44, "equal_nan": True}
    torch.testing.assert_close(value, expected.to(dtype), **tolerance)
    torch.testing.assert_close(grad, gradient.to(dtype), **tolerance)
    # A NaN is not lost in a reduction, by masking or otherwise.
    total, *_ = ops.elementwise_forward(
        x, y, None, None, loss, params, "sum", 0, dtype, NO_GRADIENTS
    )
    assert total.isnan()


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_log_cosh_keeps_its_digits(backend, dtype):
    ops = backend.ops
    x = torch.logspace(-15, 5, 4001, dtype=FLOAT64).to(backend.device, dtype)
    y, one = torch.zeros_like(x), torch.ones((), device=backend.device).expand_as(x)
    call = ("log_cosh", [], "none", 0)
    value, *_ = ops.elementwise_forward(x, y, None, None, *call, dtype, NO_GRADIENTS)
    first, *_ = ops.elementwise_backward(one, x, y, None, None, *call, [True, False, False])
    _, second, *_ = ops.elementwise_double_backward(
        one, x, y, None, None, torch.ones_like(x), None, None, *call, dtype,
        [False, True, False, False],
    )  # fmt: skip
    leaf = x.double().clone().requires_grad_()
    expected = formula("log_cosh", leaf, torch.zeros_like(leaf), [])
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    sech = 2 * torch.exp(-leaf.detach()) / (1 + torch.exp(-2 * leaf.detach()))
    units = torch.finfo(dtype).eps
    for got, truth, factor in ((value, expected, 16), (first, slope, 8), (second, sech**2, 16)):
        kept = truth.abs() > torch.finfo(dtype).tiny
        error = ((got.double() - truth) / truth)[kept].abs().amax()
        assert error < factor * units


def test_smooth_l1_with_beta_zero_is_l1(backend):
    Case(backend, (700,), (FLOAT32, FLOAT32), "smooth_l1", params=[0.0], weighted=True).check()


@each_pair(DTYPES)
def test_in_place(backend, dtypes):
    ops = backend.ops
    for mask in ([True, True, True], [True, False, False], [False, True, True]):
        case = Case(backend, (3, 700), dtypes, "huber", weighted=True).to_device()
        _, expected = case.truth()
        expected = [g for g, yes in zip(expected, mask, strict=True) if yes]

        _, *grads = case.forward(mask)
        grads = [g for g in grads if g is not None]
        ops.elementwise_rescale_(grads, case.grad_output)
        for got, gradient in zip(grads, expected, strict=True):
            unit = 4 * torch.finfo(got.dtype).eps  # rounded twice
            near_zero = unit * gradient.abs().max().item()
            torch.testing.assert_close(got.double(), gradient, rtol=unit, atol=near_zero)

        # Overwrites the previous contents, unless grad_output is 1.
        grads = [torch.full_like(g, 7.0) for g in grads]
        case.backward_(grads, mask)
        for got, gradient in zip(grads, expected, strict=True):
            case.compare(got, gradient)
        grads = [torch.full_like(g, 7.0) for g in grads]
        case.grad_output = torch.ones_like(case.grad_output)
        case.backward_(grads, mask)
        ops.elementwise_rescale_(grads, case.grad_output)
        assert all((g == 7).all() for g in grads)


def test_in_place_on_other_layouts(backend):
    case = Case(backend, (6, 70), (FLOAT32, FLOAT32), "mse", weighted=True).to_device()
    x, y, w = case.operands
    case.operands = [x, y.t().contiguous().t(), w[:1].expand_as(w)]
    _, expected = case.truth()
    grads = [torch.full_like(t, 7.0) for t in case.operands]
    scattered = torch.full((6, 140), 7.0, device=backend.device)[:, ::2]
    case.backward_([grads[0], grads[1], scattered])
    for got, gradient in zip((grads[0], grads[1], scattered), expected, strict=True):
        case.compare(got, gradient)
    twice = 2 * scattered
    backend.ops.elementwise_rescale_([scattered], torch.tensor(2.0, device=backend.device))
    assert torch.equal(scattered, twice)
    case.grad_output = torch.ones((), device=backend.device)
    scattered.fill_(7.0)
    case.backward_([grads[0], grads[1], scattered])
    assert (scattered == 7).all()


def test_missing_tangents_and_outputs(backend):
    for present in itertools.product([False, True], repeat=3):
        case = Case(backend, (4, 50), (FLOAT32, FLOAT32), "huber", "sum", 1, weighted=True)
        case.to_device()
        case.tangents = [t if yes else None for t, yes in zip(case.tangents, present, strict=True)]
        got = case.check_double_backward()
    along_alone, *_ = backend.ops.elementwise_double_backward(
        None, *case.operands, None, *case.tangents, *case.call, FLOAT32, [True, *NO_GRADIENTS]
    )
    assert torch.equal(along_alone, got)


def test_no_elements(backend):
    ops = backend.ops
    for shape, keep_dims, kept in (((0,), 0, ()), ((3, 0), 1, (3,)), ((0, 3), 1, (0,))):
        x = torch.empty(shape, device=backend.device)
        for reduction, expected in (("mean", math.nan), ("sum", 0.0)):
            call = ("mse", [], reduction, keep_dims)
            loss, grad, *_ = ops.elementwise_forward(
                x, x, None, None, *call, FLOAT32, [keep_dims == 0, False, False]
            )
            full = torch.full(kept, expected, device=backend.device)
            torch.testing.assert_close(loss, full, equal_nan=True)
            assert grad is None if keep_dims else grad.shape == shape
        two = torch.tensor(2.0, device=backend.device)
        call = ("mse", [], "mean", keep_dims)
        loss, *_ = ops.elementwise_forward(x, x, None, two, *call, FLOAT32, NO_GRADIENTS)
        assert torch.equal(loss, torch.zeros(kept, device=backend.device))
        call = ("mse", [], "none", keep_dims)
        loss, *_ = ops.elementwise_forward(x, x, None, None, *call, FLOAT32, NO_GRADIENTS)
        assert loss.shape == shape
        ops.elementwise_rescale_([loss], torch.ones((), device=backend.device))


def test_missing_tangents_and_infinite_derivatives(backend):
    """An infinite derivative by a tensor without a tangent gives 0, not NaN."""
    numbers = (-INF, -1.0, 0.0, 0.5, 1.0, 2.0, INF)
    everywhere = torch.tensor([*itertools.product(numbers, numbers)], dtype=FLOAT64)
    points = {row.kernel: everywhere for row in specs.REGRESSION}
    points |= dict.fromkeys(("bce_with_logits", "margin_ranking", "gaussian"), everywhere)
    inside = (everywhere >= 0).all(1) & (everywhere < INF).all(1) & (everywhere[:, 1] > 0)
    points["poisson"] = everywhere[inside]
    for loss, present in itertools.product(points, itertools.product((False, True), repeat=3)):
        params = {"poisson": [0.0, 1.0], "gaussian": [0.0, 0.5]}.get(loss, PARAMS[loss])
        x, y = points[loss].to(backend.device).unbind(1)
        leaves = [t.contiguous().requires_grad_() for t in (x, y, torch.full_like(x, 0.75))]
        tangents = [torch.full_like(x, 1.5) if yes else None for yes in present]
        value = leaves[2] * formula(loss, *leaves[:2], params)
        firsts = torch.autograd.grad(value.sum(), leaves, create_graph=True, materialize_grads=True)
        along = sum((d * t for d, t in zip(firsts, tangents, strict=True) if t is not None), 0 * y)
        factor = torch.full_like(x, -2.0)
        truth = (
            torch.autograd.grad(along, leaves, factor, materialize_grads=True, allow_unused=True)
            if any(present)
            else [torch.zeros_like(x)] * 3
        )
        found = backend.ops.elementwise_double_backward(
            factor, *(leaf.detach() for leaf in leaves), None, *tangents, loss, params, "none", 0,
            FLOAT64, [True] * 4,
        )  # fmt: skip
        for got, true in zip(found, (along.detach(), *truth), strict=True):
            known = ~true.isnan()
            torch.testing.assert_close(
                got[known], true[known], rtol=1e-9, atol=1e-9, msg=f"{loss} {present}"
            )


@each_spec
def test_two_backward_passes_agree(backend, spec):
    """The rescaled gradient of the forward pass and the recomputed one have the same bits in
    float32."""
    case = Case(backend, (1000,), (FLOAT32, FLOAT32), spec.kernel).to_device()
    _, grad, *_ = case.forward([True, False, False])
    backend.ops.elementwise_rescale_([grad], case.grad_output)
    again, *_ = case.backward([True, False, False])
    assert torch.equal(grad, again)
