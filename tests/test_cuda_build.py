"""The CUDA sources compile, spill no registers and move 16 bytes at a time. No GPU is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
SOURCES = sorted(path.name for path in (CSRC / "cuda").glob("*.cu"))
GLUE = sorted(path.name for path in (CSRC / "ops").glob("*_cuda.cpp"))
ARCHITECTURES = ("80", "90", "100")

NVCC = shutil.which("nvcc")
pytestmark = pytest.mark.skipif(NVCC is None, reason="there is no CUDA compiler, nvcc, on PATH")


def run(*command) -> str:
    """Runs a command and returns what it printed; fails the test with that where it fails."""
    result = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode != 0:
        pytest.fail(f"{command[0]} failed:\n{result.stdout[-4000:]}", pytrace=False)
    return result.stdout


def cuobjdump() -> str:
    """The disassembler: of the CUDA toolkit or of Triton, which brings its own."""
    found = shutil.which("cuobjdump")
    if found is None:
        triton = pytest.importorskip("triton", reason="neither cuobjdump nor triton is installed")
        found = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(found)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Compiles a source once, for all architectures: its object file and the compiler's report."""
    folder, built = tmp_path_factory.mktemp("cuda"), {}

    def compile(source: str) -> tuple[Path, str]:
        if source not in built:
            target = folder / f"{source}.o"
            codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
            report = run(
                NVCC, "-std=c++20", f"-I{CSRC}", *codes, "--threads=2", "-Werror=all-warnings",
                "-Xptxas=-v,-warn-spills", "-c", CSRC / "cuda" / source, "-o", target,
            )  # fmt: skip
            built[source] = target, report
        return built[source]

    return compile


def test_there_are_sources():
    assert SOURCES


@pytest.mark.parametrize("source", SOURCES)
def test_no_register_spills(build, source):
    _, report = build(source)
    kernels = re.findall(r"Compiling entry function '\w+' for 'sm_(\d+)a?'", report)
    assert sorted(set(kernels), key=int) == list(ARCHITECTURES)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(spills) >= len(kernels)
    named = re.findall(r"Registers are spilled.*", report)
    assert all(pair == ("0", "0") for pair in spills), "\n".join(named)


def test_dense_kernels_move_16_bytes(build):
    """The kernels of Pass::value, step and backward: every access to a tensor's interior."""
    object_file, _ = build("elementwise_dense.cu")
    listing = run(cuobjdump(), "-sass", "-arch", "sm_90", object_file)
    kernels = {}
    for part in listing.split("Function : ")[1:]:
        name = part.split("\n", 1)[0]
        if found := re.search(r"4PassE([012])E", name):
            kernels[name] = int(found[1]), part
    assert kernels
    for name, (pass_, code) in kernels.items():
        loads = re.findall(r"LDG\.E\.[\w.]*128", code)
        # Two vectors of input and target; or one of them and of grad_output.
        assert len(loads) == (3 if pass_ == 2 else 4), name
        assert re.search(r"STG\.E\.[\w.]*128", code), name


def cuda_include_paths() -> list[str]:
    """Where this nvcc finds its headers. It may be a script that calls the real one."""
    plan = run(NVCC, "--dryrun", "-x", "cu", "-E", CSRC / "cuda" / "elementwise.h")
    includes = re.search(r"^#\$ INCLUDES=(.*)$", plan, re.MULTILINE)
    assert includes, plan
    return re.findall(r"-I([^\"\s]+)", includes[1])


@pytest.mark.parametrize("source", GLUE)
def test_host_glue_compiles(source):
    """The file that hands tensors to the engine, against torch's headers: also those of a torch
    without CUDA, which lack one generated file that says how torch was built."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ on PATH")
    from torch.utils.cpp_extension import include_paths

    system = [*include_paths(), sysconfig.get_path("include"), *cuda_include_paths()]
    run(
        compiler, "-std=c++20", "-fsyntax-only", "-DC10_USING_CUSTOM_GENERATED_MACROS",
        f"-I{CSRC}", *(f"-isystem{path}" for path in system), CSRC / "ops" / source,
    )  # fmt: skip
