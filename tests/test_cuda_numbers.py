"""Sizes, dtypes and repetitions that matter for a GPU's engines, and are cheap on a CPU."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import DTYPES, each_dtype, each_reduction, each_spec
from test_cuda import normal, numbers, same, step
from test_value import truth, ulps

from lossops.specs import elementwise as specs

BLOCKS, ELEMENTS_PER_BLOCK = 8, 2048  # per multiprocessor: the CUDA engine's, close to Triton's


def judge(spec, x, y, **options):
    """Compares a loss, and its gradients with respect to both tensors for a random grad_output,
    with float64."""
    x, y = (t.detach().requires_grad_() for t in (x, y))
    exact = [t.detach().double().requires_grad_() for t in (x, y)]
    loss = spec.function(x, y, **spec.defaults, **options)
    true = truth(spec, spec.defaults, *exact, options["reduction"])
    assert loss.shape == true.shape
    assert ulps(loss.detach(), true.detach()) <= 6
    grad_output = torch.randn_like(loss)
    found = torch.autograd.grad(loss, (x, y), grad_output)
    expected = torch.autograd.grad(true, exact, grad_output.double())
    for tensor, grad, right in zip((x, y), found, expected, strict=True):
        assert grad.dtype == tensor.dtype
        # Six: the error of tanh plus three roundings, over as many elements as here. In float64 the
        # expected values are themselves rounded.
        assert ulps(grad, right) <= (8 if grad.dtype == torch.float64 else 6)


@each_spec
@each_dtype
@each_reduction
def test_the_same_bits_twenty_times(spec, dtype, reduction, anywhere):
    """Blocks finish in a different order every time."""
    rows = 7 if anywhere.type == "cuda" else 3
    x, y = numbers(spec, anywhere, rows, 100_003 * rows - 2, dtype=dtype)
    weight = torch.rand_like(x) + 0.1

    def train():
        plain = step(spec, x, y, reduction=reduction)
        return *plain, *step(spec, x, y, reduction=reduction, weight=weight)

    first = train()
    for _ in range(19):
        assert same(train(), first)


@pytest.mark.parametrize("loss", ["huber_loss", "log_cosh_loss"])
@each_dtype
def test_groups_of_every_size(loss, dtype, anywhere):
    """One value per row, for rows that end anywhere in a vector, a warp or a block."""
    spec = specs.spec(loss)
    for length in (1, 2, 7, 31, 33, 255, 257, 1023, 1024, 1025, 2047, 2049, 16385):
        for rows in (2, 3, 130) if length < 3000 else (3,):
            x, y = (normal(anywhere, rows, length, dtype=dtype) for _ in range(2))
            judge(spec, x, y, reduction="sample")


@each_dtype
def test_many_small_groups(dtype, anywhere):
    rows = 300_001 if anywhere.type == "cuda" else 3001
    x, y = (normal(anywhere, rows, 3, dtype=dtype) for _ in range(2))
    judge(specs.spec("mse_loss"), x, y, reduction="sample")


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("misaligned", [False, True], ids=["aligned", "misaligned"])
def test_sizes_around_the_grid(dtype, misaligned, anywhere):
    """Sizes at which every block has one tile, one block has two, or nothing is left over."""
    grid = 3 * ELEMENTS_PER_BLOCK
    if anywhere.type == "cuda":
        processors = torch.cuda.get_device_properties(anywhere).multi_processor_count
        grid = processors * BLOCKS * ELEMENTS_PER_BLOCK
    for size in (grid - 1, grid, grid + 1, 2 * grid, 3 * grid + 5):
        x, y = (normal(anywhere, size + 1, dtype=dtype) for _ in range(2))
        x, y = (t[1:] if misaligned else t[:-1] for t in (x, y))
        for reduction in ("sum", "none"):
            judge(specs.spec("huber_loss"), x, y, reduction=reduction)


@pytest.mark.parametrize("loss", ["huber_loss", "log_cosh_loss"])
@pytest.mark.parametrize("shape", [(), (37, 41), (5003,)], ids=str)
def test_gradients_of_mixed_dtypes(loss, shape, anywhere):
    for first, second in itertools.permutations(DTYPES, 2):
        if not shape and torch.float64 in (first, second):
            continue  # its expected value has as much rounding error as the value
        x, y = normal(anywhere, *shape, dtype=first), normal(anywhere, *shape, dtype=second)
        judge(specs.spec(loss), x, y, reduction="mean")


# ---------------------------------------------------------------------------------------------
# More elements than an int can count.


def pieces(n, size=1 << 24):
    return [slice(at, min(at + size, n)) for at in range(0, n, size)]


def filled(device, n, offset):
    """n random numbers, `offset` elements away from a vector boundary."""
    tensor = torch.empty(n + offset, dtype=torch.bfloat16, device=device)[offset:]
    for piece in pieces(n):
        tensor[piece] = normal(device, piece.stop - piece.start)
    return tensor


def exactly(spec, x, y, grad_output=None):
    """The total loss so far and, for each piece, the values and gradients, in float64."""
    total = 0.0
    for piece in pieces(len(x)):
        exact = x[piece].detach().double().requires_grad_()
        each = truth(spec, spec.defaults, exact, y[piece].detach(), "none")
        upstream = torch.ones_like(each) if grad_output is None else grad_output[piece].double()
        (grad,) = torch.autograd.grad(each, exact, upstream)
        total += each.sum().item()
        yield piece, each.detach(), grad, total


@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "misaligned"])
def test_more_elements_than_an_int_counts(offset, anywhere):
    n = 2**18 + 12345
    if anywhere.type == "cuda":
        n += 2**31 - 2**18
        torch.cuda.empty_cache()
        needed = 4 * 2 * n + 12 * 8 * (1 << 24)  # tensors of bfloat16, and float64 expected values
        if torch.cuda.mem_get_info(anywhere)[0] < needed:
            pytest.skip(f"needs {needed / 2**30:.0f} GiB of free memory on the GPU")
    spec = specs.spec("huber_loss")
    x, y = (filled(anywhere, n, offset) for _ in range(2))
    x.requires_grad_()

    with torch.autocast(anywhere.type, torch.bfloat16):  # a float32 loss of bfloat16 tensors
        loss = spec.function(x, y, reduction="sum")
    (grad,) = torch.autograd.grad(loss, x)
    for piece, _, right, total in exactly(spec, x, y):  # noqa: B007, the last total is wanted
        assert ulps(grad[piece], right) <= 1, piece
    assert ulps(loss.detach(), torch.tensor(total, dtype=torch.float64, device=anywhere)) <= 2
    del grad

    value = spec.function(x, y, reduction="none")
    (grad,) = torch.autograd.grad(value, x, value.detach())
    for piece, each, right, _ in exactly(spec, x, y, value.detach()):
        assert ulps(value[piece].detach(), each) <= 1, piece
        assert ulps(grad[piece], right) <= 1, piece
    del value, grad

    rows = [t.detach()[: n // 3 * 3].view(3, -1) for t in (x, y)]  # the last begins before 2^31
    with torch.autocast(anywhere.type, torch.bfloat16):
        found = spec.function(*rows, reduction="sample")
    means = []
    for row in zip(*rows, strict=True):
        *_, (_, _, _, total) = exactly(spec, *row)
        means.append(total / (n // 3))
    assert ulps(found, torch.tensor(means, dtype=torch.float64, device=anywhere)) <= 2
