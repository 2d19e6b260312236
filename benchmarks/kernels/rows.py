"""One kernel of the library, compiled for one architecture, as a row of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.kernels import machine_code, occupancy
from benchmarks.kernels.machine_code import Kernel
from benchmarks.kernels.occupancy import MULTIPROCESSORS, WARP, blocks_at_once

Row = dict[str, Any]
# The sources that determine the contents of a row. Stored rows are valid while these are unchanged.
READERS = tuple(Path(file) for file in (__file__, machine_code.__file__, occupancy.__file__))


class CompileError(RuntimeError):
    """A source does not compile. Contains the compiler's message."""


def row(
    engine: str,
    architecture: str,
    template: str,
    loss: str,
    dtypes: Sequence[str],
    pass_: str,
    kernel: Kernel,
) -> Row:
    """All facts about a kernel. The loss and the pass are empty if the kernel has none."""
    arguments = ", ".join(filter(None, (loss, *dtypes, pass_)))
    blocks = blocks_at_once(architecture, kernel.threads, kernel.registers, kernel.shared)
    warps = blocks * -(-kernel.threads // WARP)
    numbers = asdict(kernel)
    del numbers["symbol"]
    return {
        "engine": engine,
        "architecture": architecture,
        "name": f"{template}<{arguments}>",
        "template": template,
        "loss": loss,
        "dtypes": list(dtypes),
        "pass": pass_,
        **numbers,
        "blocks": blocks,  # per multiprocessor at once
        "warps": warps,
        "occupancy": warps / MULTIPROCESSORS[architecture].warps,
    }
