"""Runs the parts in order within their time limits, and keeps their outcomes."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu import processes
from benchmarks.gpu.part import ROOT, STATUS, Row, last_line, read_rows, rows_of

SECONDS = 510  # for all parts; the final steps take a few more
FINISH_SECONDS = 25
LOG, LOG_BYTES = "run.log", 12 << 20
# A part that ended like this is not run again.
FINISHED = ("passed", "failed", "skipped")
GOOD = ("passed", "skipped")
# Variables of the caller that would change what is tested or measured.
_CLEARED = ("LOSSOPS_BACKEND", "LOSSOPS_TEST_DEVICE", "TRITON_INTERPRET")
_SOURCES = (
    "csrc", "lossops", "tests", "benchmarks/bench", "benchmarks/gpu", "setup.py", "pyproject.toml",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A part of the work, done by one module."""

    name: str
    module: str
    seconds: float  # guaranteed, however long the earlier parts took
    words: tuple[str, ...] = ()
    needed: bool = False  # by all later parts


PARTS = (
    Part("build", "benchmarks.gpu.build", 100, needed=True),
    Part("tests_native", "benchmarks.gpu.suite", 90, ("native",)),
    Part("tests_triton", "benchmarks.gpu.suite", 90, ("triton",)),
    Part("sanitizer", "benchmarks.gpu.sanitizer", 80),
    Part("measure", "benchmarks.gpu.measure", 150),
)


@dataclass(frozen=True)
class Options:
    """The options of the caller."""

    out: Path
    dry: bool = False
    again: bool = False
    tests: tuple[str, ...] = ()  # if set, only these


def run(parts: Sequence[Part], options: Options) -> int:
    """Runs the parts that are not finished yet. Returns the exit status."""
    options.out.mkdir(parents=True, exist_ok=True)
    same = {"sources": digest(), "dry": options.dry, "python": sys.executable}
    same["tests"] = list(options.tests)
    records = {part.name: _finished(part, options, same) for part in parts}
    waiting = [part for part in parts if records[part.name] is None]
    start = time.monotonic()
    blocked = interrupted = ""
    for part in parts:
        record = records[part.name]
        if record is not None:
            _say(part, record, " (earlier)")
        elif blocked or interrupted:
            record = _record(part, options, same, "not run", reason=blocked or interrupted)
            _say(part, record)
        else:
            later = sum(p.seconds for p in waiting[waiting.index(part) + 1 :])
            limit = SECONDS - (time.monotonic() - start) - later
            print(f"{part.name:<14} …", flush=True)
            record = _run_part(part, options, same, limit)
            _say(part, record)
        if part.needed and record["status"] not in GOOD:
            blocked = f"{part.name} {record['status']}"
        if record["status"] == "interrupted":
            interrupted = "interrupted"
        records[part.name] = record
    if interrupted:
        return 130
    finished = _finish(options, fresh=bool(waiting))
    return 0 if finished and all(r["status"] in GOOD for r in records.values()) else 1


def digest() -> str:
    """A digest of everything that the outcomes depend on. Outcomes of other sources are not
    reused."""
    found = hashlib.sha256()
    for name in _SOURCES:
        for path in sorted(_files(ROOT / name)):
            found.update(str(path.relative_to(ROOT)).encode())
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    found = [path, *path.rglob("*")]
    return [file for file in found if file.is_file() and file.suffix not in (".so", ".pyc")]


def environment() -> dict[str, str]:
    """The environment of the parts: this checkout takes precedence over installed packages."""
    kept = {name: value for name, value in os.environ.items() if name not in _CLEARED}
    paths = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _finished(part: Part, options: Options, same: Row) -> Row | None:
    """The outcome of the part in an earlier run of the same kind with the same sources, or None."""
    try:
        record = json.loads((options.out / f"{part.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if options.again or record["status"] not in FINISHED:
        return None
    return record if all(record.get(key) == value for key, value in same.items()) else None


def _record(part: Part, options: Options, same: Row, status: str, **more) -> Row:
    """Creates the record of a part, and writes it to its file."""
    now = datetime.datetime.now(datetime.timezone.utc)
    record = {
        "part": part.name,
        "status": status,
        "reason": "",
        "seconds": 0.0,
        "date": now.isoformat(timespec="seconds"),
        "rows": [],
    }
    record |= same | more
    path = options.out / f"{part.name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def _run_part(part: Part, options: Options, same: Row, limit: float) -> Row:
    rows = options.out / f"{part.name}.jsonl"
    rows.unlink(missing_ok=True)
    command = [sys.executable, "-m", part.module, "--rows", str(rows), "--seconds", f"{limit:.0f}"]
    command += [*(["--dry"] if options.dry else []), "--", *part.words]
    command += options.tests if part.name.startswith("tests") else ()
    start = time.monotonic()
    with (options.out / LOG).open("ab") as log:
        log.write(f"\n== {part.name}: {' '.join(command)}\n".encode())
        log.flush()
        before = log.tell()
        try:
            ended = processes.execute(command, limit, log, cwd=ROOT, env=environment())
            status = "timed out" if ended is None else STATUS.get(ended, "failed")
        except KeyboardInterrupt:
            ended, status = None, "interrupted"
    said = (options.out / LOG).read_bytes()[before:].decode(errors="replace")
    found = read_rows(rows)
    rows.unlink(missing_ok=True)
    reasons = rows_of(found, "reason")
    reason = reasons[-1]["text"] if reasons else ""
    if status == "timed out" and not reason:
        reason = f"stopped after {limit:.0f} s"
    elif status == "failed" and not reason:
        reason = f"ended with status {ended}: {last_line(said)}"
    _shorten(options.out / LOG)
    return _record(
        part, options, same, status,
        reason=reason, seconds=round(time.monotonic() - start, 1), limit=round(limit),
        rows=[row for row in found if row not in reasons],
    )  # fmt: skip


def _shorten(log: Path) -> None:
    size = log.stat().st_size
    if size > LOG_BYTES:
        with log.open("rb") as file:
            file.seek(size - LOG_BYTES // 2)
            end = file.read()
        log.write_bytes(b"... the beginning was cut off\n" + end)


def _finish(options: Options, fresh: bool) -> bool:
    """Combines the outcomes of all parts, in a process that may import torch and the built
    extension."""
    command = [sys.executable, "-m", "benchmarks.gpu.finish", str(options.out)]
    new = fresh or not (options.out / "result.json").exists()
    command += ["--keep"] if new and not options.dry else []
    ended = processes.execute(command, FINISH_SECONDS, sys.stdout, cwd=ROOT, env=environment())
    if ended != 0:
        print("the results could not be put together", file=sys.stderr)
    return ended == 0


def _say(part: Part, record: Row, note: str = "") -> None:
    reason = f": {record['reason'].splitlines()[0][:160]}" if record["reason"] else ""
    line = f"{part.name:<14} {record['status']}, {record['seconds']:.1f} s{note}{reason}"
    print(line, flush=True)
