"""The compiled CUDA sources: no warnings, no spilled registers, and 16-byte accesses on the main
paths, on every architecture. No GPU is needed."""

from __future__ import annotations

import itertools
import random
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.kernels import cache as kernel_cache
from benchmarks.kernels import cuda as kernels_cuda
from benchmarks.kernels import survey as kernels
from benchmarks.kernels.occupancy import ARCHITECTURES, MULTIPROCESSORS, blocks_at_once
from lossops.specs.elementwise import SPECS
from lossops.vectors.reference import VECTOR_SIGNATURES

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"

NVCC = kernels_cuda.nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="there is no CUDA compiler, nvcc")
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def run(*command) -> str:
    """Runs a command and returns its output. If the command fails, the test fails with that
    output."""
    result = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode != 0:
        pytest.fail(f"{command[0]} failed:\n{result.stdout[-4000:]}", pytrace=False)
    return result.stdout


def compile(source: str, folder: Path, architecture: str, *options: str):
    """The rows of a few kernels that are written for a test."""
    if reason := kernels_cuda.missing():
        pytest.skip(reason)
    path = folder / "kernels.cu"
    path.write_text(source)
    return kernels_cuda.compile(path, architecture, options)["rows"]


# ---------------------------------------------------------------------------------------------
# The kernels of the library.


@pytest.fixture(scope="module")
def units():
    """The results for each source and architecture."""
    if reason := kernels_cuda.missing():
        pytest.skip(reason)
    return kernels_cuda.survey(ARCHITECTURES)


@pytest.fixture
def rows(units, architecture):
    every = [row for unit in units for row in unit["rows"]]
    return [row for row in every if row["architecture"] == architecture]


def test_there_are_sources():
    assert {f"{s.parent.name}/{s.stem}" for s in kernels_cuda.sources()} >= {
        "elementwise/engine", "elementwise/dense", "elementwise/strided", "softmax/engine",
        "softmax/thread", "softmax/warp_labels", "softmax/block_labels", "vectors/engine",
        "vectors/label_lists",
    }  # fmt: skip


@needs_nvcc
def test_no_warnings(units):
    assert len(units) == len(kernels_cuda.sources()) * len(ARCHITECTURES)
    assert not [warning for unit in units for warning in unit["warnings"]]


@needs_nvcc
@each_architecture
def test_every_kernel_is_there(rows):
    main, halves = ("float32", "bfloat16", "float16"), ("bfloat16", "float16")
    pairs = [(d, d) for d in ("float64", *main)] + [(half, "float32") for half in halves]
    wanted = {f"rescale<{dtype}>" for dtype in ("float64", *main)}
    for loss in (spec.kernel for spec in SPECS):
        wanted |= {f"dense<{loss}, {x}, {y}, any>" for x, y in pairs}
        for dtype, pass_ in itertools.product(main, ("value", "step", "backward")):
            wanted.add(f"dense<{loss}, {dtype}, {dtype}, {pass_}>")
        for dtype, order in itertools.product(("float32", "float64"), (1, 2)):
            wanted.add(f"strided<{loss}, {dtype}, order {order}>")
    divergences = ("kl", "reverse_kl", "jensen_shannon", "l1_distribution", "total_variation")
    for loss in ("cross_entropy", "soft_cross_entropy", *divergences):
        wanted |= {f"rows_thread<{loss}, {dtype}>" for dtype in ("float32", "float64")}
    pairs = [("kl", "two_logits"), ("jensen_shannon", "two_logits"), ("kl", "log_probs_and_probs")]
    pairs.append(("soft_cross_entropy", "logits_and_probs"))
    for dtype in main:
        wanted |= {
            f"rows_warp<cross_entropy, {dtype}, plain_labels {n} vectors>" for n in (1, 4, 8)
        }
        for loss, rows_of in pairs:
            wanted |= {f"rows_warp<{loss}, {dtype}, {rows_of} {n} vectors>" for n in (1, 4)}
        for loss, rows_of in [("cross_entropy", "plain_labels"), *pairs]:
            wanted.add(f"rows_block<{loss}, {dtype}, {rows_of}>")
    for (loss, takes), dtype in itertools.product(VECTOR_SIGNATURES.items(), ("float64", *main)):
        template = "label_lists" if takes.label == "list" else "vector_rows"
        wanted.add(f"{template}<{loss}, {dtype}>")
    names = {row["name"] for row in rows}
    assert wanted <= names, wanted - names


@needs_nvcc
@each_architecture
def test_no_spills_and_16_bytes_at_a_time(rows):
    assert not kernels.problems(rows)
    # The check identifies main paths by name. A kernel with another name would not be checked.
    judged = {("cuda", row["template"], row["pass"]) for row in rows}
    assert {path for path in kernels.MAIN_PATHS if path[0] == "cuda"} <= judged


@needs_nvcc
@each_architecture
def test_launch_bounds_hold(rows):
    """Threads per block, and blocks per multiprocessor, are as __launch_bounds__ promises."""
    least = {
        "dense": 4,
        "strided": 2,
        "rescale": 1,
        "rows_thread": 2,
        "rows_warp": 2,
        "vector_rows": 4,
        "label_lists": 2,
    }
    for row in rows:
        plain = row["pass"] == "plain_labels"
        block = row["template"] == "rows_block"
        assert row["threads"] == (256 if not block else 768 if plain else 512), row["name"]
        blocks = 3 if row["pass"] == "any" else least.get(row["template"], 1)
        if row["template"] == "rows_thread" and row["loss"] == "jensen_shannon":
            blocks = 1 if row["dtypes"] == ["float64"] else 2
        if row["loss"] == "sigmoid_focal":  # kIsLong
            blocks = min(blocks, 2 if row["dtypes"][0] == "float64" else 3)
        assert row["blocks"] >= blocks, row["name"]


# ---------------------------------------------------------------------------------------------
# The check itself: kernels with known properties, and kernels that it must reject.

PASS = "enum class Pass { value, step, backward, any };  // by number in a symbol\nstruct Mse {};\n"


@needs_nvcc
@each_architecture
def test_what_is_read_off_a_kernel(architecture, tmp_path):
    source = """
    namespace lossops { namespace {
    struct SmoothL1 {};
    template <class L> struct OfDifference {};
    enum class Pass { one, other /* and */ };
    template <class Loss, class X, class Y, Pass pass>
    __global__ void __launch_bounds__(96) moved(const uint4* a, const unsigned char* b, short* c) {
      __shared__ uint4 kept[96];
      kept[threadIdx.x] = a[threadIdx.x];
      __syncthreads();
      c[threadIdx.x] = kept[95 - threadIdx.x].x + b[threadIdx.x];
    }
    template __global__ void moved<OfDifference<SmoothL1>, float, double, Pass::other>(
        const uint4*, const unsigned char*, short*);
    }}
    """
    (row,) = compile(source, tmp_path, architecture)
    assert row["name"] == "moved<smooth_l1, float32, float64, other>"
    assert row["threads"] == 96
    assert row["shared"] == 96 * 16
    assert row["loads"] == {"16": 1, "1": 1}
    assert row["stores"] == {"2": 1}
    assert (row["spill_stores"], row["spill_loads"], row["stack"], row["local"]) == (0, 0, 0, 0)
    assert 8 <= row["registers"] <= 32
    assert row["blocks"] == 64 // 3
    assert row["occupancy"] == 63 / 64


@needs_nvcc
def test_a_spill_is_a_problem(tmp_path):
    source = (
        PASS
        + """
    template <class Loss, class X, class Y, Pass pass>
    __global__ void dense(const float* in, float* out) {
      float kept[64];
      #pragma unroll
      for (int i = 0; i < 64; ++i) kept[i] = in[threadIdx.x + 256 * i];
      __syncthreads();
      #pragma unroll
      for (int i = 0; i < 64; ++i) out[threadIdx.x + 256 * i] = kept[i] * kept[(7 * i + 3) % 64];
    }
    template __global__ void dense<Mse, float, float, Pass::any>(const float*, float*);
    """
    )
    assert not kernels.problems(compile(source, tmp_path, "90", "-maxrregcount=128"))
    rows = compile(source, tmp_path, "90", "-maxrregcount=32")
    # ptxas's report must agree with the machine code, whose accesses have up to 16 bytes.
    assert rows[0]["local"] * 16 >= rows[0]["spill_stores"] + rows[0]["spill_loads"] > 0
    (problem,) = kernels.problems(rows)
    assert "cuda kernel dense<mse, float32, float32, any> on sm_90 spills registers" in problem


@needs_nvcc
def test_local_memory_is_a_problem(tmp_path):
    """An array indexed at run time is in local memory as well, but is not a spill."""
    source = """
    __global__ void looked_up(const int* in, int* out) {
      int table[32];
      for (int i = 0; i < 32; ++i) table[in[i] & 31] = in[i + 32];
      out[threadIdx.x] = table[threadIdx.x & 31];
    }
    """
    (problem,) = kernels.problems(compile(source, tmp_path, "90"))
    assert "looked_up<> on sm_90 uses local memory" in problem


@needs_nvcc
def test_narrow_accesses_on_a_main_path_are_problems(tmp_path):
    source = (
        PASS
        + """
    template <class Loss, class X, class Y, Pass pass>
    __global__ void dense(const X* x, const Y* y, X* grad, int n) {
      for (int i = threadIdx.x; i < n; i += blockDim.x) grad[i] = 2 * (x[i] - y[i]);
    }
    template __global__ void dense<Mse, float, float, Pass::step>(
        const float*, const float*, float*, int);
    template __global__ void dense<Mse, float, float, Pass::any>(
        const float*, const float*, float*, int);
    """
    )
    found = kernels.problems(compile(source, tmp_path, "80"))
    where = "cuda kernel dense<mse, float32, float32, step> on sm_80"
    assert found == [
        f"{where} has 0 loads of 16 bytes, and needs 4",
        f"{where} has 0 stores of 16 bytes, and needs 2",
    ]


@needs_nvcc
def test_what_does_not_compile_is_named(tmp_path):
    with pytest.raises(kernels.CompileError, match=r"nvcc failed on kernels\.cu for sm_90"):
        compile("__global__ void broken() { no }", tmp_path, "90")


# ---------------------------------------------------------------------------------------------
# Occupancy.


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks"),
    [
        ("80", 256, 32, 0, 8),  # all of 64 warps
        ("80", 256, 33, 0, 6),  # 40 registers per thread: 12 warps per partition, 48 in total
        ("90", 256, 64, 257, 4),  # 65536 / (64 x 256)
        ("90", 256, 65, 0, 3),  # 72 registers: 7 warps per partition
        ("90", 96, 168, 0, 4),  # 3 warps per partition, 12 in total, 3 per block
        ("100", 32, 16, 0, 32),  # the maximum number of blocks
        ("80", 128, 32, 40 * 1024, 4),  # 41 KB with the reserved memory, of 164
        ("80", 128, 32, 40 * 1024 + 1, 3),
        ("90", 128, 32, 56 * 1024, 4),  # 57 KB of 228
        ("86", 256, 32, 0, 6),  # 48 warps
        ("90", 1024, 64, 0, 1),
        ("90", 1024, 65, 0, 0),  # cannot be launched
    ],
)
def test_occupancy(architecture, threads, registers, shared, blocks):
    assert blocks_at_once(architecture, threads, registers, shared) == blocks


@needs_nvcc
def test_occupancy_is_what_nvidia_computes(tmp_path):
    """Random kernels, compared with the header that the calculation follows."""
    cases = [
        (random.choice(list(MULTIPROCESSORS)), random.randint(1, 1024), random.randint(1, 255),
         random.choice([0, random.randint(1, 2048), random.randint(1, 48 * 1024)]))
        for _ in range(3000)
    ]  # fmt: skip
    of = MULTIPROCESSORS
    table = "".join(
        f"{{{a[:-1]}, {a[-1]}, {of[a].warps * 32}, {of[a].shared}, {t}, {r}, {s}}},\n"
        for a, t, r, s in cases
    )
    source = tmp_path / "occupancy.cpp"
    source.write_text(
        """
        #include <climits>
        #include <cstdio>
        #include "cuda_occupancy.h"
        int main() {
          static const int cases[][7] = {CASES};
          for (const auto& c : cases) {
            cudaOccDeviceProp device;
            device.computeMajor = c[0];
            device.computeMinor = c[1];
            device.maxThreadsPerBlock = 1024;
            device.maxThreadsPerMultiprocessor = c[2];
            device.regsPerBlock = device.regsPerMultiprocessor = 65536;
            device.warpSize = 32;
            device.sharedMemPerBlock = 48 * 1024;
            device.sharedMemPerMultiprocessor = c[3];
            device.sharedMemPerBlockOptin = c[3] - 1024;
            device.reservedSharedMemPerBlock = 1024;
            device.numSms = 100;
            cudaOccFuncAttributes kernel;
            kernel.maxThreadsPerBlock = INT_MAX;
            kernel.numRegs = c[5];
            kernel.sharedSizeBytes = c[6];
            kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
            kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
            kernel.maxDynamicSharedSizeBytes = 0;
            kernel.numBlockBarriers = 1;
            cudaOccDeviceState state;
            cudaOccResult result;
            const int status = cudaOccMaxActiveBlocksPerMultiprocessor(
                &result, &device, &kernel, &state, c[4], 0);
            std::printf("%d\\n", status ? -1 : result.activeBlocksPerMultiprocessor);
          }
        }
        """.replace("CASES", table)
    )
    program = tmp_path / "occupancy"
    run("g++", *(f"-I{path}" for path in cuda_include_paths()), source, "-o", program)
    wanted = [int(line) for line in run(program).split()]
    found = [blocks_at_once(*case) for case in cases]
    assert len(wanted) == len(cases)
    wrong = [c for c in zip(cases, wanted, found, strict=True) if c[1] != c[2]]
    assert not wrong, wrong[:5]


# ---------------------------------------------------------------------------------------------
# Host code.


def cuda_include_paths() -> list[str]:
    """The header folders of this nvcc, which may be a script that calls the real one."""
    plan = run(NVCC, "--dryrun", "-x", "cu", "-E", CSRC / "cuda" / "elementwise" / "engine.h")
    includes = re.search(r"^#\$ INCLUDES=(.*)$", plan, re.MULTILINE)
    assert includes, plan
    return re.findall(r"-I([^\"\s]+)", includes[1])


@needs_nvcc
def test_host_glue_compiles():
    """Compiles the unit that passes tensors to the engines with torch's headers, including those of
    a CPU-only torch, which lack a generated file about the build of torch."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ on PATH")
    from torch.utils.cpp_extension import include_paths

    system = [*include_paths(), sysconfig.get_path("include"), *cuda_include_paths()]
    run(
        compiler, "-std=c++20", "-fsyntax-only", "-DC10_USING_CUSTOM_GENERATED_MACROS",
        f"-I{CSRC}", *(f"-isystem{path}" for path in system), CSRC / "ops" / "cuda.cpp",
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------
# Results are stored as long as the sources are unchanged.


@pytest.mark.parametrize("edited", ["never", "later", "meanwhile"])
def test_results_are_kept_until_a_source_changes(edited, monkeypatch, tmp_path):
    monkeypatch.setattr(kernel_cache, "CHECKOUT", tmp_path)
    (tmp_path / "csrc").mkdir()
    source = tmp_path / "source"
    source.write_text("old")
    calls = []

    def work(number):
        calls.append(number)
        if edited == "meanwhile":
            source.write_text("new")
        return {"rows": [number]}

    def results():
        tasks = {name: kernel_cache.Task((i,), [source]) for i, name in enumerate("ab", 1)}
        return kernel_cache.Cache("a compiler").results(tasks, work, ThreadPoolExecutor)

    assert results() == [{"rows": [1]}, {"rows": [2]}]
    if edited == "later":
        source.write_text("new")
    elif edited == "meanwhile":
        source.write_text("old")
    assert results() == [{"rows": [1]}, {"rows": [2]}]
    assert sorted(calls) == ([1, 2] if edited == "never" else [1, 1, 2, 2])


def test_a_digest_depends_on_code_alone(tmp_path):
    def digest(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text)
        return kernel_cache.digest(["a compiler"], [path])

    same = digest("a.h", "int f();  // one\n/* two\nlines */ int g();")
    assert digest("b.h", "int f();\nint g();\n// other") == same
    assert digest("b.h", "int f();\nint h();") != same
    same = digest("a.py", 'def f(x):\n    """Doc."""\n    return x  # one\n')
    assert digest("b.py", '"""Module."""\n\ndef f(x):\n    return x\n') == same
    assert digest("b.py", "def f(x):\n    return -x\n") != same


def test_what_a_result_depends_on():
    files = kernel_cache.included(CSRC / "cuda" / "elementwise" / "dense.cu", CSRC)
    names = {str(path.relative_to(CSRC)) for path in files}
    assert {"cuda/elementwise/dense.cu", "cuda/common/reduce.cuh", "losses/jet.h"} <= names
    assert not any("softmax" in name for name in names)
    files = kernel_cache.imported("lossops.softmax.triton.ops", ".triton")
    names = {str(path.relative_to(ROOT / "lossops")) for path in files}
    assert {"softmax/triton/rows.py", "core/triton/math.py", "core/triton/kernels.py"} <= names
    assert not any(name.startswith(("elementwise", "vectors")) for name in names)
