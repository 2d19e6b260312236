"""The polynomials of cpu/common/simd.h over all floats, with each instruction set of this
machine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from lossops.core import backends

ROOT = Path(__file__).parent.parent
FLAGS = {
    "default": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c",
}


@pytest.mark.parametrize("name", FLAGS)
def test_every_float(name, tmp_path):
    names = list(FLAGS)
    if names.index(name) > names.index(backends.native_extension.instruction_set()):
        pytest.skip(f"this processor has no {name}")
    if name != "default" and platform.machine() != "x86_64":
        pytest.skip("not an x86-64 machine")
    compiler = os.environ.get("CXX") or shutil.which("g++") or "c++"
    program = tmp_path / "simd_math"
    libraries = cpp_extension.library_paths()
    subprocess.run(
        [
            compiler, "-std=c++20", "-O2", "-Wno-psabi", "-DSTEP=499", *FLAGS[name].split(),
            f"-DCPU_CAPABILITY={name.upper()}", f"-DCPU_CAPABILITY_{name.upper()}",
            f"-I{ROOT / 'csrc'}", *(f"-I{path}" for path in cpp_extension.include_paths()),
            str(ROOT / "tests/simd_math.cpp"), "-o", str(program),
            *(f"-L{path}" for path in libraries), *(f"-Wl,-rpath,{path}" for path in libraries),
            "-lc10", "-ltorch_cpu",
        ],
        check=True,
    )  # fmt: skip
    out = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    results = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert set(results) == {
        "exp", "expm1", "log1p_upto_half", "log1p_upto_one", "log", "log1p", "power_2", "power_5",
        "power_half",
    }  # fmt: skip
    for function, (worst, wrong_kind) in results.items():
        assert float(worst) <= 2, function
        assert int(wrong_kind) == 0, function
