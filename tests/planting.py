"""Planted bugs: copies of the CUDA sources with one thing changed, which an examination in a
process of its own must find."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cuda_on_cpu import build

ROOT = Path(__file__).parents[1]

# How to leave out what an examination does not need: file, pattern, replacement.
FEWER_ELEMENTWISE = [
    ("losses/elementwise.h", r"LossList<OfDifference<Mse>,[^;]*;", "LossList<OfDifference<Mse>>;")
]
FEWER_SOFTMAX = [
    ("losses/softmax.h", r"LossList<CrossEntropy, Focal, Poly>", "LossList<CrossEntropy>"),
    ("losses/softmax.h", r"LossList<Kl, ReverseKl[^;]*;", "LossList<Kl>;"),
    (
        "cuda/softmax_kernels.cuh", r": f\.template operator\(\)<JensenShannon, S>\(\)",
        ": f.template operator()<Kl, S>()",
    ),
    ("cuda/softmax_kernels.cuh", r"template operator\(\)<__half>", "template operator()<float>"),
]  # fmt: skip


def plant(folder: Path, file: str, old: str, new: str, fewer, others=()) -> Path:
    """The kernels of a copy of the sources with a piece replaced.

    ``others`` are sources that need not be compiled again: what was compiled of the originals
    will do.
    """
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
    return build.kernels(folder / "build", csrc, others)


def untouched(file: str) -> list[str]:
    """The sources that do not include a file, and are not it."""
    folder = ROOT / "csrc" / "cuda"
    users, found = {file}, 0
    while len(users) != found:
        found = len(users)
        for path in folder.rglob("*.cu*"):
            included = re.findall(r'#include "cuda/([^"]+)"', path.read_text())
            if users & set(included):
                users.add(str(path.relative_to(folder)))
    return [path.name for path in folder.glob("*.cu") if path.name not in users]


def examine(
    library: Path, seed: int, module: str, function: str, **environment: str
) -> subprocess.CompletedProcess:
    """Calls a function of a test module on a library's kernels; prints "passed" at the end."""
    code = f"import random, torch, {module} as t; random.seed({seed}); "
    code += f"torch.manual_seed({seed}); t.{function}(); print('passed')"
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    own = {"LOSSOPS_TEST_CUDA_LIBRARY": str(library), "PYTHONPATH": paths}
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **own, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
