"""The raw ops of the Triton backend, judged by plain formulas in float64, and what they compile to.

The numbers are checked on a GPU, or else by Triton's interpreter on the CPU. The interpreter is
chosen by an environment variable when Triton is imported, so ``test_under_the_interpreter`` runs
this file once more in a process of its own. The machine code is checked without a GPU.
"""

import itertools
import math
import os
import random
import re
import subprocess
import sys

import pytest
import torch

triton = pytest.importorskip("triton")

import lossops.triton  # noqa: E402
from lossops.triton import elementwise  # noqa: E402
from lossops.triton.elementwise_kernels import LOSSES  # noqa: E402

lossops.triton.load()
ops = torch.ops.lossops_triton

INTERPRETED = triton.knobs.runtime.interpret
DEVICE = torch.device("cpu") if INTERPRETED else torch.device("cuda", 0)
needs_kernels = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(),
    reason="needs a GPU or the interpreter; test_under_the_interpreter runs it",
)
needs_compiler = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")

FLOAT64, FLOAT32, BFLOAT16, FLOAT16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
DTYPES = [
    (FLOAT64, FLOAT64),
    (FLOAT32, FLOAT32),
    (BFLOAT16, BFLOAT16),
    (FLOAT16, FLOAT16),
    (BFLOAT16, FLOAT32),
]
REDUCTIONS = [("none", 0), ("mean", 0), ("sum", 0), ("mean", 1), ("sum", 2), ("sum", 3)]
PARAMS = {"smooth_l1": [0.75], "huber": [1.25], "quantile": [0.3]}
NO_GRADIENTS = [False, False, False]
ALL = [True, True, True]


def name_of(value):
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


# ---------------------------------------------------------------------------------------------
# The truth.


def formula(loss, d, params):
    z = d.abs()
    if loss == "mse":
        return d * d
    if loss == "l1" or (loss == "smooth_l1" and params[0] == 0):
        return z
    if loss == "smooth_l1":
        return torch.where(z >= params[0], z - params[0] / 2, d * d / (2 * params[0]))
    if loss == "huber":
        return torch.where(z >= params[0], params[0] * (z - params[0] / 2), d * d / 2)
    if loss == "quantile":
        return torch.where(d > 0, (1 - params[0]) * d, torch.where(d < 0, -params[0] * d, 0 * d))
    assert loss == "log_cosh"
    near = z < 1
    small, large = torch.where(near, d, 0.5), torch.where(near, 2.0, z)
    far = large - math.log(2) + (-2 * large).exp().log1p()
    return torch.where(near, (2 * (small / 2).sinh().square()).log1p(), far)


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
        self.loss, self.params = loss, options.get("params", PARAMS.get(loss, []))
        self.reduction, self.keep_dims = reduction, keep_dims
        draw = torch.Generator().manual_seed(rng.getrandbits(60))
        x_dtype, y_dtype = dtypes

        def tensor(dtype, shape=shape):
            return torch.randn(shape, generator=draw, dtype=FLOAT64).to(dtype)

        target = tensor(y_dtype)
        # Differences on both sides of every threshold, and exactly on it: 0, beta and delta.
        difference = tensor(x_dtype) * 2
        for tie in (0.0, *self.params):
            difference[torch.rand(shape, generator=draw) < 0.1] = tie
        self.operands = [(target.to(x_dtype) + difference).to(x_dtype), target, None]
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
        return [None if t is None else t.double().requires_grad_() for t in self.operands]

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
        value, gradients = self.truth()
        got, got_gradients = self.forward(ALL if scalar else NO_GRADIENTS)
        self.compare(got, value)
        for got, gradient in zip(got_gradients, gradients, strict=False):
            self.compare(got * self.grad_output, gradient)
        self.compare_gradients(self.backward(), gradients)

        along, gradients = self.second_truth()
        got, *got_gradients = self.double_backward()
        self.compare(got, along)
        self.compare_gradients(got_gradients, gradients)

    def compare_gradients(self, got, expected):
        present = [t for t in self.operands if t is not None]
        for tensor, gradient, operand in zip(got, expected, present, strict=True):
            like = torch.empty_like(operand)
            assert tensor.dtype == operand.dtype
            assert tensor.stride() == like.stride()
            self.compare(tensor, gradient)

    def compare(self, got, expected):
        """Holds an error to some units in the last place of the largest number involved."""
        assert got.shape == expected.shape
        compute = FLOAT64 if FLOAT64 in {t.dtype for t in self.operands[:2]} else FLOAT32
        unit = torch.finfo(got.dtype).eps + 16 * torch.finfo(compute).eps
        if got.dtype == FLOAT16:  # below 6e-5 its numbers lie equally dense
            expected = torch.where(expected.abs() < 1e-3, got.double(), expected)
        size = float(expected.abs().nan_to_num(0, 0, 0).amax()) if expected.numel() else 0.0
        # Sums of terms of either sign are small beside their terms.
        terms = max(size, 1e-3 * self.operands[0].numel()) if got.numel() == 1 else size
        torch.testing.assert_close(
            got.double(), expected, rtol=unit, atol=unit * terms, equal_nan=True
        )


@pytest.fixture
def rng():
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")  # pytest shows it on failure
    return random.Random(seed)


# ---------------------------------------------------------------------------------------------
# Numbers.


@needs_kernels
@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: "-".join(map(name_of, pair)))
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_and_reduction(loss, dtypes, rng):
    for reduction, keep_dims in REDUCTIONS:
        shape = (rng.randint(1, 4), rng.randint(1, 5), rng.randint(1, 60))
        Case(rng, shape, dtypes, loss, reduction, keep_dims, weighted=rng.random() < 0.5).check()


@needs_kernels
@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: "-".join(map(name_of, pair)))
def test_sizes_around_the_tiles(dtypes, rng):
    tile = elementwise.TILE_BYTES // min(dtype.itemsize for dtype in dtypes)
    rounds = elementwise._programs(DEVICE)
    for size in (1, 2, tile - 1, tile, tile + 1, 3 * tile, rounds * tile + 1, (rounds + 2) * tile):
        Case(rng, (size,), dtypes, "huber", "mean").check()
    for group in (1, 15, 16, tile, tile + 1, 2 * tile + 3):
        Case(rng, (3, group), dtypes, "smooth_l1", "mean", 1, weighted=True).check()


@needs_kernels
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


@needs_kernels
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


@needs_kernels
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


@needs_kernels
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_special_values(loss, dtype):
    d = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-4, -1e-4, 1e4, -1e4, 1e30, 1e-30, 60.0]
    x = torch.tensor(d, dtype=dtype, device=DEVICE)
    y = torch.zeros_like(x)
    params = PARAMS.get(loss, [])
    leaf = x.double().requires_grad_()
    expected = formula(loss, leaf, params)
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    if loss in ("l1", "quantile"):  # torch.where makes the first a NaN; both have sign(NaN) = 0
        gradient = gradient.nan_to_num(0.0)
    call = (loss, params, "none", 0)
    value, _ = ops.elementwise_forward(x, y, None, None, *call, dtype, NO_GRADIENTS)
    one = torch.ones((), device=DEVICE).expand_as(x)
    (grad,) = ops.elementwise_backward(one, x, y, None, None, *call, [True, False, False])
    tolerance = {"rtol": 10 * torch.finfo(dtype).eps, "atol": 1e-44, "equal_nan": True}
    torch.testing.assert_close(value, expected.to(dtype), **tolerance)
    torch.testing.assert_close(grad, gradient.to(dtype), **tolerance)
    # A NaN is not lost in a reduction, behind a mask or otherwise.
    total, _ = ops.elementwise_forward(
        x, y, None, None, loss, params, "sum", 0, dtype, NO_GRADIENTS
    )
    assert total.isnan()


@needs_kernels
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_log_cosh_keeps_its_digits(dtype):
    x = torch.logspace(-15, 5, 4001, dtype=FLOAT64, device=DEVICE).to(dtype)
    y, one = torch.zeros_like(x), torch.ones((), device=DEVICE).expand_as(x)
    call = ("log_cosh", [], "none", 0)
    value, _ = ops.elementwise_forward(x, y, None, None, *call, dtype, NO_GRADIENTS)
    (first,) = ops.elementwise_backward(one, x, y, None, None, *call, [True, False, False])
    (second,) = ops.elementwise_double_backward(
        one, x, y, None, None, torch.ones_like(x), None, None, *call, dtype,
        [False, True, False, False],
    )  # fmt: skip
    leaf = x.double().requires_grad_()
    expected = formula("log_cosh", leaf, [])
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    sech = 2 * torch.exp(-leaf.detach()) / (1 + torch.exp(-2 * leaf.detach()))
    units = torch.finfo(dtype).eps
    for got, truth, factor in ((value, expected, 16), (first, slope, 8), (second, sech**2, 16)):
        kept = truth.abs() > torch.finfo(dtype).tiny
        error = ((got.double() - truth) / truth)[kept].abs().amax()
        assert error < factor * units


@needs_kernels
def test_smooth_l1_with_beta_zero_is_l1(rng):
    case = Case(rng, (700,), (FLOAT32, FLOAT32), "smooth_l1", params=[0.0], weighted=True)
    case.check()


@needs_kernels
@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: "-".join(map(name_of, pair)))
def test_in_place(dtypes, rng):
    for mask in ([True, True, True], [True, False, False], [False, True, True]):
        case = Case(rng, (3, 700), dtypes, "huber", weighted=True).to_device()
        _, expected = case.truth()
        expected = [g for g, yes in zip(expected, mask, strict=True) if yes]

        _, grads = case.forward(mask)
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


@needs_kernels
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
    before = scattered.clone()
    ops.elementwise_rescale_([scattered], torch.tensor(2.0, device=DEVICE))
    torch.testing.assert_close(scattered, 2 * before, rtol=0, atol=0)
    case.grad_output = torch.ones((), device=DEVICE)
    scattered.fill_(7.0)
    case.backward_([grads[0], grads[1], scattered])
    assert (scattered == 7).all()


@needs_kernels
def test_missing_tangents_and_outputs(rng):
    for present in itertools.product([False, True], repeat=3):
        case = Case(rng, (4, 50), (FLOAT32, FLOAT32), "huber", "sum", 1, weighted=True).to_device()
        case.tangents = [t if yes else None for t, yes in zip(case.tangents, present, strict=True)]
        along, gradients = case.second_truth()
        got, *got_gradients = case.double_backward()
        case.compare(got, along)
        case.compare_gradients(got_gradients, gradients)
    (along_alone,) = ops.elementwise_double_backward(
        None, *case.operands, None, *case.tangents, *case.call, FLOAT32, [True, *NO_GRADIENTS]
    )
    assert torch.equal(along_alone, got)


@needs_kernels
def test_no_elements():
    for shape, keep_dims, kept in (((0,), 0, ()), ((3, 0), 1, (3,)), ((0, 3), 1, (0,))):
        x = torch.empty(shape, device=DEVICE)
        for reduction, expected in (("mean", math.nan), ("sum", 0.0)):
            call = ("mse", [], reduction, keep_dims)
            loss, (grad,) = ops.elementwise_forward(
                x, x, None, None, *call, FLOAT32, [True, False, False]
            )
            full = torch.full(kept, expected, device=DEVICE)
            torch.testing.assert_close(loss, full, equal_nan=True)
            assert grad.shape == shape
        call = ("mse", [], "none", keep_dims)
        loss, _ = ops.elementwise_forward(x, x, None, None, *call, FLOAT32, NO_GRADIENTS)
        assert loss.shape == shape
        ops.elementwise_rescale_([loss], torch.ones((), device=DEVICE))
    two = torch.tensor(2.0, device=DEVICE)
    loss, _ = ops.elementwise_forward(x, x, None, two, "mse", [], "mean", 0, FLOAT32, NO_GRADIENTS)
    assert loss.item() == 0


@needs_kernels
def test_the_same_bits_every_time(rng):
    tiles = elementwise._programs(DEVICE) + 3
    case = Case(rng, (tiles * elementwise.TILE_BYTES // 4 + 5,), (FLOAT32, FLOAT32), "log_cosh")
    first, second = (case.to_device().forward()[0] for _ in range(2))
    assert torch.equal(first, second)


@needs_kernels
def test_unknown_loss():
    x = torch.ones(3, device=DEVICE)
    with pytest.raises(ValueError, match="loss must be one of mse, .* but was 'mes'"):
        ops.elementwise_forward(x, x, None, None, "mes", [], "mean", 0, FLOAT32, NO_GRADIENTS)


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_under_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"\d+ passed", run.stdout)


# ---------------------------------------------------------------------------------------------
# Machine code.


class CompileOnly:
    """A kernel that is compiled for the arguments of a launch, and not launched."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.compiled = []

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.compiled.append(
            self.kernel.warmup(*arguments, grid=grid, **options)
        )


class Hopper:
    """A driver without a device, as far as compiling asks for one."""

    def get_current_target(self):
        return triton.backends.compiler.GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return -1  # kernels are cached by device: none that exists

    def get_current_stream(self, device):
        return 0


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """The ops' kernels as CompileOnly, to be called with CPU tensors."""
    if "nvidia" not in triton.backends.backends:
        pytest.skip("Triton is built without the NVIDIA backend")
    monkeypatch.setattr(triton.runtime.driver, "_active", Hopper())
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = CompileOnly(elementwise.elementwise_kernel)
    monkeypatch.setattr(elementwise, "elementwise_kernel", kernel)
    monkeypatch.setattr(elementwise, "rescale_kernel", CompileOnly(elementwise.rescale_kernel))
    return kernel


def accesses(compiled):
    """The numbers of 16-byte loads and stores, and of all loads from tensors."""
    ptx = compiled.asm["ptx"]
    loads, stores = (
        len(re.findall(rf"{verb}\.global\.(?:v4\.b32|v2\.b64)", ptx)) for verb in ("ld", "st")
    )
    return loads, stores


def spilled(compiled, tmp_path):
    """Bytes of stack and local memory, which a kernel uses when it runs out of registers."""
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"(?:STACK|LOCAL):(\d+)", usage)
    assert len(found) == 2, usage
    return sum(map(int, found))


# Not a multiple of anything: the last tile is masked and cannot be vectorized, all others must be.
SIZE = 1_000_003


@needs_compiler
@pytest.mark.parametrize(
    "dtypes", [DTYPES[i] for i in (0, 1, 2, 4)], ids=lambda pair: "-".join(map(name_of, pair))
)
@pytest.mark.parametrize("loss", LOSSES)
def test_forward_is_vectorized_and_keeps_to_registers(loss, dtypes, compiler, tmp_path):
    x, y = (torch.empty(SIZE, dtype=dtype) for dtype in dtypes)
    call = (loss, PARAMS.get(loss, []), "mean", 0)
    elementwise.elementwise_forward(x, y, None, None, *call, x.dtype, [True, False, False])
    (compiled,) = compiler.compiled
    narrowest = min(dtype.itemsize for dtype in dtypes)
    loads, stores = accesses(compiled)
    assert loads == sum(dtype.itemsize for dtype in dtypes) // narrowest
    assert stores == x.dtype.itemsize // narrowest
    assert spilled(compiled, tmp_path) == 0


@needs_compiler
@pytest.mark.parametrize(
    "dtypes", [DTYPES[i] for i in (0, 1, 2, 4)], ids=lambda pair: "-".join(map(name_of, pair))
)
def test_other_kernels_are_vectorized_and_keep_to_registers(dtypes, compiler, tmp_path):
    # log_cosh is the one that needs most registers.
    x, y = (torch.empty(SIZE, dtype=dtype) for dtype in dtypes)
    one, call = torch.ones(()), ("log_cosh", [], "mean", 0)
    elementwise.elementwise_backward_([x.clone()], one, x, y, x, None, *call, [True, False, False])
    elementwise.elementwise_double_backward(
        one, x, y, x, None, x, y, x, *call, x.dtype, [True, *ALL]
    )
    elementwise.elementwise_backward(
        torch.ones_like(x), x, y, x, None, "log_cosh", [], "none", 0, ALL
    )
    rows = (x[: 1000 * 999].view(1000, 999), y[: 1000 * 999].view(1000, 999))
    elementwise.elementwise_forward(
        *rows, None, None, "log_cosh", [], "mean", 1, x.dtype, [False] * 3
    )
    elementwise.elementwise_rescale_([x.clone()], one)
    rescale = elementwise.rescale_kernel.compiled
    assert accesses(rescale[0]) == (1, 1)
    narrowest = min(dtype.itemsize for dtype in dtypes)
    both = sum(dtype.itemsize for dtype in dtypes) // narrowest
    once = x.dtype.itemsize // narrowest
    in_place, second, none, _ = compiler.compiled
    assert accesses(in_place) == (both + once, once)
    assert accesses(second) == (2 * (both + once), both + once)
    assert accesses(none) == (both + 2 * once, both + once)
    for compiled in (*compiler.compiled, *rescale):
        assert spilled(compiled, tmp_path) == 0
