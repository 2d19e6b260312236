"""Tests of ``make gpu`` on a machine without a GPU: dry runs, and stand-ins for everything that
needs a GPU."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import expect_ops

from benchmarks import readme
from benchmarks.bench.cases import Elements, name_of
from benchmarks.gpu import finish, kernels, part, run, sanitizer, suite, visits
from benchmarks.gpu import machine as gpu_machine
from lossops.core import library
from lossops.specs.elementwise import SPECS
from lossops.specs.softmax import ROW_SPECS
from lossops.verify import machine

ROOT = Path(__file__).parents[1]
PARTS = ["build", "tests_native", "tests_triton", "sanitizer", "measure"]


def gpu_sh(*arguments, cwd=ROOT, **options) -> subprocess.CompletedProcess:
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *map(str, arguments)]
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=400, **options
    )


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def dry(tmp_path_factory) -> Path:
    """The folder of one dry run, created by the test process that comes first."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder
    out = folder / "gpu-dry"
    with (folder / "gpu-dry.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "printed").exists():
            done = gpu_sh(out, "--dry")
            assert done.returncode == 0, done.stdout + done.stderr
            (out / "printed").write_text(done.stdout, encoding="utf-8")
    return out


# A dry run


def test_every_part_leaves_a_record(dry):
    records = {name: load(dry / f"{name}.json") for name in PARTS}
    statuses = [record["status"] for record in records.values()]
    assert statuses == ["passed", "passed", "skipped", "skipped", "passed"]
    assert all(record["dry"] and record["seconds"] > 0 for record in records.values())
    assert len({record["sources"] for record in records.values()}) == 1
    for name in ("tests_triton", "sanitizer"):
        assert "need" in records[name]["reason"]
    (row,) = part.rows_of(records["tests_native"]["rows"], "tests")
    assert row["passed"] > 20
    assert row["failed"] == 0
    assert part.rows_of(records["sanitizer"]["rows"], "kernels")[0]["ran"]
    (row,) = part.rows_of(records["build"]["rows"], "build")
    assert row["native"]["built"]
    files = {path.name for path in dry.iterdir()} - {"printed"}
    assert files == {*(f"{name}.json" for name in PARTS), "result.json", "tables.txt", "run.log"}


def test_result_is_all_of_it(dry):
    result = load(dry / "result.json")
    assert list(result["parts"]) == PARTS
    assert result["dry"]
    assert result["info"]["torch"] == torch.__version__
    assert {"date", "commit", "gpu", "goals"} <= set(result)
    printed = (dry / "printed").read_text()
    assert "nothing here is a measurement" in printed
    assert re.search(r"^measure +passed", printed, re.MULTILINE)
    assert "Losses over few elements" in (dry / "tables.txt").read_text()


def test_measurements_make_sense(dry):
    rows = load(dry / "measure.json")["rows"]
    plan = visits.plan(visits.DRY, dry=True)
    times = [row for kind in (visits.TIME, visits.ROWS) for row in part.rows_of(rows, kind)]
    seen = {(row["loss"], row["dtype"], row["case"], row["what"]) for row in times}
    whats = {visits.FORWARD, visits.STEP, visits.SCALED}
    assert len(times) == len(seen)
    assert seen == {
        (visit.case.loss, name_of(visit.dtype), visit.case.words(), what)
        for visit in plan
        for what in whats & {*visit.whats}
    }
    assert {row["count"] for row in part.rows_of(rows, visits.TIME)} == {
        getattr(visits.DRY, size) for size in ("tiny", "small", "large", "huge")
    }
    labels = {"forward": 1, "step": 2}
    passes = {"forward": 2, "step": 3, "scaled step": 5}
    for row in times:
        alone = row["loss"] == "cross_entropy"
        size = row["count"] * (4 if row["dtype"] == "float32" else 2)
        assert row["bytes"] == (labels if alone else passes)[row["what"]] * size
        assert not row["errors"]
        assert {"native", "eager"} <= set(row["contenders"])
        assert "triton" in row["absent"]
        copy, native = row["yardsticks"]["copy"], row["contenders"]["native"]
        assert ("add" in row["yardsticks"]) == (row["what"] == "step" and not alone)
        for numbers in [*row["contenders"].values(), copy]:
            assert 0 < numbers["p25"] <= numbers["ms"] <= numbers["p75"]
            expected = row["bytes"] / (numbers["ms"] * 1e-3) / 1e9
            assert numbers["gb_per_s"] == pytest.approx(expected, rel=1e-3)
        assert native["of_copy"] == pytest.approx(copy["ms"] / native["ms"], rel=1e-3)
    compiled = {(row["loss"], row["dtype"]) for row in times if "compile" in row["contenders"]}
    assert compiled == {("mse_loss", "bfloat16")}
    memory = part.rows_of(rows, "memory")
    assert len(memory) == 2
    assert all(row["gradients"]["native"] == pytest.approx(1, abs=0.01) for row in memory)
    assert all(row["gradients"]["eager"] > 1.5 for row in memory)
    (peers,) = part.rows_of(rows, "peers")
    cross_entropy, *divergences = "cross_entropy", "kl_divergence", "js_divergence"
    assert {peer["module"]: peer["has"] for peer in peers["peers"]} == {
        "liger_kernel": [cross_entropy, *divergences],
        "quack": [cross_entropy],
        "cut_cross_entropy": [],
    }
    graphs = [row for row in part.rows_of(rows, "omitted") if "graph" in row["visit"]]
    assert len(graphs) == 4 * len(SPECS)
    text = (dry / "tables.txt").read_text()
    assert text.count("\nkl_divergence") >= 3  # step, forward, bandwidth


def test_dry_runs_are_not_kept(dry):
    result = load(dry / "result.json")
    assert finish.store(result) is None
    for path in readme.RESULTS.rglob("gpu-*.json"):
        assert not load(path)["dry"], path


def test_finished_parts_are_not_run_again(dry, tmp_path):
    out = shutil.copytree(dry, tmp_path / "copy")
    assert load(out / "build.json")["sources"] == run.digest(), "the sources were edited meanwhile"
    done = gpu_sh("copy", "--dry", cwd=tmp_path)  # a relative path refers to the caller's folder
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(earlier)") == len(PARTS)
    assert all((out / f"{n}.json").read_bytes() == (dry / f"{n}.json").read_bytes() for n in PARTS)


# The command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "OUT_DIR"),
        (["out", "--parts", "build,nonsense"], "no part 'nonsense'"),
        (["out", "--nonsense"], "unrecognized"),
    ],
)
def test_usage_exits_with_2(tmp_path, arguments, words):
    done = gpu_sh(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_teaches(tmp_path):
    done = gpu_sh("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in (*PARTS, "examples:", "exit status:"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_what_is_missing(tmp_path):
    done = gpu_sh(tmp_path / "out")
    assert done.returncode == 1
    assert "CUDA" in done.stderr or "GPU" in done.stderr
    assert "--dry" in done.stderr
    assert not (tmp_path / "out").exists()


def test_everything_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in gpu_machine.missing()[0]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_machine, "cuda_tool", lambda name: None)
    monkeypatch.setattr(gpu_machine, "BUILD_NEEDS", ("json", "no_such_package"))
    gpu, nvcc, package = gpu_machine.missing()
    assert "sees no GPU" in gpu
    assert nvcc.startswith("nvcc is neither")
    assert package.endswith("has no no_such_package")


def test_a_failing_test_fails_its_part(tmp_path):
    file = tmp_path / "test_wrong.py"
    file.write_text("def test_wrong():\n    assert 1 == 2, 'one is not two'\n")
    arguments = ("--dry", "--parts", "tests_native,sanitizer", "--tests", file)
    done = gpu_sh(tmp_path / "out", *arguments)
    assert done.returncode == 1
    record = load(tmp_path / "out" / "tests_native.json")
    assert record["status"] == "failed"
    assert "test_wrong::test_wrong" in record["reason"]
    assert "one is not two" in record["rows"][0]["failures"][0]["message"]
    assert load(tmp_path / "out" / "sanitizer.json")["status"] == "skipped"  # it still ran
    assert not (tmp_path / "out" / "build.json").exists()


# The runner, with parts made for these tests

FAKE = """
import sys, time
from benchmarks.gpu import part

def work(task):
    what = task.words[0]
    task.emit({"kind": "time", "number": 1})
    if what == "fail":
        raise part.FailedError("it is wrong")
    if what == "skip":
        raise part.SkippedError("not here")
    if what == "crash":
        raise ZeroDivisionError("a surprise")
    if what == "late":
        raise part.OutOfTimeError("half of it")
    if what == "hang":
        with task.rows.open("a") as file:
            file.write('{"kind": "ti')
        time.sleep(600)

sys.exit(part.main(work))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Makes parts that behave as their names say, and runs them."""
    (tmp_path / "fake_part.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(run, "_finish", lambda options, fresh: True)
    monkeypatch.setattr(run, "digest", lambda: "sources")

    def start(*names, seconds=30.0, again=False, needed=()):
        parts = [run.Part(n, "fake_part", seconds, (n,), needed=n in needed) for n in names]
        options = run.Options(tmp_path / "out", dry=True, again=again)
        status = run.run(parts, options)
        return status, {name: load(options.out / f"{name}.json") for name in names}

    return start


def statuses(records) -> list[str]:
    return [record["status"] for record in records.values()]


def test_a_failure_stops_nobody_else(fake, capsys):
    status, records = fake("fail", "crash", "fine", "skip", "late")
    assert status == 1
    assert statuses(records) == ["failed", "failed", "passed", "skipped", "timed out"]
    assert records["fail"]["reason"] == "it is wrong"
    assert "a surprise" in records["crash"]["reason"]
    assert all(len(record["rows"]) == 1 for record in records.values())
    assert "failed, " in (said := capsys.readouterr().out)
    assert said.count("it is wrong") == 1


def test_all_well_exits_with_0(fake):
    assert fake("fine", "skip")[0] == 0


def test_nothing_runs_without_what_it_needs(fake):
    status, records = fake("fail", "fine", needed=("fail",))
    assert status == 1
    assert statuses(records) == ["failed", "not run"]
    assert records["fine"]["reason"] == "fail failed"


def test_what_was_found_in_time_is_kept(fake, monkeypatch):
    monkeypatch.setattr(run, "SECONDS", 4)
    status, records = fake("hang", "fine", seconds=2)
    assert status == 1
    assert records["hang"]["seconds"] < 9  # it ends at the first request
    assert statuses(records) == ["timed out", "passed"]
    assert records["hang"]["rows"] == [{"kind": "time", "number": 1}]  # without the incomplete line
    assert "stopped after 2 s" in records["hang"]["reason"]


def test_only_what_is_unfinished_or_changed_runs_again(fake, monkeypatch, capsys):
    names = ("fine", "skip", "fail", "late")
    fake(*names)
    capsys.readouterr()
    assert fake(*names)[0] == 1  # a failure counts until it is resolved
    assert capsys.readouterr().out.count("(earlier)") == 3
    fake(*names, again=True)
    assert "(earlier)" not in capsys.readouterr().out
    monkeypatch.setattr(run, "digest", lambda: "other sources")
    fake(*names)
    assert "(earlier)" not in capsys.readouterr().out


def test_parts_fit_into_nine_minutes():
    assert sum(p.seconds for p in run.PARTS) <= run.SECONDS
    patience = 8  # for processes that are told to end, at most once each
    assert run.SECONDS + run.FINISH_SECONDS + patience * 0.5 < 9 * 60


def test_digest_sees_every_source(tmp_path, monkeypatch):
    (tmp_path / "csrc").mkdir()
    file = tmp_path / "csrc" / "kernel.cu"
    file.write_text("one")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    before = run.digest()
    assert run.digest() == before
    file.write_text("two")
    assert run.digest() != before


def test_interrupted_run_leaves_a_record_and_no_process(tmp_path):
    slow = tmp_path / "test_slow.py"
    slow.write_text("import time\ndef test_slow():\n    time.sleep(300)\n")
    out = tmp_path / "out"
    command = ["bash", "benchmarks/gpu.sh", str(out), "--dry", "--parts", "tests_native"]
    process = subprocess.Popen(
        [*command, "--tests", str(slow)], cwd=ROOT, env=os.environ | {"PYTHON": sys.executable},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    log, end = out / "run.log", time.monotonic() + 60
    while not (log.exists() and "running" in log.read_text()) and time.monotonic() < end:
        time.sleep(0.1)
    assert running(str(slow))
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    assert load(out / "tests_native.json")["status"] == "interrupted"
    end = time.monotonic() + 10
    while running(str(slow)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not running(str(slow))


def running(word: str) -> list[str]:
    """The command lines of processes that contain this word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes().decode(errors="replace")
            found += [command] if word in command else []
    return found


# The tests part


JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_one" time="0.5"/>
<testcase classname="tests.test_a" name="test_two" time="1"><failure message="wrong">x</failure>
<error message="at the end">y</error></testcase>
<testcase classname="tests.test_b" name=""><error message="cannot be imported">x</error></testcase>
<testcase classname="tests.test_b" name="test_three"><skipped message="one GPU"/></testcase>
<testcase classname="tests.test_b" name="test_four"><skipped message="one GPU"/></testcase>
</testsuite></testsuites>"""


def test_junit_in_numbers(tmp_path):
    (tmp_path / "report.xml").write_text(JUNIT)
    row = suite.summary(tmp_path / "report.xml")
    assert (row["passed"], row["failed"], row["skipped"]) == (1, 2, 2)
    assert row["failures"][0] == {"name": "tests.test_a::test_two", "message": "wrong"}
    assert row["skips"] == [{"reason": "one GPU", "count": 2}]
    with pytest.raises(part.FailedError, match="2 of 3 tests failed"):
        suite.judge(row, 1)
    good = row | {"failed": 0}
    suite.judge(good, 0)
    with pytest.raises(part.OutOfTimeError, match="at least 1 tests had passed"):
        suite.judge(good, None)
    for bad, status in ((good, 2), (good | {"passed": 0}, 5)):
        with pytest.raises(part.FailedError, match="ended with status"):
            suite.judge(bad, status)


def test_plugins_that_are_absent_are_not_asked_for(tmp_path):
    assert "-n" not in suite.pytest_command(tmp_path / "x", "native", ["tests"], 0)
    command = suite.pytest_command(tmp_path / "x", "native", ["tests"], 8)
    assert command[command.index("-n") + 1] == "8"


def test_what_computes_nothing_on_a_device_is_left_out():
    """test_gpu_run.py would build the extension while other tests run."""
    command = [sys.executable, "-c", "import conftest; print(*conftest.collect_ignore)"]
    for device, found in (("meta", True), ("cpu", False)):
        environment = os.environ | {suite.SWITCH: device, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert ("test_gpu_run.py" in done.stdout) == found


def test_tests_cut_off_are_still_counted(tmp_path):
    file = tmp_path / "test_some.py"
    file.write_text("import time\ndef test_a(): pass\ndef test_b(): time.sleep(300)\n")
    # Enough time to import torch while other tests run. The second test uses up the rest.
    task = part.Task(tmp_path / "rows", suite.PATIENCE + 5 + 30, True, ["native", str(file)])
    with pytest.raises(part.OutOfTimeError, match="at least 1 tests had passed"):
        suite.suite(task)
    (row,) = part.read_rows(task.rows)
    assert not row["finished"]


def test_tests_that_know_no_device_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "knows_switch", lambda folder: False)
    task = part.Task(tmp_path / "rows", 60, False, ["native"])
    with pytest.raises(part.FailedError, match="LOSSOPS_TEST_DEVICE"):
        suite.suite(task)
    monkeypatch.undo()
    (tmp_path / "conftest.py").write_text("x = 1")
    assert not suite.knows_switch(tmp_path)
    (tmp_path / "conftest.py").write_text(f"os.environ.get('{suite.SWITCH}')")
    assert suite.knows_switch(tmp_path)


# The sanitizer

CLEAN = f"========= COMPUTE-SANITIZER\n{kernels.DONE} 9\n========= ERROR SUMMARY: 0 errors\n"
WRONG = f"""========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at dense<Mse>+0x2a0
{kernels.DONE} 9
========= ERROR SUMMARY: 3 errors
"""
RACES = f"""========= COMPUTE-SANITIZER
========= Warning: Race reported between Write access at reduce+0x10
{kernels.DONE} 9
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
"""
NO_RACES = (
    f"{kernels.DONE}\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
)
UNSEEN = """========= COMPUTE-SANITIZER
========= Error: Target application terminated before first instrumented API call
========= ERROR SUMMARY: 0 errors
"""


@pytest.mark.parametrize(
    ("text", "status", "verdict", "words"),
    [
        (CLEAN, 0, "passed", ""),
        (NO_RACES, 0, "passed", ""),
        (WRONG, 66, "failed", "3 errors"),
        (RACES, 66, "failed", "1 errors"),
        (RACES.replace("1 error,", "0 errors,"), 0, "failed", "2 hazards"),
        (UNSEEN, 0, "failed", "no account"),
        ("Segmentation fault", 139, "failed", "no account"),
        (CLEAN.replace(kernels.DONE, ""), 0, "failed", "not all kernels ran"),
        (CLEAN, 1, "failed", "status 1"),
        ("", None, "timed out", "not finished"),
        (WRONG, None, "failed", "3 errors"),
    ],
)
def test_sanitizer_output(text, status, verdict, words):
    found, reason = sanitizer.verdict(sanitizer.parse(text), status)
    assert found == verdict
    assert words in reason
    assert bool(reason) == (verdict != "passed")


def test_sanitizer_quotes_what_it_was_told():
    assert sanitizer.parse(WRONG)["said"][0] == "Invalid __global__ write of size 4 bytes"


@pytest.mark.parametrize("wrong", ["", "initcheck"])
def test_all_tools_are_asked(tmp_path, monkeypatch, wrong):
    """Uses a stand-in for compute-sanitizer that reports a finding with one tool."""
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(
        '#!/bin/bash\ntool=$2\n[ "$3" = --error-exitcode ] || exit 9\nshift 4\n"$@" || exit 8\n'
        f'[ "$tool" = "{wrong}" ] && echo "========= ERROR SUMMARY: 2 errors" && exit 66\n'
        '[ "$PYTORCH_NO_CUDA_MEMORY_CACHING" = 1 ] && echo "========= ERROR SUMMARY: 0 errors"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setattr(gpu_machine, "cuda_tool", lambda name: str(tool))
    monkeypatch.setattr(part.Task, "device", "cpu")
    monkeypatch.setattr(sanitizer, "BACKENDS", ("native",))
    command = [sys.executable, "-c", f"print('{kernels.DONE} 9')"]  # in place of the kernels
    monkeypatch.setattr(sanitizer, "kernels", lambda backend, device: command)
    task = part.Task(tmp_path / "rows", 200, dry=False)
    if wrong:
        with pytest.raises(part.FailedError, match="initcheck of native: 2 errors"):
            sanitizer.sanitizer(task)
    else:
        sanitizer.sanitizer(task)
    rows = part.rows_of(part.read_rows(task.rows), "sanitizer")
    assert {row["tool"]: row["status"] for row in rows} == {
        name: "failed" if name == wrong else "passed" for name in sanitizer.TOOLS
    }


def test_kernels_are_all_there_is():
    """The sanitizers cover every op with every loss."""
    with expect_ops(*(f"lossops::{name}" for name in library.DECLARED)) as names:
        assert kernels.run("native", "cpu") > 100 * len(SPECS + ROW_SPECS)
    assert {name for name in names if name.startswith("lossops::")} == {
        f"lossops::{name}" for name in library.DECLARED
    }


# The document


def gpu_result(date="2031-05-06T07:08:09+00:00", step_ms=1.0, **more) -> dict:
    numbers = {"ms": step_ms, "p25": 1, "p75": 1, "gb_per_s": 800 / step_ms, "of_copy": 0.95}
    row = {
        "kind": "time", "what": "step", "device": "cuda", "cold": True, "absent": {}, "errors": {},
        "contenders": {"native": numbers}, "yardsticks": {"copy": numbers},
    }  # fmt: skip
    row |= visits.Visit(Elements("mse_loss", (1 << 26,)), torch.float32).facts
    record = {"status": "passed", "seconds": 9.0, "reason": "", "rows": [row], "dry": False}
    return {
        "date": date,
        "commit": "0123456789abcdef-dirty",
        "info": {"lossops": "1", "torch": "9.9", "python": "3.99", "triton": "7"},
        "gpu": {"name": "NVIDIA Z9", "memory_bytes": 1 << 37, "driver": "777", "torch_cuda": "99"},
        "dry": False,
        "sources": "none",
        "parts": {"measure": record},
    } | more


def test_document_is_what_the_files_give():
    assert readme.README.read_text(encoding="utf-8") == readme.text(), "run: make format"


def test_document_without_gpu_figures_says_so(tmp_path):
    assert "No GPU figures exist yet." in readme.text(tmp_path)
    finish.store(gpu_result(), tmp_path)
    dry_result = gpu_result(dry=True)
    machine.write(dry_result, tmp_path / "nvidia-y8" / "gpu-20310101-000000.json")
    text = readme.text(tmp_path)
    assert "No GPU figures exist yet." not in text
    assert "nvidia-z9" in text
    assert "nvidia-y8" not in text


def test_newest_result_is_shown(tmp_path):
    for date, step in (("2031-01-01", 1.0), ("2032-01-01", 3.5), ("2030-01-01", 2.0)):
        assert finish.store(gpu_result(f"{date}T00:00:00+00:00", step), tmp_path)
    machine.write(gpu_result(dry=True), tmp_path / "nvidia-z9" / "gpu-20990101-000000.json")
    text = readme.text(tmp_path)
    assert "2032-01-01 00:00:00 UTC" in text
    assert "2031" not in text
    assert "3.500" in text
    for fact in ("NVIDIA Z9, 128 GiB, driver 777", "CUDA 99", "torch 9.9", "0123456789ab with"):
        assert fact in text
    assert "| **met** |" in text
    assert "| not measured |" in text  # the goals of others


def test_results_go_where_they_are_looked_for(tmp_path):
    path = finish.store(gpu_result(), tmp_path)
    assert path == tmp_path / "nvidia-z9" / "gpu-20310506-070809.json"
    for nothing in ({"dry": True}, {"gpu": None}, {"parts": {}}):
        assert finish.store(gpu_result(**nothing), tmp_path) is None


def test_commit_is_known_where_the_sources_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "commit", lambda: "abc")
    same = gpu_result(commit=None, sources=run.digest())
    assert load(finish.store(same, tmp_path))["commit"] == "abc"
    other = gpu_result(commit=None, sources="others")
    assert load(finish.store(other, tmp_path))["commit"] is None


def test_parts_of_other_sources_are_left_out(tmp_path):
    for name, sources, date in (("build", "old", "2030"), ("measure", "new", "2031")):
        record = {"part": name, "sources": sources, "date": date, "dry": True, "python": "p"}
        record |= {"seconds": 1.0, "rows": [], "status": "passed", "reason": ""}
        machine.write(record, tmp_path / f"{name}.json")
    assert list(finish.combine(tmp_path)["parts"]) == ["measure"]


def test_cpu_results_are_shown(tmp_path):
    text = readme.text()
    for folder in (path for path in readme.RESULTS.iterdir() if path.is_dir()):
        assert f"### {folder.name}" in text
    newest = next(readme.newest(readme.RESULTS, gpu=False))[2]
    step = next(r for r in newest["bench"] if r["kind"] == "step" and r["memory"] == "warm")
    assert f"| {step['ms']['eager'] / step['ms']['lossops']:.2f} |" in text


# The commit


@pytest.fixture
def checkout(tmp_path):
    def git(*arguments):
        names = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *names, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "--quiet")
    (tmp_path / "file").write_text("one")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    return tmp_path


def test_commit_of_a_checkout(checkout):
    head = machine.commit(checkout)
    assert len(head) == 40
    results = checkout / "benchmarks" / "results" / "nvidia-z9"
    results.mkdir(parents=True)
    (results / "gpu.json").write_text("{}")  # written by a measurement
    assert machine.commit(checkout) == head
    (checkout / "file").write_text("two")
    assert machine.commit(checkout) == f"{head}-dirty"


def test_no_commit_where_there_is_none(checkout, tmp_path_factory, monkeypatch):
    below = checkout / "site-packages"
    below.mkdir()
    assert machine.commit(below) is None  # that commit would belong to another repository
    assert machine.commit(tmp_path_factory.mktemp("nowhere")) is None
    monkeypatch.setenv("PATH", "")
    assert machine.commit(checkout) is None
    assert "commit" in machine.stamp()
