"""Compiles CUDA sources for the device in this folder, and loads them."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "build" / "cuda_on_cpu"

FLAGS = "-std=c++20 -g1 -fPIC -U_FORTIFY_SOURCE -fno-gnu-unique"
PLAIN_FLAGS = f"{FLAGS} -O1 -x c++ -Wno-attributes"
# Instrumentation by the sanitizers without their runtime: the hooks are in memory.cpp.
# -Werror=conversion catches 64-bit indices that are truncated to 32 bits, which would only show
# with tensors too large for the tests.
KERNEL_FLAGS = (
    f"{FLAGS} -Og -fsanitize=thread,alignment,bounds -x c++ -Werror=conversion "
    "-Wno-float-conversion -Wno-sign-conversion -Wno-attributes"
)


def compiler() -> str:
    return os.environ.get("CXX") or shutil.which("g++") or "c++"


def kernels(folder: Path = FOLDER, csrc: Path = ROOT / "csrc", others: Iterable[str] = ()) -> Path:
    """The library of all CUDA kernels of a source tree. ``others``, which are paths relative to
    ``csrc/cuda``, are taken from this checkout."""
    sources = sorted((csrc / "cuda").rglob("*.cu"))
    if others:
        kernels()
    compiled = [FOLDER / _object("kernels", csrc / "cuda" / name) for name in others]
    sources = [s for s in sources if str(s.relative_to(csrc / "cuda")) not in others]
    return _library(folder, "kernels", sources, csrc, compiled)


def faults() -> Path:
    """The library of deliberately faulty kernels."""
    return _library(FOLDER, "faults", [HERE / "faults.cu"], ROOT / "csrc")


def launches() -> Path:
    """The library that launches from several threads. Its host code is not instrumented, because
    the device would mistake it for kernel code."""
    return _library(
        FOLDER, "launches", [HERE / "launches.cu"], ROOT / "csrc", kernel_flags=PLAIN_FLAGS
    )


def ops() -> Path:
    """The raw ops, which call the launch functions of the kernels loaded before."""
    from torch.utils import cpp_extension

    headers = " ".join(f"-isystem {shlex.quote(p)}" for p in cpp_extension.include_paths())
    paths = " ".join(f"-L{shlex.quote(p)}" for p in cpp_extension.library_paths())
    flags = f"{FLAGS} -O1 -I{HERE} -I{ROOT / 'csrc'} {headers}"
    return _ninja(FOLDER, "ops.so", {HERE / "ops.cpp": flags}, f"{paths} -lc10 -ltorch_cpu")


def _library(
    folder: Path, name: str, sources: list[Path], csrc: Path, compiled: Iterable[Path] = (),
    kernel_flags: str = KERNEL_FLAGS,
) -> Path:  # fmt: skip
    files = {HERE / file: f"{FLAGS} -O2 -I{HERE}" for file in ("device.cpp", "memory.cpp")}
    device = _ninja(FOLDER, "device.o", files, "-r -nostdlib")
    flags = f"{kernel_flags} -I{HERE} -I{csrc}"
    # The device comes first: the linker keeps the first copy of an inline function that both
    # contain, and the device's own must not be instrumented.
    kernels = dict.fromkeys(sources, flags)
    link = " ".join(["-Wl,-Bsymbolic", *map(str, compiled)])
    return _ninja(folder, f"{name}.so", kernels, link, first=device, others=compiled)


def _object(name: str, source: Path) -> str:
    return f"{name}_{source.parent.name}_{source.name}.o"


def _ninja(
    folder: Path, target: str, sources: dict[Path, str], link: str, first: str | Path = "",
    others: Iterable[Path] = (),
) -> Path:  # fmt: skip
    """Compiles the sources, each with its flags, and links them. Skips what is up to date."""
    folder.mkdir(parents=True, exist_ok=True)
    name = Path(target).stem
    shared = "-shared" if target.endswith(".so") else ""
    lines = [
        f"builddir = {name}.ninja_state",  # per target: several builds may run at once
        f"rule cxx\n  command = {compiler()} -MMD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {compiler()} {shared} {first} $in {link} -o $out",
    ]
    objects = {source: _object(name, source) for source in sources}
    for source, flags in sources.items():
        lines.append(f"build {objects[source]}: cxx {source}\n  flags = {flags}")
    inputs = " ".join(objects.values())
    lines.append(f"build {target}: link {inputs} | {first} {' '.join(map(str, others))}\n")
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may build the same target
        (folder / f"{name}.ninja").write_text("\n".join(lines))
        command = [sys.executable, "-m", "ninja", "-f", f"{name}.ninja", target]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{target} does not compile:\n{run.stdout[-4000:]}{run.stderr}")
    return folder / target


class Device:
    """The device of a library."""

    def __init__(self, library: Path):
        self.library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)

    def seed(self, seed: int) -> None:
        """Sets the order in which threads and blocks run."""
        self.library.cuda_on_cpu_seed(ctypes.c_uint64(seed))

    def traffic(self) -> tuple[int, int]:
        """Bytes of global memory that kernels read and wrote since the last call."""
        read, written = ctypes.c_int64(), ctypes.c_int64()
        self.library.cuda_on_cpu_traffic(ctypes.byref(read), ctypes.byref(written))
        return read.value, written.value
