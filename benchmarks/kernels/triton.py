"""The Triton kernels, compiled for some architectures without a GPU and analysed.

This happens in separate processes, in which a driver without a device replaces Triton's, because
the calling process may be using a real one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import lossops
from benchmarks.kernels import machine_code
from benchmarks.kernels import softmax as kernels_softmax
from benchmarks.kernels import vectors as kernels_vectors
from benchmarks.kernels.cache import Cache, Progress, Task, imported, silence
from benchmarks.kernels.rows import READERS, row
from lossops.elementwise.ops import ElementwiseArguments
from lossops.specs.elementwise import SPECS, Spec, spec

FLOAT64, FLOAT32 = torch.float64, torch.float32
BFLOAT16, FLOAT16 = torch.bfloat16, torch.float16
DTYPES = (FLOAT32, BFLOAT16, FLOAT16, FLOAT64)
Pair = tuple[torch.dtype, torch.dtype]
PAIRS = (*((dtype, dtype) for dtype in DTYPES), (BFLOAT16, FLOAT32))  # of input and target
FEW_PAIRS = PAIRS[-2:]  # these compute in float64 and in float32
OVER_ROWS = (*kernels_softmax.LOSSES, *kernels_vectors.LOSSES)
# To save time, the loss with the longest formula represents all in kernels that few calls need.
LONGEST = "log_cosh_loss"

# Not a multiple of any block: the last tile is masked and cannot be vectorised; all others must be.
_SIZE = 1_000_003


def compiler() -> str:
    return f"Triton {metadata.version('triton')}"


def missing() -> str | None:
    """Why the kernels cannot be analysed here, or None."""
    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:
        return "Triton is not installed: pip install triton"
    if not Path(found.origin).parent.joinpath("backends", "nvidia").is_dir():
        return "this Triton is built without its NVIDIA backend"
    if machine_code.disassembler() is None:
        return "there is no nvdisasm: this Triton has none, and it is not on PATH"
    return None


def survey(
    architectures: Iterable[str],
    wanted: Sequence[Spec] = SPECS,
    over_rows: Sequence[str] = OVER_ROWS,
    progress: Progress = silence,
    pairs: Sequence[Pair] = PAIRS,
) -> list[dict[str, Any]]:
    """The results of :func:`compile` for some losses and architectures."""
    tasks = {
        f"{name or 'rescale'} for sm_{a}": Task((a, name, pairs), _files(name))
        for a in architectures
        for name in (*(spec.name for spec in wanted), *over_rows, None)
    }
    return Cache(compiler(), str(pairs)).results(tasks, compile, _processes, progress)


@functools.cache
def _files(loss: str | None) -> list[Path]:
    """The files that the compiled kernels of a loss depend on."""
    family, launched = "elementwise", Path(__file__)
    if loss in kernels_softmax.LOSSES:
        family, launched = "softmax", Path(kernels_softmax.__file__)
    elif loss in kernels_vectors.LOSSES:
        family, launched = "vectors", Path(kernels_vectors.__file__)
    kernels = imported(f"lossops.{family}.triton.ops", ".triton")
    library = Path(lossops.__file__).parent
    kernels |= {library / family / "ops.py", library / "core" / "library.py"}
    return [*kernels, *READERS, Path(__file__), launched, library / "specs" / "elementwise.py"]


@contextlib.contextmanager
def _processes(workers: int) -> Iterator[Executor]:
    with tempfile.TemporaryDirectory() as folder:
        fresh = multiprocessing.get_context("spawn")  # a fork would inherit a driver
        with ProcessPoolExecutor(workers, fresh, _start, (folder,)) as pool:
            yield pool


def _start(folder: str) -> None:
    """Sets up a worker process before it imports Triton."""
    os.environ["TRITON_CACHE_DIR"] = folder
    os.environ["TRITON_ALWAYS_COMPILE"] = "1"  # a cached kernel comes without a log
    os.environ["TRITON_DUMP_PTXAS_LOG"] = "1"
    os.environ.pop("TRITON_INTERPRET", None)


class _CompileOnly:
    """A kernel that is compiled for the arguments of a launch, but not launched."""

    def __init__(self, kernel, compiled: list[machine_code.Compiled]):
        self.kernel = kernel
        self.compiled = compiled

    def __getitem__(self, grid):
        return functools.partial(self._compile, grid=grid)

    def _compile(self, *arguments, **options):
        with contextlib.redirect_stdout(io.StringIO()) as log:
            made = self.kernel.warmup(*arguments, **options)
        ptx, cubin, shared = made.asm["ptx"], made.asm["cubin"], made.metadata.shared
        self.compiled.append(machine_code.Compiled(log.getvalue(), ptx, cubin, shared))


class _Driver:
    """A driver without a device, with only what compilation needs."""

    def __init__(self, architecture: str):
        self.architecture = int(architecture)

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self):
        return -self.architecture  # kernels are cached by device: use one that does not exist

    def get_current_stream(self, device):
        return 0


@contextlib.contextmanager
def _compile_only(module, names: Iterable[str]) -> Iterator[list[machine_code.Compiled]]:
    """Replaces a module's kernels. Yields the compiled kernels, in the order of their launches."""
    compiled: list[machine_code.Compiled] = []
    kernels = {name: getattr(module, name) for name in names}
    for name, kernel in kernels.items():
        setattr(module, name, _CompileOnly(kernel, compiled))
    yield compiled
    for name, kernel in kernels.items():
        setattr(module, name, kernel)


def compile(architecture: str, loss: str | None, pairs: Sequence[Pair] = PAIRS) -> dict[str, Any]:
    """Compiles the kernels of a loss or, for None, those that belong to no loss. Returns ``rows``,
    one per kernel, and ``warnings``. Elementwise losses are compiled for ``pairs``, except in
    kernels for which one loss represents all. Must be called in a process that was set up for
    it."""
    import triton

    from lossops.elementwise.triton import ops as elementwise
    from lossops.softmax.triton import ops as softmax
    from lossops.vectors.triton import label_lists
    from lossops.vectors.triton import ops as vectors

    triton.runtime.driver.set_active(_Driver(architecture))
    if loss in kernels_softmax.LOSSES:
        module, names = softmax, kernels_softmax.KERNELS
        launches, name = kernels_softmax.launches(loss, softmax), loss
    elif loss in kernels_vectors.LOSSES:
        module, names = vectors, kernels_vectors.KERNELS
        if loss in kernels_vectors.WITH_LISTS:
            module, names = label_lists, kernels_vectors.LIST_KERNELS
        launches, name = kernels_vectors.launches(loss, vectors), loss
    else:
        module, names = elementwise, ("elementwise_kernel", "rescale_kernel")
        if loss:
            launches = _launches(spec(loss), elementwise, PAIRS if loss == LONGEST else pairs)
        else:
            launches = _rescales(elementwise)
        name = spec(loss).kernel if loss else ""
    described = []
    with _compile_only(module, names) as compiled:
        for templates, dtypes, pass_, launch in launches:
            before = len(compiled)
            launch()
            dtypes = [str(dtype).removeprefix("torch.") for dtype in dtypes]
            for made in compiled[before:]:
                if not made.log:  # already compiled for an earlier call
                    continue
                names = templates.split()
                template = next((t for t in names if f"'{t}_kernel'" in made.log), names[-1])
                described.append({"template": template, "dtypes": dtypes, "pass_": pass_})
    kernels = machine_code.kernels(compiled)
    return {
        "rows": [
            row("triton", architecture, **description, loss=name, kernel=kernel)
            for description, kernel in zip(described, kernels, strict=True)
        ],
        "warnings": [],
    }


# The launches for a loss or a dtype: the kernels, their dtypes, the pass, and the call.
_Launches = Iterator[tuple[str, tuple[torch.dtype, ...], str, Callable[[], Any]]]


def _launches(loss: Spec, ops, pairs: Sequence[Pair]) -> _Launches:
    for pair in pairs:
        for pass_, launch in _passes(loss, ops, *pair).items():
            yield "elementwise", pair, pass_, launch


def _passes(loss: Spec, ops, *pair: torch.dtype) -> dict[str, Callable[[], Any]]:
    x, y = (torch.empty(_SIZE, dtype=dtype) for dtype in pair)
    value = torch.promote_types(*pair)  # the dtype of the loss
    one, many = torch.ones((), dtype=value), torch.ones(_SIZE, dtype=value)
    mean = ElementwiseArguments(loss.kernel, list(loss.params(loss.defaults)), "mean", 0)
    none = mean._replace(reduction="none")
    nothing, input = [False] * 3, [True, False, False]
    passes = {
        "value": lambda: ops.elementwise_forward(x, y, None, None, mean, value, nothing),
        "step": lambda: ops.elementwise_forward(x, y, None, None, mean, value, input),
        "backward": lambda: ops.elementwise_backward(many, x, y, None, None, none, input),
        "double backward": lambda: ops.elementwise_double_backward(
            one, x, y, None, None, x, y, None, mean, value, [True, True, True, False]
        ),
    }
    if loss.name != LONGEST:
        return passes
    rows = x[: 1000 * 999].view(1000, 999), y[: 1000 * 999].view(1000, 999)
    return passes | {
        "weighted backward": lambda: ops.elementwise_backward_(
            [x.clone()], one, x, y, x, None, mean, input
        ),
        "weighted double": lambda: ops.elementwise_double_backward(
            one, x, y, x, None, x, y, x, mean, value, [True] * 4
        ),
        "groups": lambda: ops.elementwise_forward(
            *rows, None, None, mean._replace(keep_dims=1), value, nothing
        ),
    }


def _rescales(ops) -> _Launches:
    for dtype in DTYPES:
        grad, one = torch.empty(_SIZE, dtype=dtype), torch.ones((), dtype=dtype)
        yield "rescale", (dtype,), "", functools.partial(ops.elementwise_rescale_, [grad], one)
