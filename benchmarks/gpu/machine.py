"""Prints the GPU of this machine, and what is missing to use it, as JSON. Does not need lossops."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

BUILD_NEEDS = ("ninja", "pybind11", "setuptools")


def cuda_tool(name: str) -> str | None:
    """The path of a CUDA toolkit program, searched where setup.py searches nvcc."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [str(Path(home, "bin", name))] if home else []
    candidates += [shutil.which(name) or "", f"/usr/local/cuda/bin/{name}"]
    return next((path for path in candidates if path and os.access(path, os.X_OK)), None)


def missing() -> list[str]:
    """What a real run lacks, as sentences."""
    if importlib.util.find_spec("torch") is None:
        return [f"{sys.executable} has no torch"]
    import torch

    if torch.version.cuda is None:
        return [f"the torch of {sys.executable}, {torch.__version__}, was built without CUDA"]
    found = []
    if not torch.cuda.is_available():
        found.append(f"torch {torch.__version__} sees no GPU")
    if cuda_tool("nvcc") is None:
        found.append("nvcc is neither in CUDA_HOME, nor on PATH, nor in /usr/local/cuda")
    found += [
        f"{sys.executable} has no {n}" for n in BUILD_NEEDS if not importlib.util.find_spec(n)
    ]
    return found


def gpu() -> dict[str, Any] | None:
    """The first GPU, or None."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "count": torch.cuda.device_count(),
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "torch_cuda": torch.version.cuda,
        "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    }


def _first_line(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout.split("\n")[0].strip() or None) if done.returncode == 0 else None


if __name__ == "__main__":
    print(json.dumps({"missing": missing()}))
