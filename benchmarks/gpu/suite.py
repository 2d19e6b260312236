"""Parts ``tests_native`` and ``tests_triton``: the tests on the device, with one backend."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu import processes
from benchmarks.gpu.part import ROOT, FailedError, OutOfTimeError, Row, SkippedError, Task, main

SWITCH = "LOSSOPS_TEST_DEVICE"
WORKERS = 8
PATIENCE = 20.0  # seconds that pytest gets to write its report when it is told to stop
# Tests that cover several backends by themselves run the other backend in its own part.
OTHERS = {"native": "triton", "triton": "native"}
DRY_TESTS = ("tests/test_errors.py",)


def suite(task: Task) -> None:
    backend, *targets = task.words
    if importlib.util.find_spec("pytest") is None:
        raise FailedError(f"{sys.executable} has no pytest")
    if task.dry and backend == "triton":
        raise SkippedError("Triton kernels need a GPU; their own tests interpret them without one")
    variables = {"LOSSOPS_BACKEND": backend}
    workers = 0 if task.dry or importlib.util.find_spec("xdist") is None else WORKERS
    if workers:  # otherwise each would start a thread per core
        variables["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    if not task.dry:
        variables |= {SWITCH: "cuda", "LOSSOPS_TEST_ALL": "1"}
        if not knows_switch(ROOT / "tests"):
            raise FailedError(f"the tests know no {SWITCH}: they would not run on the device")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        targets = targets or (DRY_TESTS if task.dry else ("tests",))
        command = pytest_command(report, backend, targets, workers)
        print("running", *command, flush=True)
        status = processes.execute(
            command, task.left() - PATIENCE - 5, sys.stdout.buffer, ask=signal.SIGINT,
            patience=PATIENCE, cwd=ROOT, env=os.environ | variables,
        )  # fmt: skip
        row = {"kind": "tests", "backend": backend, "finished": status is not None}
        row |= summary(report) if report.exists() else {}
    if status is None:  # tests that were running are reported as passed
        row["passed"] = max(0, row.get("passed", 0) - max(1, workers))
    task.emit(row)
    judge(row, status)


def pytest_command(report: Path, backend: str, targets: Sequence[str], workers: int) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}"]
    # If a package that some tests need is missing, the others still run.
    command += ["--continue-on-collection-errors", "-p", "no:cacheprovider"]
    command += ["-k", f"not cuda_on_cpu and not cuda-{OTHERS[backend]}"]
    command += ["-n", str(workers)] if workers else []
    return [*command, *targets]


def knows_switch(folder: Path) -> bool:
    """Whether the tests read the variable that sends them to the device."""
    return SWITCH in (folder / "conftest.py").read_text(encoding="utf-8")


def summary(report: Path) -> Row:
    """The contents of a JUnit file: numbers, names and reasons."""
    counts = Counter(passed=0, failed=0, skipped=0)
    failures, skips, seconds = [], Counter(), 0.0
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        seconds += float(case.get("time") or 0)
        wrong = [case.find(tag) for tag in ("failure", "error") if case.find(tag) is not None]
        if wrong:
            counts["failed"] += 1
            failures.append({"name": name, "message": (wrong[0].get("message") or "")[:500]})
        elif (skipped := case.find("skipped")) is not None:
            counts["skipped"] += 1
            skips[(skipped.get("message") or "")[:200]] += 1
        else:
            counts["passed"] += 1
    reasons = [{"reason": reason, "count": count} for reason, count in skips.most_common()]
    return {**counts, "test_seconds": round(seconds, 1), "failures": failures, "skips": reasons}


def judge(row: Row, status: int | None) -> None:
    """Raises unless all tests passed."""
    ran = row.get("passed", 0) + row.get("failed", 0)
    if row.get("failed"):
        names = ", ".join(failure["name"] for failure in row["failures"][:3])
        rest = " …" if row["failed"] > 3 else ""
        raise FailedError(f"{row['failed']} of {ran} tests failed: {names}{rest}")
    if status is None:
        raise OutOfTimeError(f"at least {ran} tests had passed when the time was up")
    if status or not ran:
        raise FailedError(f"pytest ended with status {status} after {ran} tests")


if __name__ == "__main__":
    sys.exit(main(suite))
