"""Helpers shared by all tests: a new random seed per test, which a failure prints, and checks of
which ops ran."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import secrets
from collections.abc import Iterator
from types import SimpleNamespace

import cuda_on_cpu
import interpreter
import pytest
import raw_ops as contract
import sampling
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lossops
from lossops.core import backends, library
from lossops.specs import elementwise as specs

# The device under test. LOSSOPS_TEST_DEVICE=cuda runs the tests on a GPU. LOSSOPS_BACKEND selects
# the kernels there.
DEVICE = torch.device(os.environ.get("LOSSOPS_TEST_DEVICE") or "cpu")
# On the CPU the kernels are required: without them the tests should fail instead of being skipped.
BACKEND = backends.chosen() or (
    "native" if DEVICE.type == "cpu" else backends.backends_for(DEVICE.type)[0]
)
NAMESPACE = {"native": library.NATIVE, "triton": library.TRITON}.get(BACKEND)

# torch's factory functions on that device. torch.set_default_device is not used: under its mode
# every loss would be called through __torch_function__, where torch's own l1_loss loses its weight.
make = SimpleNamespace(
    **{
        name: functools.partial(getattr(torch, name), device=DEVICE)
        for name in ("arange", "empty", "full", "ones", "rand", "randn", "tensor", "zeros")
    }
)

cpu_only = pytest.mark.skipif(
    DEVICE.type != "cpu" or BACKEND != "native",
    reason="about the native backend on the CPU, or about nothing that runs on a device",
)
# Files of which nothing computes on a device. Some are slow, or rebuild the extension.
HOST_FILES = {
    "test_architecture.py",
    "test_bench.py",
    "test_claims.py",
    "test_command_line.py",
    "test_cuda_build.py",
    "test_cuda_on_cpu.py",
    "test_docs.py",
    "test_gpu_measure.py",
    "test_gpu_run.py",
    "test_simd_math.py",
    "test_softmax_on_cpu_device.py",
    "test_triton.py",
    "test_vectors_on_cpu_device.py",
    "test_verify.py",
}
collect_ignore = sorted(HOST_FILES) if DEVICE.type != "cpu" else []
needs_kernels = pytest.mark.skipif(BACKEND == "reference", reason="the reference has no kernels")

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ALL_CASES = [
    pytest.param(row, kwargs, id="-".join([row.name, *(f"{k}={v}" for k, v in kwargs.items())]))
    for row in specs.SPECS
    for kwargs in row.samples
]
each_case = pytest.mark.parametrize(("spec", "kwargs"), ALL_CASES)
each_spec = pytest.mark.parametrize("spec", specs.SPECS, ids=lambda row: row.name)
each_regression = pytest.mark.parametrize("spec", specs.REGRESSION, ids=lambda row: row.name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
each_reduction = pytest.mark.parametrize("reduction", ["none", "mean", "sum", "sample"])


# Parameters that determine where a test runs. A test skipped in one place counts as untested there.
PLACES = frozenset({"backend", "gpu", "anywhere"})


def pytest_configure():
    # Before xdist starts its worker processes, so that all choose the same sample.
    os.environ.setdefault("LOSSOPS_TEST_SAMPLE", str(secrets.randbits(31)))
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("LOSSOPS_TEST_DEVICE=cuda, and there is no GPU")
    if BACKEND != "reference":
        backends.kernel_ops(BACKEND)  # also registers the ops of Triton
    if os.environ.get("TRITON_INTERPRET") == "1":
        interpreter.patch_the_language_once_a_launch()


def pytest_report_header():
    seed = os.environ["LOSSOPS_TEST_SAMPLE"]
    return f"lossops: {BACKEND} on {DEVICE}; parameters sampled with LOSSOPS_TEST_SAMPLE={seed}"


# Files that compile or interpret kernels. They start first, so that none is left running alone at
# the end.
LONG_FILES = (
    "test_triton.py",
    "test_cuda_build.py",
    "test_softmax_on_cpu_device.py",
    "test_cuda_on_cpu.py",
    "test_vectors_on_cpu_device.py",
    "test_command_line.py",
    "test_gpu_run.py",
)


@pytest.hookimpl(trylast=True)  # after -k has been applied
def pytest_collection_modifyitems(config, items):
    if os.environ.get("LOSSOPS_TEST_ALL") != "1":
        chosen = sampling.sample(items, os.environ["LOSSOPS_TEST_SAMPLE"], PLACES)
        config.hook.pytest_deselected(items=[*set(items).difference(chosen)])
        items[:] = chosen
    for item in items:
        if item.path.name in HOST_FILES:
            item.add_marker(cpu_only)
    order = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(autouse=True)
def seed(request) -> int:
    """A new seed for every test. LOSSOPS_TEST_SEED repeats the one that a failure printed."""
    value = int(os.environ.get("LOSSOPS_TEST_SEED") or secrets.randbits(31))
    torch.manual_seed(value)
    random.seed(value)
    request.node.user_properties.append(("seed", value))
    return value


def _why_not(device: str, backend: str) -> str | None:
    """Why the kernels of a backend cannot be tested on a device, or None if they can."""
    if device == "cuda" and not torch.cuda.is_available():
        return "there is no GPU"
    if device == "cuda" and backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        return "Triton's interpreter is no GPU"
    if backend not in backends.backends_for(device):
        return f"there are no {backend} kernels for {device} here, see lossops.info()"
    return None


def _place(name: str) -> Iterator[torch.device]:
    device, backend = name.split("-")
    if reason := _why_not(device, backend):
        pytest.skip(reason)
    with lossops.backend(backend):
        yield torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else DEVICE


GPUS = ["cuda-native", "cuda-triton"]


@pytest.fixture(params=GPUS)
def gpu(request) -> Iterator[torch.device]:
    """A GPU, with each backend that has kernels for it."""
    yield from _place(request.param)


@pytest.fixture(params=["cpu-native", *GPUS] if DEVICE.type == "cpu" else GPUS)
def anywhere(request) -> Iterator[torch.device]:
    """The same, plus the CPU if it is under test."""
    yield from _place(request.param)


@pytest.fixture(scope="module", params=["cpu", "cuda_on_cpu", "cuda-native", "cuda-triton"])
def backend(request):
    """The raw ops of every engine. All must satisfy the same contract."""
    if request.param == "cuda_on_cpu":
        return contract.Backend(cuda_on_cpu.ops())
    if request.param == "cuda-triton":
        triton = pytest.importorskip("triton")
        interpreted = triton.knobs.runtime.interpret
        if not interpreted and not torch.cuda.is_available():
            pytest.skip("needs a GPU or the interpreter, in which test_triton.py runs this file")
        # The interpreter truncates in the conversion to bfloat16.
        device, rounding = ("cpu", 1.0) if interpreted else ("cuda:0", 0.5)
        backends.kernel_ops("triton")  # registers them
        return contract.Backend(torch.ops.lossops_triton, device, rounding)
    device = "cuda" if request.param == "cuda-native" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if "native" not in backends.backends_for(device):
        pytest.skip(f"the extension is built without {device}")
    return contract.Backend(torch.ops.lossops, device, raises_index_errors=device == "cpu")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for name, value in item.user_properties:
            if name == "seed":
                report.sections.append(("seed", f"repeat with LOSSOPS_TEST_SEED={value}"))


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def expect_ops(*names: str) -> Iterator[list[str]]:
    """Asserts that these ops ran in the block. Others may run as well."""
    recorder = _Recorder()
    with recorder:
        yield recorder.names
    missing = [name for name in names if name not in recorder.names]
    assert not missing, f"did not run: {missing}; what ran: {recorder.names}"


@contextlib.contextmanager
def expect_kernels(*names: str) -> Iterator[list[str]]:
    """Like expect_ops, for kernels of the backend under test. The reference must not run any."""
    wanted = [f"{NAMESPACE}::elementwise_{name}" for name in names] if NAMESPACE else []
    with expect_ops(*wanted) as found:
        yield found
    assert NAMESPACE or not ran(found, "lossops"), found


@contextlib.contextmanager
def expect_softmax_kernels(*names: str) -> Iterator[list[str]]:
    """Like expect_kernels, for the kernels over rows."""
    wanted = [f"{NAMESPACE}::softmax_{name}" for name in names] if NAMESPACE else []
    with expect_ops(*wanted) as found:
        yield found
    assert NAMESPACE or not ran(found, "lossops"), found


def raw_ops():
    """The raw ops of the backend under test."""
    return getattr(torch.ops, NAMESPACE)


def ran(names: list[str], prefix: str) -> list[str]:
    return [name for name in names if name.startswith(prefix)]


def away_from_kinks(spec, kwargs, *shape, dtype=torch.float64, margin=0.05):
    """Input and target whose differences keep away from the kinks, on both sides of each."""
    target = make.randn(shape, dtype=torch.float64)
    difference = make.randn(shape, dtype=torch.float64) * 1.5
    for kink in spec.kinks(kwargs):
        near = (difference - kink).abs() < margin
        difference = torch.where(
            near, kink + torch.sign(difference - kink + 1e-9) * margin, difference
        )
    input, target = spec.inner(target + difference, target)
    return input.to(dtype), target.to(dtype)


def pair(spec, *shape, dtype=torch.float32):
    """Valid random input and target."""
    input, target = spec.inner(*make.randn(2, *shape, dtype=torch.float64).unbind(0))
    return input.to(dtype), target.to(dtype)


def random_grad_like(loss: torch.Tensor) -> torch.Tensor:
    """A cotangent that is neither uniform nor positive."""
    return torch.randn_like(loss.detach())
