"""CUDA graphs, streams, several devices, and interaction with the rest of torch, on a GPU. The cost
of calls is tested in test_cuda_cost.py, the results in test_cuda_numbers.py, and losses over rows
in test_cuda_rows.py. All other tests run on a GPU under LOSSOPS_TEST_DEVICE=cuda."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from conftest import (
    each_reduction,
    each_spec,
    expect_ops,
    make,
    ran,
)
from test_gradient import sizes_of_terms
from test_value import size_of_terms, truth, ulps

import lossops

REDUCTIONS = ("none", "mean", "sum", "sample")
LONG = 2_000_000_000  # cycles: about a second, far longer than a test's own work
# The files that LOSSOPS_TEST_DEVICE moves to a GPU, and those that always use one.
MOVED = ("backends", "errors", "gradient", "layouts", "transforms", "value")
MOVED += ("cuda", "cuda_cost", "cuda_numbers", "cuda_rows")
MOVED += ("softmax_errors", "softmax_gradient", "softmax_transforms", "softmax_value")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
needs_two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")


def normal(device, *shape, dtype=torch.float32):
    return torch.randn(shape, device=device).to(dtype)


def numbers(spec, device, *shape, dtype=torch.float32):
    """Random inputs and targets from the domain of the loss."""
    x, y = spec.inner(normal(device, *shape), normal(device, *shape))
    return x.to(dtype), y.to(dtype)


def step(spec, x, y, grad_output=None, **options):
    """A training step on the current values of the tensors: the loss and its gradient."""
    x = x.detach().requires_grad_()  # a new leaf, not part of an earlier step
    loss = spec.function(x, y, **spec.defaults, **options)
    if grad_output is None:
        grad_output = torch.ones_like(loss)
    (grad,) = torch.autograd.grad(loss, x, grad_output)
    return loss.detach(), grad


def same(found, expected) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# ---------------------------------------------------------------------------------------------
# CUDA graphs.


def captured(function):
    """A graph of the function, and the tensors that a replay writes."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # loads kernels, and compiles Triton's, before the capture
            function()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        outputs = function()
    return graph, outputs


@each_spec
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)  # two ways to scale
@each_reduction
def test_a_captured_step_replays(spec, dtype, reduction, gpu):
    shape = (67, 301)
    loss_shape = {"none": shape, "sample": shape[:1]}.get(reduction, ())
    x, y = numbers(spec, gpu, *shape, dtype=dtype)
    grad_output = normal(gpu, *loss_shape, dtype=dtype)

    def train():
        return step(spec, x, y, grad_output, reduction=reduction)

    graph, outputs = captured(train)
    for turn in range(4):
        for tensor, fresh in zip((x, y), numbers(spec, gpu, *shape), strict=True):
            tensor.copy_(fresh)
        grad_output.copy_(normal(gpu, *loss_shape))
        if turn % 2:  # a fused gradient then stays unchanged; the device decides this
            grad_output.fill_(1)
        graph.replay()
        assert same(outputs, train()), turn


@each_spec
def test_a_captured_step_of_many_blocks(spec, gpu):
    """Partial sums and their tickets are reset at every replay, with and without a weight."""
    x, y = numbers(spec, gpu, 3_000_017)
    weight = torch.rand_like(x) + 0.1

    def train():
        return *step(spec, x, y), *step(spec, x, y, weight=weight)

    graph, outputs = captured(train)
    for turn in range(3):
        for tensor, fresh in zip((x, y), numbers(spec, gpu, *x.shape), strict=True):
            tensor.copy_(fresh)
        weight.uniform_(0.1, 1.1)
        graph.replay()
        assert same(outputs, train()), turn


# ---------------------------------------------------------------------------------------------
# Streams and devices.


@each_spec
@each_reduction
def test_work_is_enqueued_on_the_current_stream(spec, reduction, gpu):
    """The input arrives late on a stream, so a computation on another stream would see zeros."""
    values, y = numbers(spec, gpu, 300, 1001)
    expected = step(spec, values, y, reduction=reduction)
    x, side = torch.empty_like(values), torch.cuda.Stream()
    for cycles in (1, LONG // 20):  # the first call loads the kernels
        x.zero_()
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(cycles)
            x.copy_(values)
            found = step(spec, x, y, reduction=reduction)
        side.synchronize()
        assert same(found, expected)


@each_spec
def test_nothing_goes_to_the_default_stream(spec, gpu):
    """Results arrive on another stream while the default stream is blocked."""
    pairs = [numbers(spec, gpu, 300, 1001) for _ in range(2)]
    expected = [step(spec, *pair) for pair in pairs]
    side, asleep = torch.cuda.Stream(), torch.cuda.Event()

    def on_the_side(i):
        with torch.cuda.stream(side):
            return same(step(spec, *pairs[i]), expected[i])  # reading waits for this stream only

    torch.cuda.synchronize()
    assert on_the_side(0)  # loads the kernels; uses different numbers from the second call
    with torch.cuda.stream(torch.cuda.default_stream()):
        torch.cuda._sleep(LONG)
        asleep.record()
    right = on_the_side(1)
    assert not asleep.query(), "the default stream was waited for"
    assert right


@needs_two_gpus
@each_spec
@each_reduction
def test_tensors_of_another_gpu_than_the_current(spec, reduction, gpu):
    other = torch.device("cuda", (gpu.index + 1) % torch.cuda.device_count())
    x, y = numbers(spec, other, 40, 1001)
    found = step(spec, x, y, reduction=reduction)
    assert torch.cuda.current_device() == gpu.index
    assert {tensor.device for tensor in found} == {other}
    with torch.cuda.device(other):
        assert same(found, step(spec, x, y, reduction=reduction))
    assert ulps(found[0], truth(spec, spec.defaults, x, y, reduction)) <= 8


# ---------------------------------------------------------------------------------------------
# Interaction with the rest of torch.


@each_spec
def test_autocast(spec, anywhere):
    """The result is float32, without an intermediate rounding to bfloat16."""
    x, y = numbers(spec, anywhere, 33, 129, dtype=torch.bfloat16)
    for reduction in REDUCTIONS:
        leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
        with torch.autocast(anywhere.type, torch.bfloat16):
            loss = spec.function(leaf, y, reduction=reduction, **spec.defaults)
        true = truth(spec, spec.defaults, exact, y, reduction)
        assert loss.dtype == torch.float32
        size = size_of_terms(spec, spec.defaults, x, y, reduction)
        assert ulps(loss.detach(), true.detach(), size=size) <= 6 + spec.slack(spec.defaults)
        grad_output = torch.randn_like(loss)
        (grad,) = torch.autograd.grad(loss, leaf, grad_output)
        leaves = exact, y.double().requires_grad_()
        size, _ = sizes_of_terms(spec, spec.defaults, leaves, grad_output, reduction)
        (true_grad,) = torch.autograd.grad(true, exact, grad_output.double())
        assert grad.dtype == torch.bfloat16
        assert (
            ulps(grad, true_grad, size=size) <= 2
        )  # rounded once by the forward pass, and once when scaled


@each_spec
def test_compile(spec, gpu):
    def total(x, y, weight):
        return (
            spec.function(x * 2, y, **spec.defaults)
            + spec.function(x, y, reduction="sum", weight=weight, **spec.defaults)
            + spec.function(x, y, reduction="none", **spec.defaults).square().mean()
        )

    torch._dynamo.reset()
    x, y, weight = (torch.rand(40, 50, device=gpu) for _ in range(3))
    results = []
    for function in (torch.compile(total, fullgraph=True), total):
        leaf = x.clone().requires_grad_()
        loss = function(leaf, y, weight)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(*results)


@each_spec
def test_tensors_of_two_devices(spec, anywhere):
    """Whichever tensor is on the other device, the message names both devices."""
    elsewhere = torch.device("cpu" if anywhere.type == "cuda" else "meta")
    here, there = torch.ones(4, device=anywhere), torch.empty(4, device=elsewhere)
    for name, args in (
        ("target", (here, there)),
        ("target", (there, here)),
        ("weight", (here, here, there)),
    ):
        input, target, *weight = args
        stray = args[-1] if name == "weight" else target
        message = f"found {name} on {stray.device} and input on {input.device}"
        with pytest.raises(RuntimeError, match=message):
            spec.function(input, target, weight=weight[0] if weight else None)
    assert spec.function(here, here, **spec.defaults).device == anywhere


@each_spec
def test_the_reference_runs_there_too(spec, anywhere):
    x, y = numbers(spec, anywhere, 9, 31)
    for reduction in REDUCTIONS:
        found = step(spec, x, y, reduction=reduction)
        with lossops.backend("reference"), expect_ops() as names:
            plain = step(spec, x, y, reduction=reduction)
        assert not ran(names, "lossops")
        torch.testing.assert_close(found, plain)


@needs_gpu
def test_info_names_the_gpu():
    info = lossops.info()
    assert len(info["gpus"]) == torch.cuda.device_count()
    assert torch.cuda.get_device_name(0) in info["gpus"]
    found = info["backends"]["cuda"]
    assert ("native" in found) == (info["native"].get("cuda") is not None)
    assert ("triton" in found) == (info["triton"] is not None)
    assert found[-1] == "reference"


def test_tests_make_tensors_on_the_device_under_test():
    """A bare torch.randn(…) in the suite would test the CPU, whatever LOSSOPS_TEST_DEVICE says."""
    factories = {*vars(make), "as_tensor", "eye", "from_numpy", "linspace", "logspace", "randint"}
    for name in ("conftest", *(f"test_{name}" for name in MOVED)):
        path = Path(__file__).with_name(f"{name}.py")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("torch."):
                placed = any(keyword.arg == "device" for keyword in node.keywords)
                factory = ast.unparse(node.func).removeprefix("torch.") in factories
                assert placed or not factory, f"{path.name}, line {node.lineno}"
