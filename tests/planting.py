"""Planted bugs: copies of the CUDA sources with one change, which a check in a separate process
must detect.

``planted.json`` lists the detected bugs, each with a digest of the changed sources and of its
check. A bug is planted again when either changes, and always with LOSSOPS_TEST_ALL=1.
"""

import ast
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cuda_on_cpu import build

from benchmarks.kernels.cache import digest, included, python_code

ROOT = Path(__file__).parents[1]
FOUND = Path(__file__).with_name("planted.json")

# Edits that leave out what a check does not need: file, pattern, replacement.
FEWER_ELEMENTWISE = [
    ("losses/elementwise.h", r"LossList<OfDifference<Mse>,[^;]*;", "LossList<OfDifference<Mse>>;")
]
FEWER_SOFTMAX = [
    ("losses/softmax.h", r"LossList<CrossEntropy, Focal, Poly>", "LossList<CrossEntropy>"),
    ("losses/softmax.h", r"LossList<Kl, ReverseKl[^;]*;", "LossList<Kl>;"),
    (
        "cuda/softmax/kernels.cuh", r": f\.template operator\(\)<JensenShannon, S>\(\)",
        ": f.template operator()<Kl, S>()",
    ),
    ("cuda/softmax/kernels.cuh", r"template operator\(\)<__half>", "template operator()<float>"),
]  # fmt: skip


def check_that_it_is_found(
    bug: str, change, finding: str, folder: Path, seed: int, module: str, function="examine",
    fewer=(), others=(), **environment: str,
) -> None:  # fmt: skip
    """Plants a bug, and asserts that a function of a test module fails with a message that matches
    ``finding``."""
    csrc = copy(folder, *change, fewer)
    state = _state(csrc, others, module, [function, finding, *map(str, environment.items())])
    name = f"{module}: {bug}"
    if os.environ.get("LOSSOPS_TEST_ALL") != "1" and _found().get(name) == state:
        return
    library = build.kernels(folder / "build", csrc, others)
    run = examine(library, seed, module, function, **environment)
    assert run.returncode != 0
    last = run.stderr[-1500:]
    assert re.search(finding, last), last
    with open(ROOT / "build" / "planted.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = dict(sorted((_found() | {name: state}).items()))
        FOUND.write_text(json.dumps(found, indent=1) + "\n")


def _found() -> dict[str, str]:
    return json.loads(FOUND.read_text()) if FOUND.exists() else {}


def _state(csrc: Path, others, module: str, texts: list[str]) -> str:
    """A digest of everything that determines whether a bug is found: the compiled sources, the
    device that runs them, and the check."""
    cuda = csrc / "cuda"
    compiled = [p for p in cuda.rglob("*.cu") if str(p.relative_to(cuda)) not in others]
    files = [path for source in compiled for path in included(source, csrc)]
    tests = Path(__file__).parent
    files += [*tests.glob("raw_*.py"), tests / "interpreter.py"]
    files += [p for p in Path(build.__file__).parent.iterdir() if p.suffix in (".cpp", ".h", ".py")]
    library = ROOT / "lossops"  # the expected results
    files += [*library.rglob("reference.py"), library / "core" / "formulas.py"]
    files += [*library.glob("*/ops.py"), library / "core" / "library.py"]
    text = (tests / f"{module}.py").read_text()
    own = [
        python_code(node)
        for node in ast.parse(text).body
        if not (isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))
        and not (isinstance(node, ast.Assign) and ast.unparse(node).startswith("PLANTED"))
        and not isinstance(node, ast.Expr)  # the docstring
    ]
    return digest([*texts, *own], files)


def plant(folder: Path, file: str, old: str, new: str, fewer, others=()) -> Path:
    """Compiles the kernels of a copy of the sources with one replacement.

    ``others`` are sources that need not be compiled again. The objects compiled from the originals
    are used instead.
    """
    return build.kernels(folder / "build", copy(folder, file, old, new, fewer), others)


def copy(folder: Path, file: str, old: str, new: str, fewer) -> Path:
    """A copy of the sources with one replacement."""
    csrc = folder / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    for name, pattern, replacement in fewer:
        path = csrc / name
        text, count = re.subn(pattern, replacement, path.read_text())
        assert count == 1, f"{name} no longer contains {pattern}"
        path.write_text(text)
    path = csrc / "cuda" / file
    text = path.read_text()
    assert text.count(old) >= 1, f"{file} no longer contains {old!r}"
    path.write_text(text.replace(old, new, 1))
    return csrc


def untouched(file: str) -> list[str]:
    """The sources that neither are nor include a file, directly or indirectly."""
    folder = ROOT / "csrc" / "cuda"
    users, found = {file}, 0
    while len(users) != found:
        found = len(users)
        for path in folder.rglob("*.cu*"):
            included = re.findall(r'#include "cuda/([^"]+)"', path.read_text())
            if users & set(included):
                users.add(str(path.relative_to(folder)))
    return [n for p in folder.rglob("*.cu") if (n := str(p.relative_to(folder))) not in users]


def examine(
    library: Path, seed: int, module: str, function: str, **environment: str
) -> subprocess.CompletedProcess:
    """Calls a function of a test module with a library's kernels. Prints "passed" at the end."""
    code = f"import random, torch, {module} as t; random.seed({seed}); "
    code += f"torch.manual_seed({seed}); t.{function}(); print('passed')"
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    own = {"LOSSOPS_TEST_CUDA_LIBRARY": str(library), "PYTHONPATH": paths}
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **own, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
