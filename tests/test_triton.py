"""The Triton backend without a GPU: its results in the interpreter, and its machine code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from benchmarks.kernels import survey as kernels
from benchmarks.kernels import triton as kernels_triton
from benchmarks.kernels import vectors as kernels_vectors
from benchmarks.kernels.occupancy import ARCHITECTURES
from lossops.specs.elementwise import SPECS, spec

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
each_loss = pytest.mark.parametrize("loss", [row.kernel for row in SPECS])


# The tests, in parts that several processes can share.
INTERPRETED = {
    "kernels": ("triton_kernels", "triton"),
    "contract": ("raw_contract", "triton"),
    "elementwise": ("raw_ops", "triton"),
    "vectors": ("raw_vectors", "triton"),
    "divergences": ("raw_softmax", "triton and test_divergences"),
    "rows": ("raw_softmax", "triton and not test_divergences"),
}


@pytest.mark.parametrize("part", INTERPRETED)
def test_under_the_interpreter(part):
    file, chosen = INTERPRETED[part]
    assert interpreted([f"test_{file}.py"], chosen) > 50


def interpreted(files: list[str], chosen: str, **environment: str) -> int:
    """Runs tests under the interpreter. Returns how many passed; all must pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen]
    run = subprocess.run(
        [*command, *files],
        cwd=Path(__file__).parent,
        env={**os.environ, "TRITON_INTERPRET": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed
    assert " skipped" not in run.stdout
    return int(passed[1])


# ---------------------------------------------------------------------------------------------
# Machine code.


@pytest.fixture(scope="module")
def every():
    """The results for each kernel, for all architectures."""
    if reason := kernels_triton.missing():
        pytest.skip(reason)
    return [row for unit in kernels_triton.survey(ARCHITECTURES) for row in unit["rows"]]


@pytest.fixture
def rows(every, architecture):
    return [row for row in every if row["architecture"] == architecture]


@each_architecture
@each_loss
def test_kernels_are_vectorized_and_keep_to_registers(loss, architecture, rows):
    rows = [row for row in rows if row["loss"] == loss]
    assert rows
    assert not kernels.problems(rows)


@each_architecture
def test_rescaling_is_vectorized_and_keeps_to_registers(architecture, rows):
    rows = [row for row in rows if row["template"] == "rescale"]
    assert not kernels.problems(rows)


@each_architecture
@pytest.mark.parametrize("loss", kernels_triton.OVER_ROWS)
def test_kernels_over_rows_are_vectorized_and_keep_to_registers(loss, architecture, rows):
    rows = [row for row in rows if row["loss"] == loss]
    long = set() if loss in kernels_vectors.WITH_LISTS else {"long step"}
    assert {"step"} | long <= {row["pass"] for row in rows}
    assert not kernels.problems(rows)


@each_architecture
def test_every_kernel_is_there(architecture, rows):
    pairs = [
        "float64, float64", "float32, float32", "bfloat16, bfloat16", "float16, float16",
        "bfloat16, float32",
    ]  # fmt: skip
    passes = ("value", "step", "backward", "double backward")
    longest = spec(kernels_triton.LONGEST).kernel
    wanted = {f"rescale<{pair.partition(',')[0]}>" for pair in pairs[:4]}
    for pair in pairs:
        for loss in (row.kernel for row in SPECS):
            wanted |= {f"elementwise<{loss}, {pair}, {pass_}>" for pass_ in passes}
        for pass_ in ("weighted backward", "weighted double", "groups"):
            wanted.add(f"elementwise<{longest}, {pair}, {pass_}>")
    names = [row["name"] for row in rows]
    assert wanted <= set(names)
    assert len(names) == len(set(names))
    judged = {("triton", row["template"], row["pass"]) for row in rows}
    assert {path for path in kernels.MAIN_PATHS if path[0] == "triton"} <= judged


def test_compiling_leaves_this_process_alone():
    """This process may be using a GPU, through the driver that compilation replaces."""
    code = (
        "import triton, torch\n"
        "from lossops.elementwise.triton import ops as elementwise\n"
        "from benchmarks.kernels import cache as kernel_cache, triton as kernels_triton\n"
        "from lossops.specs.elementwise import spec\n"
        "if __name__ == '__main__':\n"
        "    before = triton.runtime.driver._active, elementwise.elementwise_kernel\n"
        "    kernel_cache.Cache._load = lambda self, name, task: None\n"
        "    kernel_cache.Cache._store = lambda self, *task: None\n"
        "    found = kernels_triton.survey(['90'], [], [])\n"
        "    assert found[0]['rows'][0]['registers'] > 0\n"
        "    after = triton.runtime.driver._active, elementwise.elementwise_kernel\n"
        "    assert before == after\n"
    )
    if reason := kernels_triton.missing():
        pytest.skip(reason)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------------
# The oldest supported Triton, which `make build` installs next to the newest.

OLDEST = Path(sys.prefix, "oldest-triton")
with_the_oldest = pytest.mark.skipif(
    not OLDEST.is_dir(), reason=f"there is no {OLDEST}: `make build`"
)
OLDEST_FIRST = {"PYTHONPATH": os.pathsep.join([str(OLDEST), *filter(None, sys.path)])}


@with_the_oldest
def test_the_oldest_has_the_same_kernels(every):
    """All kernels of one architecture, except some dtypes of elementwise losses."""
    code = (
        "import json\n"
        "from benchmarks.kernels import triton as k\n"
        "if __name__ == '__main__':\n"
        "    print(json.dumps([k.compiler(), k.survey(['90'], pairs=k.FEW_PAIRS)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **OLDEST_FIRST},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    compiler, units = json.loads(done.stdout)
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    promised = re.search(r'"triton>=([\d.]+)"', pyproject.read_text())
    assert compiler.startswith(f"Triton {promised[1]}.")
    few = [[str(dtype).removeprefix("torch.") for dtype in p] for p in kernels_triton.FEW_PAIRS]
    wanted = {
        row["name"] for row in every
        if row["architecture"] == "90"
        and (row["template"] != "elementwise" or row["dtypes"] in few
             or row["loss"] == spec(kernels_triton.LONGEST).kernel)
    }  # fmt: skip
    rows = [row for unit in units for row in unit["rows"]]
    assert {row["name"] for row in rows} == wanted
    assert not kernels.problems(rows)


@with_the_oldest
def test_the_oldest_under_the_interpreter():
    files = [f"test_{file}.py" for file in ("raw_ops", "raw_softmax", "raw_vectors")]
    rows = "float32 and (test_label_losses or test_divergences_from_a_label)"
    vectors = "test_many_rows and not multilabel or test_a_label_that_is_listed_twice"
    chosen = f"triton and (test_in_place or {rows} or {vectors})"
    assert interpreted(files, chosen, **OLDEST_FIRST) > 30
