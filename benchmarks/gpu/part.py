"""Communication between the process of a part and the run that started it: rows and an exit status.

The process writes each result immediately as one line of JSON. Its exit status tells how it ended.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu import processes

ROOT = Path(__file__).resolve().parents[2]
Row = dict[str, Any]
PASSED, FAILED, OUT_OF_TIME, SKIPPED = 0, 1, 75, 77  # exit statuses
STATUS = {PASSED: "passed", FAILED: "failed", OUT_OF_TIME: "timed out", SKIPPED: "skipped"}


class FailedError(Exception):
    """The part found something wrong."""


class SkippedError(Exception):
    """The part cannot run here."""


class OutOfTimeError(Exception):
    """The part ran out of time."""


@dataclass
class Task:
    """The arguments of a part's process."""

    rows: Path  # the output file
    seconds: float  # until it is killed
    dry: bool
    words: list[str] = field(default_factory=list)  # interpreted by the part
    start: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    def left(self) -> float:
        """Seconds that are left."""
        return self.start + self.seconds - time.monotonic()

    def emit(self, row: Row) -> None:
        with self.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, default=str) + "\n")


def main(work: Callable[[Task], None], arguments: Sequence[str] | None = None) -> int:
    """Runs the part and returns its exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("words", nargs="*")
    task = Task(**vars(parser.parse_args(arguments)))
    signal.signal(signal.SIGTERM, lambda *_: _end())
    status = {FailedError: FAILED, SkippedError: SKIPPED, OutOfTimeError: OUT_OF_TIME}
    try:
        work(task)
    except tuple(status) as end:
        task.emit({"kind": "reason", "text": str(end)})
        print(f"{type(end).__name__}: {end}", file=sys.stderr)
        return status[type(end)]
    return PASSED


def _end() -> None:
    processes.end_all()
    os._exit(OUT_OF_TIME)  # a normal exit would wait for threads that wait for those processes


def read_rows(path: Path) -> list[Row]:
    """The rows written so far. The last line may be incomplete if the process was killed."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def last_line(text: str) -> str:
    return next((line[:300] for line in reversed(text.splitlines()) if line.strip()), "no output")


def rows_of(rows: Sequence[Row], kind: str) -> list[Row]:
    return [row for row in rows if row.get("kind") == kind]
