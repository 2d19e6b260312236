"""The cost of a call on a GPU: no sync, no copy, memory for one gradient, one kernel."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from conftest import each_spec
from test_cuda import LONG, REDUCTIONS, numbers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lossops
from lossops.core import backends

WORKSPACE = 1 << 16  # bytes allowed for the partial sums of a reduction


def exercise(spec, device):
    """Calls of all kinds: reductions, weights, dtypes, repeated backward, second order."""
    x, y, w = (torch.rand(6, 50, device=device) for _ in range(3))
    x.requires_grad_()
    for reduction in REDUCTIONS:
        for weight in (None, w, w.clone().requires_grad_()):
            loss = spec.function(x, y, reduction=reduction, weight=weight, **spec.defaults)
            grad_output = torch.randn_like(loss).requires_grad_()
            torch.autograd.grad(loss, x, grad_output, retain_graph=True)
            (grad,) = torch.autograd.grad(loss, x, grad_output, create_graph=True)
            torch.autograd.grad(grad.sum(), (x, grad_output), allow_unused=True)
    pairs = [(x.half(), y.half()), (x.bfloat16(), y), (x, y.double())]
    for first, second in pairs + ([] if spec.other_shapes == "raises" else [(x[:, :1], y)]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the broadcast is intended
            torch.autograd.grad(spec.function(first, second, **spec.defaults), x)
    with torch.no_grad():
        spec.function(x.t(), y.t(), **spec.defaults)


@contextlib.contextmanager
def no_synchronisation():
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@each_spec
def test_the_host_never_waits(spec, gpu):
    exercise(spec, gpu)  # loads and compiles kernels
    one, event = torch.ones((), device=gpu), torch.cuda.Event()
    torch.cuda.synchronize()
    with no_synchronisation():
        with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
            one.item()  # torch reports this sync
        torch.cuda._sleep(LONG)
        exercise(spec, gpu)
        event.record()
        assert not event.query(), "the host waited in a way that torch does not know of"


class _Placement(TorchDispatchMode):
    """Rejects tensors on any other device."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, out)):
            if isinstance(tensor, torch.Tensor):
                assert tensor.device == self.device, f"{func}: a tensor on {tensor.device}"
        return out


@each_spec
@pytest.mark.parametrize("backend", backends.NAMES)
def test_all_tensors_are_made_where_the_input_is(spec, backend):
    """The meta device stands in for a GPU: it is not the CPU."""
    if backend not in backends.backends_for("meta"):
        pytest.skip(f"there is no {backend} backend here")
    with lossops.backend(backend), _Placement(torch.device("meta")):
        exercise(spec, torch.device("meta"))


@each_spec
def test_no_tensor_leaves_the_gpu(spec, gpu):
    with _Placement(gpu):
        exercise(spec, gpu)


@each_spec
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_step_allocates_one_gradient(spec, reduction, scale, gpu):
    n = 1 << 22
    x, y = numbers(spec, gpu, n)
    x.requires_grad_()

    def evaluate():
        with torch.no_grad():
            spec.function(x, y, reduction=reduction, **spec.defaults)

    def train():
        (spec.function(x, y, reduction=reduction, **spec.defaults) * scale).backward()
        x.grad = None

    for function, expected in ((evaluate, 0), (train, 4 * n)):
        function()
        before = torch.cuda.memory_stats(gpu)["requested_bytes.all.current"]
        torch.cuda.reset_peak_memory_stats(gpu)
        function()
        peak = torch.cuda.memory_stats(gpu)["requested_bytes.all.peak"] - before
        assert expected <= peak <= expected + WORKSPACE


def launched(function) -> list[str]:
    """The names of the GPU operations that a function launches: kernels, copies and memsets."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        function()
        torch.cuda.synchronize()
    events = record.profiler.kineto_results.events()
    names = [event.name() for event in events if event.device_type() == DeviceType.CUDA]
    return [name for name in names if not name.endswith("Sync")]  # synchronisation is not counted


KERNELS = {"native": ("dense", "rescale"), "triton": ("elementwise_kernel", "rescale_kernel")}


@each_spec
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_is_one_kernel_and_a_glance_at_grad_output(spec, dtype, gpu):
    x, y = numbers(spec, gpu, 1 << 20, dtype=dtype)
    x.requires_grad_()
    losses = []

    def forward():
        losses.append(spec.function(x, y, **spec.defaults))

    def backward():
        losses.pop().backward()

    forward()
    backward()
    launched(torch.cuda.synchronize)  # the first profile may start too late to record anything
    if not launched(lambda: torch.ones(8, device=gpu)):
        pytest.skip("the profiler sees no kernels here: it has no access to CUPTI")
    x.grad = None
    for function, kernel in zip((forward, backward), KERNELS[backends.chosen()], strict=True):
        names = launched(function)
        own = [n for n in names if "lossops" in n or n.startswith(KERNELS["triton"])]
        assert len(own) == 1, names
        assert kernel in own[0], names
        # Also: zeros for the tickets, and the ones that torch passes as grad_output.
        others = [name for name in names if name not in own]
        assert len(others) <= 1, names
        assert all("Memset" in name or "Fill" in name for name in others), names
