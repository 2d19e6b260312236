"""The CUDA kernels of a checkout, compiled for some architectures and analysed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.kernels import machine_code
from benchmarks.kernels.cache import CHECKOUT, Cache, Progress, Task, included, silence
from benchmarks.kernels.rows import READERS, CompileError, row
from lossops.specs.elementwise import SPECS, Spec

CSRC = CHECKOUT / "csrc"
FLAGS = ("-std=c++20", "-O3", "-Xptxas=-v")  # those of setup.py, and a report
_DTYPES = {
    "double": "float64",
    "float": "float32",
    "__nv_bfloat16": "bfloat16",
    "__half": "float16",
}


def nvcc() -> str | None:
    """The CUDA compiler, from CUDA_HOME or else from PATH."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return (home and shutil.which("nvcc", path=Path(home, "bin"))) or shutil.which("nvcc")


def compiler() -> str:
    """The compiler's name and version."""
    text = subprocess.run([nvcc(), "--version"], capture_output=True, text=True).stdout
    return "nvcc " + re.search(r"\bV([\d.]+)", text)[1]


def missing() -> str | None:
    """Why the kernels cannot be analysed here, or None."""
    if not sources():
        return "there are no CUDA sources: this is no checkout of the repository"
    if nvcc() is None:
        return "there is no CUDA compiler, nvcc, on PATH or in CUDA_HOME"
    if machine_code.disassembler() is None:
        return "there is no nvdisasm: it comes with Triton (pip install triton) and with CUDA"
    if shutil.which("c++filt") is None:
        return "there is no c++filt on PATH, a part of binutils"
    return None


def sources() -> list[Path]:
    """The source files, largest first, so that the others compile in parallel."""
    return sorted((CSRC / "cuda").rglob("*.cu"), key=lambda path: -path.stat().st_size)


def survey(
    architectures: Iterable[str],
    wanted: Sequence[Spec] = SPECS,
    over_rows: Sequence[str] = (),
    progress: Progress = silence,
) -> list[dict[str, Any]]:
    """The results of :func:`compile` for some architectures and all sources, which contain the
    kernels of all losses.

    Raises:
        CompileError: if a source does not compile.
    """
    tasks = {
        f"{source.parent.name} {source.stem} for sm_{a}": Task(
            (source, a), [*included(source, CSRC), *READERS, Path(__file__)]
        )
        for source in sources()
        for a in architectures
    }
    return Cache(compiler(), *FLAGS).results(tasks, compile, ThreadPoolExecutor, progress)


def compile(source: Path, architecture: str, options: Sequence[str] = ()) -> dict[str, Any]:
    """Compiles a source, including host code. Returns ``rows``, one per kernel, and ``warnings``.

    Raises:
        CompileError: if the source does not compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        code = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
        output = Path(folder, source.stem)
        command = [
            nvcc(), *FLAGS, code, *options, f"-I{CSRC}", "--keep", "--keep-dir", folder,
            "-c", source, "-o", output.with_suffix(".o"),
        ]  # fmt: skip
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if run.returncode != 0:
            raise CompileError(
                f"nvcc failed on {source.name} for sm_{architecture}:\n{run.stdout[-4000:]}"
            )
        cubin, ptx = output.with_suffix(".cubin"), output.with_suffix(".ptx")
        compiled = machine_code.Compiled(run.stdout, ptx.read_text(), cubin.read_bytes())
    found = machine_code.kernels([compiled])
    names = _demangled([kernel.symbol for kernel in found])
    files = [source, *sorted((CSRC / "cuda").rglob("*.cuh"))]
    enums = _enums("\n".join(file.read_text(encoding="utf-8") for file in files))
    return {
        "rows": [
            row("cuda", architecture, **_parts(name, enums), kernel=kernel)
            for name, kernel in zip(names, found, strict=True)
        ],
        "warnings": [line for line in run.stdout.splitlines() if re.search(r"\bwarning\b", line)],
    }


def _demangled(symbols: Sequence[str]) -> list[str]:
    text = "\n".join(symbols)
    done = subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def _enums(source: str) -> dict[str, list[str]]:
    """The enumerators of a source's enums, because symbols contain only their numeric values."""
    source = re.sub(r"//.*", "", source)
    found = re.findall(r"enum class (\w+)\s*\{([^}]*)\}", source)
    return {name: re.findall(r"\w+", body) for name, body in found}


def _parts(name: str, enums: dict[str, list[str]]) -> dict[str, Any]:
    """Parses a demangled kernel name.

    ``void dense<OfDifference<Mse>, float, float, (Pass)1>(…)``, without its namespaces, is the
    kernel ``dense`` for the loss ``mse``, two float32 tensors and the pass ``step``. Likewise, the
    pass of a softmax kernel consists of its operands and the number of vectors that a lane keeps.
    """
    name = re.sub(r"\(anonymous namespace\)::|\b\w+::", "", name)
    template, arguments = re.match(r"(?:void )?(\w+)(?:<(.*)>)?\(", name).groups()
    losses, dtypes, passes = [], [], []
    for argument in (arguments or "").split(", "):
        word = "".join(re.findall(r"\w+", argument)[-1:])  # for OfDifference<Mse>, the inner name
        enumerator = re.fullmatch(r"\((\w+)\)(\d+)", argument)
        if word in _DTYPES:
            dtypes.append(_DTYPES[word])
        elif enumerator:
            passes.append(enums[enumerator[1]][int(enumerator[2])])
        elif word.isdigit():
            passes.append(f"order {word}" if template == "strided" else f"{word} vectors")
        elif word:
            losses.append(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", word).lower())
    return {
        "template": template,
        "loss": " ".join(losses),
        "dtypes": dtypes,
        "pass_": " ".join(passes),
    }
