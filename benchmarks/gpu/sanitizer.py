"""Part ``sanitizer``: runs the four tools of compute-sanitizer over a small run of every kernel."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

from benchmarks.gpu import machine, part, processes
from benchmarks.gpu.kernels import DONE
from benchmarks.gpu.part import ROOT, FailedError, OutOfTimeError, Row, SkippedError, Task

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
BACKENDS = ("native", "triton")
FOUND = 66  # the exit status that a tool is told to use for findings
QUOTED_LINES = 30
_MARK = re.compile(r"^=+ ?", re.M)
_SUMMARY = re.compile(r"^=+ ERROR SUMMARY: (\d+) errors?", re.M)
_RACES = re.compile(
    r"^=+ RACECHECK SUMMARY: (\d+) hazards? displayed \((\d+) errors?, (\d+) warnings?\)", re.M
)
_UNSEEN = ("terminated before first instrumented API call", "No attachable process found")
# torch's allocator would return pieces of large blocks, in which no tool detects an out-of-bounds
# access. With lazy loading, kernels are loaded on their first call, not all of torch's at the
# start.
_ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_MODULE_LOADING": "LAZY"}


def parse(text: str) -> Row:
    """Parses the output of a tool. ``errors`` is None if it printed no summary."""
    errors = [int(number) for number in _SUMMARY.findall(text)]
    races = [tuple(map(int, numbers)) for numbers in _RACES.findall(text)]
    counted = bool(errors or races) and not any(words in text for words in _UNSEEN)
    said = [_MARK.sub("", line) for line in text.splitlines() if line.startswith("=========")]
    said = [line for line in said if line.strip() and "SANITIZER" not in line]
    return {
        "errors": sum(errors) + sum(race[1] for race in races) if counted else None,
        "hazards": sum(race[0] for race in races),
        "warnings": sum(race[2] for race in races),
        "kernels_ran": DONE in text,
        "said": said[:QUOTED_LINES],
    }


def verdict(found: Row, status: int | None) -> tuple[str, str]:
    """The status and its reason."""
    if found["errors"]:
        return "failed", f"{found['errors']} errors"
    if found["hazards"]:
        return "failed", f"{found['hazards']} hazards"
    if status is None:
        return "timed out", "not finished"
    if found["errors"] is None:
        return "failed", "the tool gave no account of what it saw"
    if not found["kernels_ran"]:
        return "failed", "not all kernels ran"
    if status:
        return "failed", f"ended with status {status}"
    return "passed", ""


def sanitizer(task: Task) -> None:
    if task.dry:
        _without_tool(task, BACKENDS[0])
        raise SkippedError("compute-sanitizer needs a GPU; the kernels it looks at ran on the CPU")
    program = machine.cuda_tool("compute-sanitizer")
    if program is None:
        raise SkippedError("there is no compute-sanitizer")
    with ThreadPoolExecutor(len(BACKENDS)) as pool:
        checks = [pool.submit(_check_backend, task, program, backend) for backend in BACKENDS]
    rows, failed, late = [], [], []
    for check in checks:
        try:
            rows += check.result()
        except FailedError as error:
            failed.append(str(error))
        except OutOfTimeError as error:
            late.append(str(error))
    for row in rows:
        name = f"{row['tool']} of {row['backend']}"
        # The tools compete for some resources. A tool that failed for that reason is run again
        # alone.
        if row["errors"] is None and row["status"] == "failed" and task.left() > 10:
            row |= _check(task, program, row["backend"], row["tool"]) | {"repeated": True}
        task.emit(row)
        if row["status"] == "failed":
            failed.append(f"{name}: {row['reason']}")
        elif row["status"] == "timed out":
            late.append(name)
    if failed:
        raise FailedError("; ".join(failed))
    if late:
        raise OutOfTimeError(f"not finished: {', '.join(late)}")


def _check_backend(task: Task, program: str, backend: str) -> list[Row]:
    """Runs all tools over one backend's kernels, in parallel."""
    _without_tool(task, backend)
    with ThreadPoolExecutor(len(TOOLS)) as pool:
        return list(pool.map(lambda tool: _check(task, program, backend, tool), TOOLS))


def _without_tool(task: Task, backend: str) -> None:
    """Raises if the kernels cannot run at all. Also fills Triton's cache, so that no tool has to
    instrument the compilation."""
    status, text = _run(kernels(backend, task.device), task.left() - 5, os.environ)
    print(f"== {backend}\n{text}", flush=True)
    task.emit({"kind": "kernels", "backend": backend, "ran": DONE in text})
    if status is None:
        raise OutOfTimeError(f"the {backend} kernels did not end, without any sanitizer")
    if status or DONE not in text:
        raise FailedError(
            f"the {backend} kernels fail without any sanitizer: {part.last_line(text)}"
        )


def kernels(backend: str, device: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu.kernels", backend, device]


def _check(task: Task, program: str, backend: str, tool: str) -> Row:
    row = {"kind": "sanitizer", "tool": tool, "backend": backend}
    if task.left() < 8:
        return row | parse("") | {"status": "timed out", "reason": "not begun"}
    command = [program, "--tool", tool, "--error-exitcode", str(FOUND)]
    command += kernels(backend, task.device)
    status, text = _run(command, task.left() - 5, os.environ | _ENVIRONMENT)
    print(f"== {tool} of {backend}: status {status}\n{text[:50_000]}", flush=True)
    found = parse(text)
    status, reason = verdict(found, status)
    return row | found | {"status": status, "reason": reason}


def _run(command: list[str], seconds: float, environment) -> tuple[int | None, str]:
    with tempfile.TemporaryFile() as output:
        status = processes.execute(
            command, seconds, output, patience=2, cwd=ROOT, env=dict(environment)
        )
        output.seek(0)
        return status, output.read().decode(errors="replace")


if __name__ == "__main__":
    sys.exit(part.main(sanitizer))
