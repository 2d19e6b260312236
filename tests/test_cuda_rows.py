"""The losses over rows on a GPU, tested like the elementwise ones in test_cuda.py and related
files: graphs, streams, devices, identical bits every time, no syncs, and the cost of a call. Tests
that need no GPU also run on the CPU."""

from __future__ import annotations

import pytest
import torch
from conftest import each_dtype
from test_cuda import LONG, captured, needs_two_gpus, same
from test_cuda_cost import WORKSPACE, _Placement, launched, no_synchronisation

import lossops
from lossops import functional
from lossops.core import backends
from lossops.specs.softmax import ROW_SPECS, row_spec

each_row = pytest.mark.parametrize("spec", ROW_SPECS, ids=lambda row: row.name)
# Row lengths that fit into a warp, that fit into a block, and that are read twice.
each_length = pytest.mark.parametrize("classes", [37, 5003, 300_001])


def numbers(spec, device, rows, classes, dtype=torch.float32, seed=0):
    """Input, target, options and the call, for the simplest sample."""
    sample = spec.samples[0]
    x, y, options = sample.tensors((rows, classes), dtype, seed)
    return x.to(device), y.to(device), options, spec.call(sample)


def step(case, reduction="mean", grad_output=None):
    x, y, options, loss = case
    x = x.detach().requires_grad_()
    value = loss(x, y, reduction, **options)
    grad_output = torch.ones_like(value) if grad_output is None else grad_output
    (grad,) = torch.autograd.grad(value, x, grad_output)
    return value.detach(), grad


@each_row
@each_length
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_captured_step_replays(spec, classes, reduction, gpu):
    case = numbers(spec, gpu, 9, classes)
    graph, outputs = captured(lambda: step(case, reduction))
    for turn in range(3):
        for tensor, fresh in zip(case[:2], numbers(spec, gpu, 9, classes, seed=turn), strict=False):
            tensor.copy_(fresh)
        graph.replay()
        assert same(outputs, step(case, reduction)), turn


@each_row
def test_work_is_enqueued_on_the_current_stream(spec, gpu):
    case = numbers(spec, gpu, 300, 1001)
    expected = step(case)
    x, side = torch.zeros_like(case[0]), torch.cuda.Stream()
    for cycles in (1, LONG // 20):  # the first call loads the kernels
        x.zero_()
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(cycles)
            x.copy_(case[0])
            found = step((x, *case[1:]))
        side.synchronize()
        assert same(found, expected)


@needs_two_gpus
@each_row
def test_tensors_of_another_gpu_than_the_current(spec, gpu):
    other = torch.device("cuda", (gpu.index + 1) % torch.cuda.device_count())
    case = numbers(spec, other, 40, 1001)
    found = step(case)
    assert torch.cuda.current_device() == gpu.index
    assert {tensor.device for tensor in found} == {other}
    with torch.cuda.device(other):
        assert same(found, step(case))


@each_row
@each_dtype
@pytest.mark.parametrize("shape", [(4000, 10), (300, 1001), (5, 40_001)], ids=str)
def test_the_same_bits_twenty_times(spec, dtype, shape, anywhere):
    case = numbers(spec, anywhere, *shape, dtype=dtype)
    first = step(case)
    for _ in range(19):
        assert same(step(case), first)


def exercise(spec, device):
    for dtype in (torch.float32, torch.bfloat16):
        for classes in (10, 1500):
            case = numbers(spec, device, 6, classes, dtype)
            for reduction in ("none", "mean", "sum"):
                value, _ = step(case, reduction)
                step(case, reduction, torch.randn_like(value))
            with torch.no_grad():
                case[3](case[0], case[1], "mean", **case[2])


@each_row
def test_the_host_never_waits(spec, gpu):
    exercise(spec, gpu)  # loads and compiles kernels
    event = torch.cuda.Event()
    cases = [numbers(spec, gpu, 6, classes) for classes in (10, 1500)]
    torch.cuda.synchronize()
    with no_synchronisation():
        torch.cuda._sleep(LONG)
        for case in cases:
            for reduction in ("none", "mean", "sum"):
                step(case, reduction)
        event.record()
        assert not event.query(), "the host waited in a way that torch does not know of"


@each_row
@pytest.mark.parametrize("backend", backends.NAMES)
def test_all_tensors_are_made_where_the_input_is(spec, backend):
    """The meta device stands in for a GPU: it is not the CPU."""
    if backend not in backends.backends_for("meta"):
        pytest.skip(f"there is no {backend} backend here")
    device = torch.device("meta")
    case = numbers(spec, device, 6, 10)
    with lossops.backend(backend), _Placement(device):
        for reduction in ("none", "mean", "sum"):
            step(case, reduction)


@pytest.mark.parametrize("name", ["cross_entropy", "kl_divergence", "js_divergence"])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_step_allocates_one_gradient(name, inplace, gpu):
    if inplace and name != "cross_entropy":
        pytest.skip("cross_entropy alone overwrites its logits")
    spec, rows, classes = row_spec(name), 512, 8192
    x, y, options, loss = numbers(spec, gpu, rows, classes)
    options = options | ({"inplace": True} if inplace else {})
    hidden = x.requires_grad_() * 1
    size = hidden.numel() * 4

    def train():
        torch.autograd.grad(loss(hidden, y, "mean", **options), hidden, retain_graph=True)

    train()
    hidden = x * 1
    before = torch.cuda.memory_stats(gpu)["requested_bytes.all.current"]
    torch.cuda.reset_peak_memory_stats(gpu)
    train()
    peak = torch.cuda.memory_stats(gpu)["requested_bytes.all.peak"] - before
    assert peak <= (0 if inplace else size) + WORKSPACE + 16 * rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_is_one_kernel_after_the_count(dtype, gpu):
    """A mean counts the labels. Apart from that, only one kernel is launched for a gradient."""
    case = numbers(row_spec("cross_entropy"), gpu, 4096, 4096, dtype=dtype)
    for reduction, most in (("sum", 4), ("mean", 5)):
        step(case, reduction)
        names = launched(lambda r=reduction: step(case, r))
        ours = [n for n in names if "rows_" in n or "label_loss" in n]
        assert len(ours) == 1, names
        assert len(names) <= most + 2, names  # the count, a memset, and ones for grad_output


def test_more_numbers_than_an_int_counts(anywhere):
    """The last rows begin beyond 2^31 elements."""
    classes = 32_768
    rows = 65_600 if anywhere.type == "cuda" else 9
    if anywhere.type == "cuda":
        torch.cuda.empty_cache()
        needed = 3 * 2 * rows * classes
        if torch.cuda.mem_get_info(anywhere)[0] < needed:
            pytest.skip(f"needs {needed / 2**30:.0f} GiB of free memory on the GPU")
    x = torch.empty(rows, classes, dtype=torch.bfloat16, device=anywhere)
    for row in range(0, rows, 1024):
        x[row : row + 1024].normal_()
    y = torch.randint(classes, (rows,), device=anywhere)
    x.requires_grad_()
    value = functional.cross_entropy(x, y, reduction="none")
    (grad,) = torch.autograd.grad(value, x, torch.ones_like(value))
    for part in (slice(0, 4), slice(rows - 4, rows)):
        leaf = x.detach()[part].double().requires_grad_()
        right = torch.nn.functional.cross_entropy(leaf, y[part], reduction="none")
        (slope,) = torch.autograd.grad(right.sum(), leaf)
        torch.testing.assert_close(value.detach()[part].double(), right.detach(), rtol=1e-2, atol=0)
        torch.testing.assert_close(grad[part].double(), slope, rtol=1e-2, atol=1e-8)
