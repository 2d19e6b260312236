"""Who may know whom, and what the sources may not contain. The rules are those of
CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "lossops"

# What a folder's files may include: their own folder, these, and the standard library.
KNOWS = {
    "losses": (),
    "common": ("losses",),
    "cpu": ("losses", "common"),
    "cuda": ("losses", "common"),
    "ops": ("losses", "common", "cpu", "cuda"),
}
TORCH_HEADER = re.compile(r'#include\s*[<"](torch|ATen|c10)/')
CUDA_HEADER = re.compile(r'#include\s*[<"]cuda')


def sources(folder: str):
    files = [path for path in (CSRC / folder).rglob("*") if path.is_file()]
    assert files, folder
    return files


@pytest.mark.parametrize("folder", KNOWS)
def test_folders_know_only_whom_they_may(folder):
    for path in sources(folder):
        for name in re.findall(r'#include\s*"([^"/]+)/', path.read_text()):
            assert name in (folder, *KNOWS[folder]), f"{path.name} includes {name}/"


@pytest.mark.parametrize("folder", ["losses", "common", "cuda"])
def test_no_torch_in_mathematics_and_cuda(folder):
    for path in sources(folder):
        assert not TORCH_HEADER.search(path.read_text()), path


@pytest.mark.parametrize("folder", ["losses", "common", "cpu"])
def test_no_cuda_outside_its_folder(folder):
    for path in sources(folder):
        assert not CUDA_HEADER.search(path.read_text()), path


def test_ops_know_engines_by_their_launch_functions_only():
    families = ("elementwise", "softmax", "vectors")
    allowed = {f"{engine}/{family}.h" for engine in ("cpu", "cuda") for family in families}
    for path in sources("ops"):
        for name in re.findall(r'#include\s*"((?:cpu|cuda)/[^"]+)"', path.read_text()):
            assert name in allowed, f"{path.name} includes {name}"


# Python: nn → functional → its leaves → checks → autograd → backends → library. Nobody looks back
# up.
LAYERS = [
    "library", "overrides", "spread", "reference", "softmax_reference", "vectors_reference",
    "contract", "calls", "backends", "batching", "autograd", "checking", "plain",
    "softmax_autograd", "linear_autograd", "checks", "softmax_checks", "composed", "vectors",
    "probabilities", "classification", "divergences", "likelihoods", "linear", "margins",
    "pairs", "regions", "sequences", "functional", "nn_composed", "nn_divergences", "nn",
    "patching", "scripting",
]  # fmt: skip
READERS = {
    "elementwise_spec",
    "specs",
    "softmax_in_torch",
    "softmax_specs",
    "report",
    "__main__",
}  # of the library, never read by it


def imports(path: Path) -> set[str]:
    """The modules of lossops that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "lossops":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("lossops."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("lossops.")}
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_look_down_only(layer):
    above = set(LAYERS[LAYERS.index(layer) + 1 :]) | READERS
    assert not imports(PACKAGE / f"{layer}.py") & above


def test_triton_knows_only_the_library():
    for path in (PACKAGE / "triton").glob("*.py"):
        assert imports(path) <= {"library", "calls", "triton"}, path


def test_hot_path_does_not_synchronise():
    """Nothing that reads a number off the device, which would stall it."""
    forbidden = re.compile(r"\.item\(\)|\.tolist\(\)|torch\.equal\(|\.cpu\(\)|Synchronize")
    # Where it is asked to, or nobody has to wait; and where numbers lie on the CPU.
    reads = {"checking", "library"}
    files = [PACKAGE / f"{layer}.py" for layer in LAYERS if layer not in reads]
    files += list((PACKAGE / "triton").glob("*.py")) + [p for d in KNOWS for p in sources(d)]
    for path in files:
        code = re.sub(r'"""[\s\S]*?"""', "", path.read_text())  # examples in docstrings may
        assert not forbidden.search(code), path


def test_no_fast_math_and_no_float_atomics():
    flags = (ROOT / "setup.py").read_text()
    for flag in ("fast", "-funsafe", "-fassociative", "-ffinite", "-freciprocal", "-std=gnu"):
        assert flag not in flags, flag
    for path in sources("cuda"):
        text = path.read_text()
        for call in re.findall(r"atomic\w+\s*\(([^,]+),", text):
            integer = "unsigned" in call or re.search(rf"unsigned\* {re.escape(call)} =", text)
            assert integer or "ticket" in call, f"{path.name}: atomic on {call}"


def test_every_file_has_one_idea():
    for path in [*CSRC.rglob("*.*"), *PACKAGE.rglob("*.py")]:
        if path.suffix in (".h", ".cpp", ".cu", ".cuh", ".inc", ".py"):
            lines = len(path.read_text().splitlines())
            assert lines <= 450, f"{path.relative_to(ROOT)} has {lines} lines"
