"""Measurements and claims of the losses over rows."""

from __future__ import annotations

import pytest
import torch

from benchmarks.bench import softmax as softmax_bench
from benchmarks.bench import softmax_tables, softmax_targets, softmax_worker, targets
from benchmarks.bench.softmax_steps import Rows, cases, contenders
from benchmarks.claims import classification as classification_claims
from benchmarks.claims import classifying
from lossops import functional
from lossops.specs.softmax import ROW_SPECS, row_spec
from lossops.verify.tables import to_text

# ---------------------------------------------------------------------------------------------
# Measuring.


def test_every_loss_has_a_case_and_goals_have_theirs():
    losses = [spec.name for spec in ROW_SPECS]
    found = cases(losses)
    assert {case.loss for case in found} == set(losses)
    words = {(case.loss, case.words()) for case in found}
    for shape in ("512 × 32000", "4096 × 1000", "64 × 128256", "8 × 21 × 512 × 512"):
        assert ("cross_entropy", shape) in words
    assert ("kl_divergence", "512 × 32000, target logits") in words
    assert cases(["poly_loss"]) == [case for case in found if case.loss == "poly_loss"]


@pytest.mark.parametrize("case", cases([spec.name for spec in ROW_SPECS]), ids=lambda c: c.words())
def test_contenders_compute_the_same(case):
    case = case.quick()
    rows = Rows(case, torch.float64, "cpu")
    steps, grads = contenders(case, rows, compiled=False), {}
    for name in ("lossops", "eager"):
        steps[name]()
        grads[name] = rows.input.grad
    torch.testing.assert_close(grads["lossops"], grads["eager"])
    steps["floor"]()
    assert rows.input.grad.shape == rows.input.shape


def test_bench_quick():
    task = dict.fromkeys(softmax_bench.PARTS, True)
    task |= {"losses": ["cross_entropy"], "device": "cpu", "quick": True, "compile": False}
    rows = list(softmax_worker.run(task | {"rounds": 1}))
    kinds = {row["kind"] for row in rows}
    assert kinds == {"rows_step", "rows_half", "rows_tiny", "rows_memory"}
    assert len(rows) == softmax_bench.pieces([row_spec("cross_entropy")])
    for row in rows:
        if row["kind"] == "rows_memory":
            held = row["gradients"]["lossops"]
            assert held < 0.1 if row["inplace"] else 0.9 < held < 1.1
        else:
            assert all(time > 0 for time in row.get("ms", row.get("us")).values())
    text = "\n".join(to_text(table) for table in softmax_tables.tables(rows))
    assert "eager / lossops" in text
    assert "inplace=True" in text


def test_targets_are_met_and_missed():
    row = {
        "kind": "rows_step", "loss": "cross_entropy", "case": "512 × 32000", "device": "cpu",
        "memory": "warm", "ms": {"floor": 10.0, "lossops": 11.0, "eager": 33.0, "compile": 12.0},
    }  # fmt: skip
    found = {
        outcome["target"]: outcome["met"]
        for outcome in targets.outcomes([row], False, softmax_targets.ALL)
        if outcome["met"] is not None
    }
    assert found["cross_entropy faster than torch eager"] is True
    assert found["cross_entropy faster than torch.compile"] is False
    assert not any("pictures" in name or "kl_divergence" in name for name in found)


# ---------------------------------------------------------------------------------------------
# Training and claims.


def test_soft_labels_are_distributions_and_wrong_labels_wrong():
    data = classifying.digits(2)
    soft = data.soft()
    torch.testing.assert_close(soft.sum(-1), torch.ones(soft.shape[:2]))
    assert torch.equal(soft.argmax(-1), data.train_y)
    wrong = data.with_wrong_labels()
    share = (wrong.train_y != data.train_y).double().mean().item()
    assert abs(share - classifying.WRONG) < 0.001
    assert torch.equal(wrong.test_y, data.test_y)
    assert int(wrong.train_y.min()) >= 0
    assert int(wrong.train_y.max()) < classifying.CLASSES


def test_training_learns():
    wanted = [classifying.contender(name) for name in ("cross entropy", "L1, soft labels")]
    for row in classifying.train(wanted, seeds=1, steps=60):
        assert row["clean"]["by_step"][0] < 0.3
        assert row["clean"]["by_step"][-1] > 0.6
        assert len(row["wrong"]["by_step"]) == 7


def training(name, clean, wrong, arrives=5):
    by_step = [0.1] * arrives + [0.99] * 10
    return {
        "name": name, "loss": "cross_entropy", "soft": False,
        "clean": {"accuracy": [clean, clean], "by_step": by_step},
        "wrong": {"accuracy": [wrong, wrong + 0.001], "by_step": by_step},
    }  # fmt: skip


@pytest.mark.parametrize("as_claimed", [True, False])
def test_claims_are_decided_by_the_numbers(as_claimed):
    low, high = (0.90, 0.96) if as_claimed else (0.96, 0.90)
    rows = [
        training("cross entropy", 0.97, low, 2 if as_claimed else 9),
        training("L1", 0.97, high, 5),
    ]
    steps = ([10, 20, 30], [20, 40, 60])
    ours, theirs = steps if as_claimed else steps[::-1]
    race = [{"name": "cross entropy", "steps": ours}, {"name": "L1", "steps": theirs}]
    found = {f["claim"]: f["confirmed"] for f in classification_claims.findings(rows, race)}
    decided = [
        "L1 over distributions is robust to wrong labels",
        "Cross entropy is sensitive to label noise",
        "L1 over distributions learns more slowly than cross entropy",
        "Cross entropy learns faster than L1 over distributions",
    ]
    assert [found[claim] for claim in decided] == [as_claimed] * 4
    assert found["KL is as cross entropy"] is True
    assert found["KL is not symmetric"] is True
    assert found["The losses of the lecture take hard and soft labels"] is True


def test_a_false_claim_is_not_confirmed(monkeypatch):
    """For claims that are decided by the kernels alone."""
    monkeypatch.setattr(
        functional, "kl_divergence",
        lambda x, y, reduction="mean", **kwargs: functional.js_divergence(
            x, y, reduction=reduction,
            **{k: v for k, v in kwargs.items() if k == "target_form"}),
    )  # fmt: skip
    assert classification_claims._as_cross_entropy().confirmed is False
    assert classification_claims._asymmetric().confirmed is False
