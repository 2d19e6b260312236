"""The dependency rules between folders, and what the sources must not contain. CONTRIBUTING.md
describes the rules."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "lossops"

# What the files of a folder may include, besides their own folder and the standard library.
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


FAMILIES = ("elementwise", "softmax", "vectors")


def test_ops_know_engines_by_their_launch_functions_only():
    for path in sources("ops"):
        for name in re.findall(r'#include\s*"((?:cpu|cuda)/[^"]+)"', path.read_text()):
            assert name.endswith("/engine.h"), f"{path.name} includes {name}"


@pytest.mark.parametrize("folder", ["cpu", "cuda", "ops"])
def test_no_family_includes_another(folder):
    for path in sources(folder):
        own = path.relative_to(CSRC).parts[1]
        for name in re.findall(r'#include\s*"(?:cpu|cuda|ops)/([^"/]+)/', path.read_text()):
            if own in FAMILIES or own == "common":
                assert name in (own, "common"), f"{path} includes {name}/"


# Python: what the modules of a folder may import, besides their own folder. Modules at the top
# level of the package are listed by name.
MAY_IMPORT = {
    "core": set(),
    "families": set(),
    "elementwise": {"core"},
    "softmax": {"core"},
    "vectors": {"core"},
    "linear": {"core", "softmax"},
    "sequences": {"core"},
    "functional": {"elementwise", "softmax", "vectors", "linear", "sequences"},
    "nn": {"elementwise", "softmax", "vectors", "linear", "sequences"},
    "patching": {"functional"},
    "scripting": {"core", "functional", "nn"},
    "info": {"core"},
    "specs": {"elementwise", "functional", "softmax", "vectors"},  # none of these imports specs
    "verify": {
        "core",
        "elementwise",
        "functional",
        "linear",
        "nn",
        "softmax",
        "specs",
        "vectors",
    },
}
# core names the families' folders, and imports them when Triton is loaded.
EXCEPTIONS = {("core", "families"), ("info", "__version__")}
# The layers within the folders of families and core, from bottom to top.
LAYERS = {
    "core": [
        "contract", "library", "spread", "overrides", "transforms", "formulas", "backends",
        "fused", "labels", "arguments", "declaration", "unfused", "plain",
    ],
    "family": ["reference", "ops", "batching", "autograd", "call"],
}  # fmt: skip


def imports(path: Path) -> set[tuple[str, ...]]:
    """The modules of lossops that a file imports, as tuples of the parts of their names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lossops"):
            parts = tuple(node.module.split("."))[1:]
            found |= {(*parts, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {tuple(a.name.split(".")[1:]) for a in node.names if "lossops." in a.name}
    return found


def modules(name: str) -> list[Path]:
    folder = PACKAGE / name
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_folders_import_only_what_they_may(name):
    for path in modules(name):
        others = {parts[0] for parts in imports(path)} - {name, "_C"}
        others -= {other for where, other in EXCEPTIONS if where == name}
        assert others <= MAY_IMPORT[name], path


def test_every_module_is_in_a_folder_with_rules():
    known = {*MAY_IMPORT, "__init__", "__main__"}
    assert {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py")} <= known | {
        "__pycache__"
    }


@pytest.mark.parametrize("folder", ["core", "elementwise", "softmax", "vectors"])
def test_layers_look_down_only(folder):
    layers = LAYERS["core" if folder == "core" else "family"]
    for path in modules(folder):
        if path.stem not in layers or path.parent.name != folder:
            continue
        above = set(layers[layers.index(path.stem) + 1 :])
        within = {parts[1] for parts in imports(path) if parts[0] == folder and len(parts) > 1}
        assert not within & above, path


def test_triton_imports_its_family_and_core_only():
    for path in PACKAGE.glob("*/triton/*.py"):
        family = path.parents[1].name
        assert {parts[0] for parts in imports(path)} <= {family, "core", "families"}, path


def test_hot_path_does_not_synchronise():
    """Nothing on the hot path reads a value from the device, which would force a sync."""
    forbidden = re.compile(r"\.item\(\)|\.tolist\(\)|torch\.equal\(|\.cpu\(\)|Synchronize")
    # Exceptions: checks that the user requested or that need no sync, and values on the CPU.
    reads = {PACKAGE / "core" / "labels.py", PACKAGE / "core" / "library.py"}
    files = [
        path for name in MAY_IMPORT if name not in ("specs", "verify") for path in modules(name)
    ]
    files = [path for path in files if path not in reads]
    files += [path for folder in KNOWS for path in sources(folder)]
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


# The examples of CONTRIBUTING.md: names of a loss, and its four files.
EXAMPLES = {
    r"quantile(_loss)?": (
        "csrc/losses/elementwise.h", "lossops/elementwise/triton/kernels.py",
        "lossops/elementwise/reference.py", "lossops/elementwise/regression.py",
    ),
    r"poly(_loss)?": (
        "csrc/losses/softmax.h", "lossops/softmax/triton/losses.py",
        "lossops/softmax/reference.py", "lossops/softmax/classification.py",
    ),
    r"cosine_embedding(_loss)?": (
        "csrc/losses/vectors.h", "lossops/vectors/triton/losses.py",
        "lossops/vectors/reference.py", "lossops/vectors/pairs.py",
        "tests/raw_vectors.py",  # the size of its terms, which can cancel
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_loss_is_four_files(name):
    """Outside its files, only tests of its own properties name a loss, and the benchmarks that
    train some chosen losses. The shared parts of the tests name none."""
    files = [*CSRC.rglob("*.*"), *PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    files += [path for path in (ROOT / "tests").rglob("*.py") if not path.stem.startswith("test_")]
    files = [path for path in files if (ROOT / "benchmarks" / "claims") not in path.parents]
    mentions = re.compile(rf"[\"'. ]{name}\b(?! of)")
    code = {path: re.sub(r'"""[\s\S]*?"""|//.*|#.*', "", path.read_text()) for path in files}
    found = {path.relative_to(ROOT).as_posix() for path in files if mentions.search(code[path])}
    assert found == set(EXAMPLES[name])
