"""Builds the extension ``lossops._C`` with ninja.

The CPU kernels are compiled once per instruction set and selected at run time, so one build runs on
every machine. The CUDA kernels are included if nvcc is found and torch has CUDA.

Environment variables:
    LOSSOPS_CUDA          auto (default) | 0 | 1: with 1, fail if CUDA kernels cannot be built
    TORCH_CUDA_ARCH_LIST  as in torch; default 8.0;9.0;10.0+PTX, limited to what nvcc supports
    MAX_JOBS              parallel compilations; default: one per core
    CXX                   the C++ compiler; default g++ or c++
    LOSSOPS_ISA           all (default) | native: the instruction sets of the CPU kernels
    LOSSOPS_SANITIZE      1: build with AddressSanitizer and UBSan, as for `make test-all`
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
SOURCES = (
    "csrc/ops/bindings.cpp",
    "csrc/ops/cpu.cpp",
    "csrc/cpu/elementwise/engine.cpp",
    "csrc/cpu/softmax/engine.cpp",
    "csrc/cpu/vectors/engine.cpp",
)
AVX2 = "-mavx2 -mfma -mf16c"
AVX512 = f"-mavx512f -mavx512bw -mavx512vl -mavx512dq {AVX2}"
# From wide to narrow, with their flags. DEFAULT runs on every machine.
INSTRUCTION_SETS = {"AVX512": AVX512, "AVX2": AVX2, "DEFAULT": ""}
KERNEL_SOURCES = (
    "csrc/cpu/elementwise/kernels.cpp",
    "csrc/cpu/softmax/kernels.cpp",
    "csrc/cpu/vectors/kernels.cpp",
)
CUDA_OPS = "csrc/ops/cuda.cpp"
DEPENDENCIES = "-MMD -MF $out.d"  # written by the compiler, for ninja
DEFAULT_ARCHS = ("8.0", "9.0", "10.0")
# Without inline checks and some kinds of checks, which would multiply the compile time.
SANITIZERS = (
    " -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined "
    "-fno-sanitize=vptr,null,object-size,pointer-overflow -fno-sanitize-address-use-after-scope "
    "--param=asan-instrumentation-with-call-threshold=0"
)
WARNINGS = (
    "-Wall -Wextra -Wno-unknown-pragmas -Wno-unused-parameter -Wno-maybe-uninitialized "
    "-Wno-uninitialized -Wno-psabi"  # for variables in the headers of vector intrinsics
)


def say(message: str) -> None:
    print(f"lossops: {message}", file=sys.stderr, flush=True)


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def quoted(flag: str, path) -> str:
    """A flag with a path, quoted for the shell in which ninja runs commands."""
    return shlex.quote(f"{flag}{path}").replace("$", "$$")


def escaped(path) -> str:
    """A path, escaped for a build line of a ninja file."""
    return re.sub(r"([$: ])", r"$\1", str(path))


def instruction_sets(torch) -> dict[str, str]:
    """The instruction sets to compile for, with their flags."""
    wish = os.environ.get("LOSSOPS_ISA", "all")
    if wish not in ("all", "native"):
        raise SystemExit(f"LOSSOPS_ISA should be all or native, got {wish!r}")
    if platform.machine() not in ("x86_64", "AMD64"):
        return {"DEFAULT": ""}
    if wish == "all":
        return INSTRUCTION_SETS
    name = torch.backends.cpu.get_cpu_capability()
    return {name: INSTRUCTION_SETS[name]}


@dataclass
class Cuda:
    """The CUDA toolkit to build with."""

    nvcc: str
    version: tuple[int, ...]
    home: Path
    archs: list[str] = field(default_factory=list)
    arch_flags: list[str] = field(default_factory=list)

    @staticmethod
    def find() -> Cuda | None:
        home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        candidates = [str(Path(home, "bin", "nvcc"))] if home else []
        candidates += [shutil.which("nvcc") or "", "/usr/local/cuda/bin/nvcc"]
        for nvcc in candidates:
            if not nvcc or not os.access(nvcc, os.X_OK):
                continue
            text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
            found = re.search(r"release (\d+)\.(\d+)", text)
            # The toolkit's folder, even if nvcc is a wrapper script.
            dry = subprocess.run(
                [nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True
            ).stderr
            top = re.search(r"^#\$ TOP=(.+)$", dry, re.M)
            if found and top:
                home = Path(os.path.normpath(top[1]))
                return Cuda(nvcc, (int(found[1]), int(found[2])), home)
        return None

    def add_architectures(self) -> None:
        """torch parses TORCH_CUDA_ARCH_LIST, including names like Hopper."""
        from torch.utils import cpp_extension

        if not os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip():
            listed = subprocess.run([self.nvcc, "--list-gpu-arch"], capture_output=True, text=True)
            known = set(re.findall(r"compute_(\d+)", listed.stdout))
            default = [arch for arch in DEFAULT_ARCHS if arch.replace(".", "") in known]
            os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(default) + "+PTX"
        self.arch_flags = cpp_extension._get_cuda_arch_flags()
        self.archs = sorted(set(re.findall(r"code=(sm_\w+)", " ".join(self.arch_flags))))
        if not self.archs:
            wanted = os.environ["TORCH_CUDA_ARCH_LIST"]
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST={wanted!r} names no architecture")


def find_cuda(torch) -> Cuda | None:
    """The toolkit, or None after printing the reason."""
    wish = os.environ.get("LOSSOPS_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        raise SystemExit(f"LOSSOPS_CUDA should be auto, 0 or 1, got {wish!r}")
    if wish == "0":
        return None
    cuda = Cuda.find()
    reason = ""
    if torch.version.cuda is None:
        reason = "this torch has no CUDA"
    elif cuda is None:
        reason = "nvcc was not found"
    elif cuda.version[0] != version(torch.version.cuda)[0]:
        reason = f"nvcc is {cuda.version} and torch was built with CUDA {torch.version.cuda}"
    if not reason:
        cuda.add_architectures()
        return cuda
    if wish == "1":
        raise SystemExit(f"LOSSOPS_CUDA=1, but {reason}")
    say(f"building without CUDA kernels: {reason}")
    return None


def definitions(torch, cxx: str, sets: dict[str, str], cuda: Cuda | None) -> dict[str, object]:
    """The macros for C++. Most report how the extension was built."""
    command = [*shlex.split(cxx), "--version"]
    compiler = subprocess.run(command, capture_output=True, text=True).stdout
    defines = {
        "LOSSOPS_COMPILER": f'"{compiler.splitlines()[0]}"',
        "LOSSOPS_TORCH_VERSION": f'"{torch.__version__}"',
        "_GLIBCXX_USE_CXX11_ABI": int(torch.compiled_with_cxx11_abi()),
        "LOSSOPS_INSTRUCTION_SETS": ", ".join(sets),
    }
    if cuda:
        defines["LOSSOPS_WITH_CUDA"] = 1
        defines["LOSSOPS_CUDA_VERSION"] = f'"{".".join(map(str, cuda.version))}"'
        defines["LOSSOPS_CUDA_ARCH"] = f'"{" ".join(cuda.archs)}"'
    return defines


def include_flags(cuda: Cuda | None) -> list[str]:
    import pybind11
    from torch.utils import cpp_extension

    own = [ROOT / "csrc", pybind11.get_include(), sysconfig.get_paths()["include"]]
    system = [*cpp_extension.include_paths(), *([cuda.home / "include"] if cuda else [])]
    return [quoted("-I", path) for path in own] + [
        "-isystem " + quoted("", path) for path in dict.fromkeys(map(str, system))
    ]


def link_flags(cuda: Cuda | None) -> list[str]:
    from torch.utils import cpp_extension

    folders, libraries = (
        cpp_extension.library_paths(),
        ["c10", "torch_cpu", "torch", "torch_python"],
    )
    if cuda:
        folders = [*folders, cuda.home / "lib64"]
        libraries += ["c10_cuda", "torch_cuda", "cudart"]
    flags = [quoted("-L", folder) for folder in folders] + [f"-l{name}" for name in libraries]
    return flags + (["-undefined dynamic_lookup"] if sys.platform == "darwin" else [])


def rules(torch, sets: dict[str, str], cuda: Cuda | None) -> dict[str, str]:
    """The commands of the ninja file, by rule."""
    cxx = os.environ.get("CXX") or shutil.which("g++") or "c++"  # may be `ccache g++`
    flags = ["" if sys.platform == "darwin" else "-fopenmp"]
    if os.environ.get("LOSSOPS_SANITIZE") == "1":
        flags.append(SANITIZERS)
    link = [cxx, "-shared", *flags, "$in", *link_flags(cuda), "-o $out"]
    compile = ["-std=c++20 -O3 -fPIC -fvisibility=hidden -fno-math-errno", WARNINGS, *flags]
    defines = definitions(torch, cxx, sets, cuda)
    compile += [f"'-D{name}={value}'" for name, value in defines.items()] + include_flags(cuda)
    commands = {"cxx": [cxx, DEPENDENCIES, *compile, "$extra -c $in -o $out"], "link": link}
    if cuda:
        compile = ["-std=c++20 -O3 -Xcompiler -fPIC,-fvisibility=hidden", *cuda.arch_flags]
        compile.append(quoted("-I", ROOT / "csrc"))
        commands["nvcc"] = [cuda.nvcc, DEPENDENCIES, *compile, "-c $in -o $out"]
    return {rule: " ".join(words) for rule, words in commands.items()}


def objects(sets: dict[str, str], cuda: Cuda | None) -> dict[str, tuple[str, str, str]]:
    """The objects in the order of linking: for each its rule, its source and further flags."""
    found = {source: ("cxx", source, "") for source in SOURCES}
    # The linker keeps the first copy of an inline function, so the one that runs everywhere is
    # first.
    for name, flags in reversed(sets.items()):
        extra = f"-DCPU_CAPABILITY={name} -DCPU_CAPABILITY_{name} {flags}"
        found |= {f"{source}.{name}": ("cxx", source, extra) for source in KERNEL_SOURCES}
    if cuda:
        kernels = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc/cuda").rglob("*.cu"))
        found |= {CUDA_OPS: ("cxx", CUDA_OPS, "")}
        found |= {source: ("nvcc", source, "") for source in kernels}
    return {f"{name.replace('/', '_')}.o": made for name, made in found.items()}


class NinjaBuild(build_ext):
    """Writes a ninja file with one rule per compiler and runs ninja."""

    def build_extension(self, ext) -> None:
        import torch

        sets, cuda = instruction_sets(torch), find_cuda(torch)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for rule, command in rules(torch, sets, cuda).items():
            lines += [f"rule {rule}", f"  command = {command}", f"  description = {rule} $in"]
            if DEPENDENCIES in command:
                lines += ["  depfile = $out.d", "  deps = gcc"]
        found = objects(sets, cuda)
        # The slowest objects are built first.
        for name in sorted(found, key=lambda name: found[name][1] in SOURCES):
            rule, source, extra = found[name]
            lines += [f"build {name}: {rule} {escaped(ROOT / source)}", f"  extra = {extra}"]
        output = escaped(target)
        lines += [f"build {output}: link {' '.join(found)}", f"default {output}", ""]
        (folder / "build.ninja").write_text("\n".join(lines))
        self.run_ninja(folder)

    def run_ninja(self, build: Path) -> None:
        command = [sys.executable, "-m", "ninja", "-C", str(build)]
        jobs = os.environ.get("MAX_JOBS")
        if jobs:
            command += ["-j", jobs]
        subprocess.run(command, check=True)


setup(
    ext_modules=[Extension("lossops._C", sources=[])],
    cmdclass={"build_ext": NinjaBuild},
)
