"""Part ``build``: compiles the extension with this Python, and checks that it can be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from benchmarks.gpu import machine, processes
from benchmarks.gpu.part import ROOT, FailedError, OutOfTimeError, Task, main

_REPORT = "import json, lossops; print(json.dumps(lossops.info()))"


def build(task: Task) -> None:
    environment = os.environ.copy()
    if not task.dry:
        # Building only for this GPU takes a third of the time and gives the same kernels.
        environment.setdefault("LOSSOPS_CUDA", "1")
        environment.setdefault("TORCH_CUDA_ARCH_LIST", machine.gpu()["capability"])
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    limit = task.left() - 15
    status = processes.execute(command, limit, sys.stdout.buffer, cwd=ROOT, env=environment)
    if status is None:
        raise OutOfTimeError(f"the build was not finished after {limit:.0f} s")
    if status:
        raise FailedError(f"setup.py build_ext ended with status {status}")
    info = report()
    task.emit({"kind": "build", "native": info["native"], "backends": info["backends"]})
    if not info["native"]["built"]:
        raise FailedError(f"the extension cannot be loaded: {info['native']['why_not']}")
    if not task.dry and "native" not in info["backends"].get("cuda", ()):
        raise FailedError("the extension was built without CUDA kernels")


def report() -> dict:
    """What a new process reports about the installation."""
    done = subprocess.run(
        [sys.executable, "-c", _REPORT], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    if done.returncode:
        raise FailedError(f"lossops cannot be imported: {done.stderr.strip()[-1000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main(build))
