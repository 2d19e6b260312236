"""The Triton backend, beyond the contract that test_raw_ops.py checks.

These tests run on a GPU, or else in Triton's interpreter on the CPU. An environment variable
selects the interpreter when Triton is imported, so test_triton.py runs this file in a separate
process.
"""

import pytest
import torch
from conftest import away_from_kinks, each_spec, expect_ops, pair
from raw_ops import (
    ALL,
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    NO_GRADIENTS,
    Backend,
    Case,
    each_pair,
    reduced,
)  # fmt: skip
from torch._dynamo.backends.common import aot_autograd

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402, F401, the interpreter wants it beside a jit function

import lossops  # noqa: E402
import lossops.core.triton  # noqa: E402
from lossops.elementwise import reference  # noqa: E402

lossops.core.triton.load()
from lossops.core.triton import launch  # noqa: E402
from lossops.elementwise.ops import ElementwiseArguments  # noqa: E402
from lossops.elementwise.triton import ops as elementwise  # noqa: E402
from lossops.elementwise.triton.kernels import LOSSES, Loss  # noqa: E402

INTERPRETED = triton.knobs.runtime.interpret
DEVICE = torch.device("cpu") if INTERPRETED else torch.device("cuda", 0)
# The interpreter truncates in the conversion to bfloat16.
BACKEND = Backend(torch.ops.lossops_triton, DEVICE, 1.0 if INTERPRETED else 0.5)
PAIRS = [
    (FLOAT64, FLOAT64), (FLOAT32, FLOAT32), (BFLOAT16, BFLOAT16), (FLOAT16, FLOAT16),
    (BFLOAT16, FLOAT32), (BFLOAT16, FLOAT64),
]  # fmt: skip
runs_kernels = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(),
    reason="needs a GPU or the interpreter, in which test_triton.py runs this file",
)

# The branch that is not selected may divide by zero, which numpy reports in the interpreter.
pytestmark = [runs_kernels, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

# ---------------------------------------------------------------------------------------------
# Results.


@each_pair(PAIRS)
def test_sizes_around_the_tiles(dtypes):
    tile = elementwise.TILE_BYTES // min(dtype.itemsize for dtype in dtypes)
    rounds = launch.programs(DEVICE)
    for size in (1, tile - 1, tile, tile + 1, 3 * tile, (rounds + 1) * tile + 1):
        Case(BACKEND, (size,), dtypes, "huber", "mean").check()
    for group in (1, 16, tile, 2 * tile + 3):
        Case(BACKEND, (3, group), dtypes, "smooth_l1", "mean", 1, weighted=True).check()


def test_dense_tensors_are_not_copied(monkeypatch):
    def refuse(*_):
        raise AssertionError("a copy")

    x, y = (torch.randn(2, 3, 4, 5, device=DEVICE) for _ in range(2))
    x, y = (t.to(memory_format=torch.channels_last) for t in (x, y))
    monkeypatch.setattr(torch.Tensor, "copy_", refuse)
    monkeypatch.setattr(torch.Tensor, "contiguous", refuse)
    for reduction, keep_dims in (("mean", 0), ("mean", 1), ("none", 0)):
        call = ElementwiseArguments("mse", [], reduction, keep_dims)
        elementwise.elementwise_forward(x, y, None, None, call, FLOAT32, [True, True, False])
    call = ElementwiseArguments("mse", [], "mean", 2)
    with pytest.raises(AssertionError, match="a copy"):  # samples split over dimension 1
        elementwise.elementwise_forward(x, y, None, None, call, FLOAT32, ALL[:2])


@triton.jit
def offset_product(x, y, p0, p1):
    """x^2 y + p0 + p1: not a function of x - y, and not 0 where both are."""
    return x * x * y + p0 + p1, 2 * x * y, x * x, 2 * y, 2 * x, 0.0


def test_loss_of_two_variables_with_an_offset(monkeypatch):
    def formula(x, y, p0, p1):
        return x * x * y + 0.75

    monkeypatch.setitem(LOSSES, "offset_product", Loss(offset_product, 2, of_difference=False))
    monkeypatch.setitem(reference.FORMULAS, "offset_product", formula)  # the ops' list of losses
    monkeypatch.setattr(
        Case, "total", lambda case, x, y, w: reduced(formula(x, y, 0.5, 0.25), *case.call[2:])
    )
    for shape, keep_dims in (((700,), 0), ((3, 700), 1)):
        case = Case(
            BACKEND, shape, (FLOAT64, FLOAT64), "offset_product", "sum", keep_dims,
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


def test_the_same_bits_every_time():
    tiles = launch.programs(DEVICE) + 3
    case = Case(BACKEND, (tiles * elementwise.TILE_BYTES // 4 + 5,), (FLOAT32, FLOAT32), "log_cosh")
    first, second = (case.to_device().forward()[0] for _ in range(2))
    assert torch.equal(first, second)


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
    """The forward pass computes the gradient for the first backward. A second backward recomputes
    it."""
    x, y = (t.to(DEVICE) for t in pair(spec, 300))
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


def test_compile():
    """torch.compile traces through the choice of the backend, without a graph break."""
    x, y = (t.to(DEVICE) for t in torch.randn(2, 300))
    x.requires_grad_()
    called = []

    def keep(graph, _):
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    compiler = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    compiled = torch.compile(lossops.functional.huber_loss, fullgraph=True, backend=compiler)
    with lossops.backend("triton"):
        loss = compiled(x, y)
        (grad,) = torch.autograd.grad(loss, x)
    assert "lossops_triton.elementwise_forward.default" in called
    expected = torch.nn.functional.huber_loss(x, y)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, x)[0])
