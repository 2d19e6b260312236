"""The Triton backend without a GPU: its numbers in the interpreter, and its machine code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

import lossops.triton  # noqa: E402
from lossops import specs  # noqa: E402

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

lossops.triton.load()
from lossops.triton import elementwise  # noqa: E402

FLOAT64, FLOAT32, BFLOAT16 = torch.float64, torch.float32, torch.bfloat16
each_pair = pytest.mark.parametrize(
    "dtypes",
    [(FLOAT64, FLOAT64), (FLOAT32, FLOAT32), (BFLOAT16, BFLOAT16), (BFLOAT16, FLOAT32)],
    ids=lambda pair: "-".join(str(dtype)[6:] for dtype in pair),
)
ALL = [True, True, True]


def test_under_the_interpreter():
    kernels = Path(__file__).with_name("test_triton_kernels.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(kernels)]
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


@each_pair
@pytest.mark.parametrize("row", specs.SPECS, ids=lambda row: row.name)
def test_forward_is_vectorized_and_keeps_to_registers(row, dtypes, compiler, tmp_path):
    x, y = (torch.empty(SIZE, dtype=dtype) for dtype in dtypes)
    call = (row.kernel, list(row.params(row.defaults)), "mean", 0)
    elementwise.elementwise_forward(x, y, None, None, *call, x.dtype, [True, False, False])
    (compiled,) = compiler.compiled
    narrowest = min(dtype.itemsize for dtype in dtypes)
    loads, stores = accesses(compiled)
    assert loads == sum(dtype.itemsize for dtype in dtypes) // narrowest
    assert stores == x.dtype.itemsize // narrowest
    assert spilled(compiled, tmp_path) == 0


@each_pair
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
