"""The command line: its output, files and exit status."""

import json
import re
import subprocess
import sys

import pytest
import torch

import lossops
from benchmarks.__main__ import main as benchmarks_main
from lossops.__main__ import main as verify_main
from lossops.elementwise import reference
from lossops.specs.elementwise import spec
from lossops.specs.softmax import row_spec

PROGRAMS = {
    "lossops": (verify_main, ("info", "verify")),
    "benchmarks": (benchmarks_main, ("bench", "kernels", "plot", "report")),
}
COMMANDS = [(program, name) for program, (_, names) in PROGRAMS.items() for name in names]
CHEAP = "mse_loss"


def test_runs_as_a_module():
    command = [sys.executable, "-m", "lossops", "info", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["lossops"] == lossops.__version__


def main(arguments):
    """Runs a command of the program that has it."""
    of = PROGRAMS["benchmarks"][1]
    return (benchmarks_main if arguments and arguments[0] in of else verify_main)(arguments)


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_help_teaches(program, command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert f"python -m {program} {command}" in text


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_names_every_command(program, capsys):
    run, commands = PROGRAMS[program]
    with pytest.raises(SystemExit):
        run(["--help"])
    text = capsys.readouterr().out
    assert all(command in text for command in commands)


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["verify", "--loss", "no_such_loss"], ["bench", "--rounds", "3"]]
)
def test_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_command_prints_help_and_exits_with_2(program, capsys):
    assert PROGRAMS[program][0]([]) == 2
    assert "start with:" in capsys.readouterr().out


def test_info(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert torch.__version__ in text
    assert "reference" in text


def test_verify_passes(capsys):
    assert main(["verify", "--loss", CHEAP]) == 0
    text = capsys.readouterr().out
    assert "gradgradcheck" in text
    assert "FAIL" not in text


def test_verify_json(capsys):
    assert main(["verify", "--loss", CHEAP, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["passed"] is True
    assert {row["dtype"] for row in result["numbers"]} == {
        "float64", "float32", "bfloat16", "float16",
    }  # fmt: skip


def test_verify_that_fails_exits_with_1(monkeypatch, capsys, tmp_path):
    def doubled(input, target):
        return 2 * (input - target).square()

    monkeypatch.setitem(reference.FORMULAS, "mse", doubled)
    file = tmp_path / "result.json"
    assert main(["verify", "--loss", CHEAP, "--json", str(file)]) == 1
    printed = capsys.readouterr()
    assert "FAIL" in printed.out
    assert "FAIL mse_loss native float32: ordinary values: reductions off by" in printed.err
    assert json.loads(file.read_text())["passed"] is False


def test_bench_quick(capsys, tmp_path):
    arguments = ["bench", "--quick", "--loss", CHEAP, "--part", "tiny", "--part", "memory"]
    file = tmp_path / "bench.json"
    options = ["--save", "--out", str(tmp_path / "results"), "--json", str(file)]
    assert main([*arguments, *options]) == 0
    text = capsys.readouterr().out
    assert "A step over 16 elements" in text
    assert "Peak memory of a step" in text
    result = json.loads(file.read_text())
    assert {row["kind"] for row in result["bench"]} == {"tiny", "memory"}
    saved = list((tmp_path / "results").glob("*/*.json"))
    assert [json.loads(path.read_text()) for path in saved] == [result]


KERNELS = ["kernels", "--arch", "90", "--loss", CHEAP]


def test_kernels_over_rows_are_named_by_their_losses():
    from benchmarks.kernels import survey as kernels

    wanted = [row_spec(name) for name in ("kl_divergence", "nll_loss", "cross_entropy")]
    assert kernels.of_rows(wanted) == ["kl", "cross_entropy", "reverse_kl"]


def test_kernels(capsys):
    from benchmarks.kernels import survey as kernels

    result = kernels.survey(["90"], [spec(CHEAP)], [])
    if set(result["compilers"]) != {"cuda", "triton"}:
        pytest.skip("; ".join(result["missing"].values()))
    assert main(KERNELS) == 0
    text = capsys.readouterr().out
    assert re.search(r"^CUDA kernels, compiled by nvcc [\d.]+$", text, re.MULTILINE)
    assert re.search(
        r"^Triton kernels, compiled by Triton [\d.]+: elementwise$", text, re.MULTILINE
    )
    assert re.search(
        r"^dense step +fp32 fp32 +\d+ +\d+% +257 +0 +4.16 \+\d+ +2.16", text, re.MULTILINE
    )
    assert max(map(len, text.splitlines())) <= 120
    assert main([*KERNELS, "--all"]) == 0
    assert "dense<mse, bf16, bf16, step>" in capsys.readouterr().out
    assert main([*KERNELS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == result
    assert {row["loss"] for row in found["kernels"]} == {"mse", ""}
    assert {row["architecture"] for row in found["kernels"]} == {"90"}


@pytest.mark.parametrize("compiler", ["nvcc", "Triton"])
def test_kernels_says_what_it_cannot_show(compiler, monkeypatch, capsys, tmp_path):
    from benchmarks.kernels import cuda as kernels_cuda
    from benchmarks.kernels import triton as kernels_triton

    if kernels_cuda.missing() or kernels_triton.missing():
        pytest.skip("nothing to be without")
    if compiler == "nvcc":
        monkeypatch.delenv("CUDA_HOME", raising=False)
        monkeypatch.delenv("CUDA_PATH", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setattr(kernels_triton, "missing", lambda: "Triton is not installed")
    assert main(KERNELS) == 0
    printed = capsys.readouterr()
    missing, shown = ("CUDA", "Triton") if compiler == "nvcc" else ("Triton", "CUDA")
    assert re.search(rf"^lossops: no {missing} kernels: .*{compiler}", printed.err, re.MULTILINE)
    assert f"{shown} kernels, compiled by" in printed.out
    assert f"{missing} kernels, compiled by" not in printed.out


def test_kernels_without_compilers_exits_with_1(monkeypatch, capsys):
    from benchmarks.kernels import cuda as kernels_cuda
    from benchmarks.kernels import triton as kernels_triton

    monkeypatch.setattr(kernels_cuda, "sources", list)
    monkeypatch.setattr(kernels_triton, "missing", lambda: "Triton is not installed")
    assert main(KERNELS) == 1
    printed = capsys.readouterr()
    assert not printed.out
    assert "no CUDA kernels: there are no CUDA sources" in printed.err
    assert "no Triton kernels: Triton is not installed" in printed.err


def test_kernels_that_spill_exit_with_1(monkeypatch, capsys):
    from benchmarks.kernels import machine_code
    from benchmarks.kernels import survey as kernels
    from benchmarks.kernels.rows import row

    numbers = {"threads": 256, "registers": 32, "shared": 0, "stack": 8, "spill_loads": 8}
    kernel = machine_code.Kernel(
        "symbol", **numbers, spill_stores=4, loads={"4": 2}, stores={}, local=3
    )
    spilling = row("cuda", "90", "dense", "mse", ["float32", "float32"], "step", kernel)

    class Engine:
        missing = staticmethod(lambda: None)
        compiler = staticmethod(lambda: "a compiler")
        survey = staticmethod(lambda *_: [{"rows": [spilling], "warnings": ["a warning"]}])

    monkeypatch.setattr(kernels, "ENGINES", {"cuda": Engine})
    assert main(KERNELS) == 1
    printed = capsys.readouterr()
    where = "FAIL cuda kernel dense<mse, float32, float32, step> on sm_90"
    assert printed.err.splitlines() == [
        "FAIL a warning",
        f"{where} spills registers: 4 bytes stored, 8 loaded",
        f"{where} has 0 loads of 16 bytes, and needs 4",
        f"{where} has 0 stores of 16 bytes, and needs 2",
    ]
    assert re.search(r"step +fp32 fp32 +32 100% +0 +8 +2.4 ", printed.out)


@pytest.mark.parametrize("every", [False, True])
def test_kernels_of_every_dtype_are_shown(every):
    from benchmarks.kernels import machine_code, tables
    from benchmarks.kernels.rows import row

    numbers = dict.fromkeys(("shared", "stack", "spill_stores", "spill_loads", "local"), 0)
    kernel = machine_code.Kernel("symbol", 256, 32, **numbers, loads={"4": 2}, stores={})
    rows = [row("triton", "90", "count", "", [dtype], "", kernel) for dtype in tables._SHORT]
    (table,) = tables.tables({"compilers": {"triton": "a compiler"}, "kernels": rows}, every)
    assert len(table.rows) == len(rows)


def test_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["plot", "--out", str(tmp_path)]) == 0
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {
        "losses.png", "mse_l1.png", "mse_huber.png", "mse_huber_log_cosh.png", "derivatives.png",
        "classification_hard.png", "classification_soft.png", "kl_symmetry.png",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert all(name in printed for name in pictures)


def test_a_missing_extra_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plot", "--out", str(tmp_path)]) == 1
    assert 'pip install "lossops[report]"' in capsys.readouterr().err
