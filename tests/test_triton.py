"""The Triton backend without a GPU: its numbers in the interpreter, and its machine code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from lossops.report import kernels, kernels_triton, kernels_vectors
from lossops.report.occupancy import ARCHITECTURES
from lossops.specs import SPECS, spec

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
each_loss = pytest.mark.parametrize("loss", [row.kernel for row in SPECS])


# Which tests, in parts that several processes can share.
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
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [*command, f"test_{file}.py"],
        cwd=Path(__file__).parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed
    assert int(passed[1]) > 50
    assert " skipped" not in run.stdout


# ---------------------------------------------------------------------------------------------
# Machine code.


@pytest.fixture(scope="module")
def every():
    """What is known of each kernel, for all architectures."""
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
    """It may be using a GPU, through the driver that compiling does without."""
    code = (
        "import triton, torch\n"
        "from lossops.triton import elementwise\n"
        "from lossops.report import kernel_cache, kernels_triton\n"
        "from lossops.specs import spec\n"
        "if __name__ == '__main__':\n"
        "    before = triton.runtime.driver._active, elementwise.elementwise_kernel\n"
        "    kernel_cache.Cache._load = lambda self, name: None\n"
        "    kernel_cache.Cache._store = lambda self, name, result: None\n"
        "    found = kernels_triton.survey(['90'], [], [])\n"
        "    assert found[0]['rows'][0]['registers'] > 0\n"
        "    after = triton.runtime.driver._active, elementwise.elementwise_kernel\n"
        "    assert before == after\n"
    )
    if reason := kernels_triton.missing():
        pytest.skip(reason)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
