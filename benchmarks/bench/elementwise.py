"""Speed, memory and accuracy of the elementwise losses, compared with torch and with the
targets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lossops.specs.elementwise import SPECS, Spec
from lossops.verify.machine import devices

Row = dict[str, Any]
PARTS = ("step", "half", "tiny", "memory", "accuracy")


def bench(
    wanted: Iterable[Spec] = SPECS,
    advance: Callable[[str], None] = lambda what: None,
    quick: bool = False,
    parts: Iterable[str] = PARTS,
) -> list[Row]:
    """Measures the losses. All contenders for a loss run in one process. Returns one row per
    result."""
    rows = []
    for task in tasks([spec.name for spec in wanted], quick, tuple(parts)):
        for row in _in_process(task):
            rows.append(row)
            if row["kind"] != "accuracy" or row["dtype"] == "float16":
                advance(f"{row['kind']} {row.get('loss', '')} {row.get('memory', '')}")
    return rows


def pieces(wanted: Iterable[Spec], parts: Iterable[str] = PARTS) -> int:
    """How many times ``bench`` calls ``advance``."""
    each = {"step": 2, "half": 2, "tiny": 1, "memory": 2, "accuracy": 1}
    return len(list(wanted)) * len(devices()) * sum(each[part] for part in parts)


def tasks(losses: list[str], quick: bool, parts: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The tasks, one for each process."""
    for device in devices():
        for warm in (False, True) if device == "cpu" else (False,):
            here = {part: part in parts and not (warm and part not in ("step", "half"))
                    for part in PARTS}  # fmt: skip
            if any(here.values()):
                yield here | {
                    "losses": losses,
                    "device": device,
                    "warm": warm,
                    "compile": True,
                    "count": 1 << (18 if quick else 25),
                    "half_count": 1 << (19 if quick else 26),
                    "rounds": 3 if quick else 15,
                    "values": 20_000 if quick else 10_000_000,
                }


def _in_process(task: dict[str, Any], worker: str = "benchmarks.bench.worker") -> Iterator[Row]:
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", worker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        process.stdin.write(json.dumps(task))
        process.stdin.close()
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
            status = process.wait()
        finally:
            process.kill()
        if status:
            errors.seek(0)
            tail = errors.read()[-2000:]
            raise RuntimeError(f"a measurement ended with status {status}:\n{tail}")
