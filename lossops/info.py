"""Reports what this installation can do."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import torch

from lossops.core import backends


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def info() -> dict[str, Any]:
    """Describes the installation: versions, machine, build options of the extension, and the
    backends that run on each device.

    Example:
        >>> import lossops
        >>> "reference" in lossops.info()["backends"]["cpu"]
        True
    """
    from lossops import __version__

    native: dict[str, Any] = {"built": backends.native_extension is not None}
    if backends.native_extension is None:
        native["why_not"] = str(backends.native_import_error)
    else:
        native |= backends.native_extension.build_info()
        native["instruction_set"] = backends.native_extension.instruction_set()
    has_gpu = torch.cuda.is_available()
    return {
        "lossops": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "native": native,
        "backends": {
            device: list(backends.backends_for(device))
            for device in ("cpu", *(("cuda",) if has_gpu else ()))
        },
        "chosen": backends.chosen() or "the first that can run a call",
    }
