"""What ``python -m benchmarks bench`` measures of every family, and what it says about it."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.bench import families, targets, worker
from benchmarks.bench.cases import Elements, Linear, Rows, Vectors
from benchmarks.claims import page
from benchmarks.claims.report import FAMILIES as ALL
from lossops.specs.softmax import ROW_SPECS
from lossops.verify.tables import Table, number, to_html, to_text, verdict

# Some losses of each family, and the kinds of results in order.
FEW = {
    "elementwise": (["mse_loss"], ["step", "half", "tiny", *["memory"] * 2, *["accuracy"] * 4]),
    "softmax": (
        ["cross_entropy"],
        [*["rows_step"] * 6, "rows_half", "rows_tiny", *["rows_memory"] * 2],
    ),
    "vectors": (["dice_loss"], ["vectors_step", "vectors_tiny", "vectors_memory"]),
    "others": (
        ["ctc_loss", "linear_cross_entropy"],
        ["linear_step", *["others_tiny"] * 2, "linear_memory"],
    ),
}


@pytest.mark.parametrize("family", FEW)
def test_bench_quick(family):
    losses, kinds = FEW[family]
    (task, *_) = families.FAMILIES[family].tasks(losses, families.PARTS, True)
    rows = list(worker.run(task | {"family": family, "warm": False, "compile": False}))
    assert [row["kind"] for row in rows] == kinds
    assert {row["loss"] for row in rows} == {*losses}
    for row in rows:
        assert all(time > 0 for time in row.get("ms", row.get("us", {})).values())
        if row["kind"].endswith("memory") and family != "others":
            held = row["gradients"]["lossops"]
            assert held < 0.1 if row.get("inplace") else 0.9 < held < 1.1
        if row["kind"].endswith(("step", "tiny")):
            assert {"lossops", "eager"} <= set(row.get("ms", row.get("us")))
    text = "\n".join(map(to_text, families.tables({"bench": rows, "targets": []})))
    assert "eager / lossops" in text or "over its products" in text
    for words in {"softmax": ["inplace=True", "rows of class scores"], "vectors": ["of vectors"],
                  "elementwise": ["A step over 16 elements", "Largest errors"],
                  "others": ["over its products", "what a call costs"]}[family]:  # fmt: skip
        assert words in text
    if family == "others":
        held = rows[-1]["logits"]
        assert held["lossops"] < 0.5 < held["eager"]
        assert {"products", "lossops", "eager"} <= set(rows[0]["ms"])


@pytest.mark.parametrize("kept", [False, True])
def test_results_tell_whether_memory_was_warm(kept, monkeypatch):
    monkeypatch.setattr(worker, "keep_memory_warm", lambda pool: kept)
    task = {"losses": ["nll_loss"], "parts": ["tiny"], "device": "cpu", "quick": True}
    for warm in (False, True):
        (row,) = worker.run(task | {"family": "softmax", "warm": warm})
        assert row["memory"] == ("warm" if warm and kept else "default")
    task |= {"family": "elementwise", "losses": ["mse_loss"]}
    rows = list(worker.run(task | {"warm": True}))  # with cold memory measured by another process
    assert [row["memory"] for row in rows] == (["warm"] if kept else [])


def test_every_loss_is_measured():
    """In every part of its family, and as often as progress says."""
    parts = ({"step", "half", "tiny", "memory", "accuracy"}, *[{"step", "tiny", "memory"}] * 2,
             {"tiny"})  # fmt: skip
    total = 0
    for (name, family), specs, wanted in zip(families.FAMILIES.items(), ALL, parts, strict=True):
        losses, found = [spec.name for spec in specs], set()
        for task in family.tasks(losses, families.PARTS, False):
            work = family.work(losses, task["parts"], False)
            assert len(set(map(str, work))) == len(work)
            found |= {(case.loss, part, task["warm"]) for part, case, _ in work}
            total += len(work)
        assert {(loss, part) for loss, part, _ in found} >= {(x, p) for x in losses for p in wanted}
        if name == "elementwise":  # by default, and with warm memory
            both = {(x, p, warm) for x in losses for p in ("step", "half") for warm in (0, 1)}
            assert both <= found
    assert families.pieces(ALL) == total
    assert families.pieces([[], [], [], ALL[3][-1:]], ["step"]) == 0  # ctc_loss is tiny only


def test_goals_have_their_cases():
    losses = [spec.name for spec in ROW_SPECS]
    found = families.row_cases(losses)
    assert {case.loss for case in found} == set(losses)
    words = {(case.loss, case.words()) for case in found}
    for shape in ("512 × 32000", "4096 × 1000", "64 × 128256", "8 × 21 × 512 × 512"):
        assert ("cross_entropy", shape) in words
    assert ("kl_divergence", "512 × 32000, target logits") in words
    assert families.row_cases(["poly_loss"]) == [case for case in found if case.loss == "poly_loss"]


SMALL = [
    *(Elements(spec.name, (64,)) for spec in ALL[0]),
    *(families._small(case) for case in families.row_cases([spec.name for spec in ROW_SPECS])),
    *(Vectors(spec.name, (6, 11)) for spec in ALL[2]),
    Linear(shape=(6, 5, 7)),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.loss} {case.words()}")
def test_contenders_compute_the_same(case):
    dtype = torch.float32 if isinstance(case, Linear) else torch.float64
    problem, grads = case.problem(dtype, "cpu"), {}
    for name, step in case.steps(problem, compiled=isinstance(case, Linear)).items():
        step()
        grads[name] = [leaf.grad for leaf in problem.leaves]
    assert {case.floor, "lossops", "eager"} <= grads.keys()
    for name, found in grads.items():
        assert [grad.shape for grad in found] == [leaf.shape for leaf in problem.leaves]
        if name != case.floor:
            torch.testing.assert_close(found, grads["eager"])


def test_the_floor_moves_the_bytes_of_a_step():
    for case, pair in (
        (Elements("mse_loss", (8,)), True),
        (Rows("cross_entropy", (4, 5)), False),
        (Rows("kl_divergence", (4, 5), ROW_SPECS[-1].samples[0]), True),
    ):
        problem = case.problem(torch.float32, "cpu")
        problem.floor()
        x, grad = problem.input.detach(), problem.input.grad
        torch.testing.assert_close(grad, x + problem.target if pair else 2 * x)


def test_bench_reports_what_a_worker_died_of():
    task = next(families.FAMILIES["elementwise"].tasks(["nonsense"], ("memory",), True))
    with pytest.raises(RuntimeError, match="no loss named 'nonsense'"):
        list(families.in_process(task | {"family": "elementwise"}))


# ---------------------------------------------------------------------------------------------
# Targets.


def row(kind, loss, case="", unit="ms", **numbers):
    found = {"kind": kind, "loss": loss, "device": "cpu", "memory": "warm", unit: numbers}
    return found | ({"case": case} if case else {})


def step(**ms):
    return row("step", "mse_loss", **ms)


ROW, VECTOR = "512 × 32000", "16384 × 1024"


@pytest.mark.parametrize(
    ("row", "met", "missed"),
    [
        (step(floor=10.0, lossops=10.5, eager=30.0, compile=20.0), 5, []),
        (
            step(floor=10.0, lossops=13.0, eager=30.0, compile=20.0),
            2,
            ["step over a fresh torch.add", "than torch eager, warm", "than torch.compile, warm"],
        ),
        (
            step(floor=10.0, lossops=10.5, eager=20.0, compile=10.0),
            1,
            ["than torch eager, warm", "than torch.compile, warm"] * 2,
        ),
        (
            row("rows_step", "cross_entropy", ROW, floor=10.0, lossops=11.0, eager=33.0,
                compile=12.0),
            4,
            ["cross_entropy faster than torch.compile"],
        ),
        (
            row("rows_step", "cross_entropy", "8 × 21 × 512 × 512", lossops=10.0, eager=19.0),
            0,
            ["pictures faster than torch eager", "losses over rows faster than torch eager"],
        ),
        (
            row("vectors_step", "dice_loss", VECTOR, lossops=10.0, eager=21.0, compile=9.0),
            1,
            ["losses over rows faster than torch.compile"],
        ),
        (row("linear_step", "linear_cross_entropy", lossops=100.0, products=87.0), 1, []),
        (row("linear_step", "linear_cross_entropy", lossops=100.0, products=86.0), 0, ["products"]),
        (row("linear_step", "linear_cross_entropy", lossops=100.0, compile=101.0), 1, []),
        (row("linear_step", "linear_cross_entropy", lossops=100.0, compile=99.0), 0, ["compile"]),
        (row("others_tiny", "ctc_loss", unit="us", lossops=12.4, eager=10.0), 1, []),
        (row("others_tiny", "ctc_loss", unit="us", lossops=12.6, eager=10.0), 0, ["torch's own"]),
        (row("vectors_memory", "dice_loss", VECTOR, "gradients", lossops=1.0), 1, []),
        (row("vectors_memory", "dice_loss", VECTOR, "gradients", lossops=1.1), 0, ["memory"]),
        (
            row("rows_memory", "cross_entropy", ROW, "gradients", lossops=1.0) | {"inplace": True},
            0,
            ["inplace=True"],
        ),
        (row("linear_memory", "linear_cross_entropy", "", "logits", lossops=0.16), 0, ["memory"]),
    ],
)  # fmt: skip
def test_targets_are_met_and_missed(row, met, missed):
    outcomes = targets.outcomes([row])
    assert sum(outcome["met"] for outcome in outcomes) == met
    found = [outcome for outcome in outcomes if not outcome["met"]]
    assert len(found) == len(missed)
    for outcome, words in zip(found, missed, strict=True):
        assert words in outcome["target"]
        assert outcome["missed"][0].startswith(row["loss"])
    text = to_text(families.tables({"bench": [], "targets": outcomes})[0])
    assert text.count("missed  ") == len(missed)


# ---------------------------------------------------------------------------------------------
# Tables, and the page of the report.


def test_tables_align_and_escape():
    table = Table("a & b", ("loss", "ms"), note="<note>")
    table.add("mse", number(1.5))
    table.add("log-cosh", verdict(False))
    lines = to_text(table).splitlines()
    assert lines[4] == "mse       1.50"
    assert lines[5] == "log-cosh  FAIL"
    drawn = to_html(table)
    assert "a &amp; b" in drawn
    assert "&lt;note&gt;" in drawn
    assert '<td class="number bad">FAIL</td>' in drawn
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        table.add("too few")


def test_page_says_what_fell_short():
    outcomes = targets.outcomes([step(floor=10.0, lossops=13.0, eager=30.0, compile=20.0)])
    assert all(outcome["reason"] for outcome in outcomes if not outcome["met"])
    verified = {"numbers": [{"passed": True}, {"passed": False}], "checks": []}
    finding = {"claim": "x < y", "measured": "x = 2", "confirmed": False}
    top = page.summary(verified, ["mse_loss native: wrong"], outcomes, [finding])
    table = Table("Errors", ("loss", "ulp"))
    section = page.section("verify", "Verification", "words", [("a.png", "a picture")], [table])
    text = page.page([section], "title", "lead", top)
    assert "<b>Fails:</b> mse_loss native: wrong" in text
    assert text.count("<b>Target missed:</b>") == 3
    assert outcomes[0]["reason"] in text
    assert "x &lt; y" in text
    assert '<img src="a.png" alt="a picture">' in text
    assert ">1 / 2</b>" in text
    assert not re.search(r"https?://|<script", text), "the page stands alone"
    passed = {"numbers": [{"passed": True}], "checks": []}
    assert "Nothing fell short." in page.summary(passed, [], [], [])
