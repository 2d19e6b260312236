"""Training with each loss, and the claims that are decided by it."""

from __future__ import annotations

import pytest
import torch

from benchmarks.claims import classification, classifying, regression, training
from lossops import functional


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


def test_who_leaves_again_has_not_arrived():
    there = torch.tensor([[False, True], [True, False], [True, True]])
    assert training.arrival(there) == 1
    assert training.arrival(there[:, 1:]) == 2
    assert training.arrival(~there[:, :1]) == 3  # never


def test_training_learns():
    wanted = [classifying.contender(name) for name in ("cross entropy", "L1, soft labels")]
    for row in classifying.train(wanted, seeds=1, steps=60):
        assert row["clean"]["by_step"][0] < 0.3
        assert row["clean"]["by_step"][-1] > 0.6
        assert len(row["wrong"]["by_step"]) == 7


def classified(name, clean, wrong, arrives=5):
    by_step = [0.1] * arrives + [0.99] * 10
    return {
        "name": name, "loss": "cross_entropy", "soft": False,
        "clean": {"accuracy": [clean, clean], "by_step": by_step},
        "wrong": {"accuracy": [wrong, wrong + 0.001], "by_step": by_step},
    }  # fmt: skip


@pytest.mark.parametrize("as_claimed", [True, False])
def test_claims_about_classification_are_decided_by_the_numbers(as_claimed):
    low, high = (0.90, 0.96) if as_claimed else (0.96, 0.90)
    rows = [
        classified("cross entropy", 0.97, low, 2 if as_claimed else 9),
        classified("L1", 0.97, high, 5),
    ]
    steps = ([10, 20, 30], [20, 40, 60])
    ours, theirs = steps if as_claimed else steps[::-1]
    race = [{"name": "cross entropy", "steps": ours}, {"name": "L1", "steps": theirs}]
    found = {f["claim"]: f["confirmed"] for f in classification.findings(rows, race)}
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
    assert classification._as_cross_entropy().confirmed is False
    assert classification._asymmetric().confirmed is False


def regressed(loss, clean, corrupted):
    return {
        "loss": loss,
        "clean": {"mae": [clean, clean + 1], "rmse": [clean, clean]},
        "corrupted": {"mae": [corrupted, corrupted + 1], "rmse": [corrupted, corrupted]},
    }


@pytest.mark.parametrize("robust", [True, False])
def test_claims_about_regression_are_decided_by_the_numbers(robust):
    names = ("mse_loss", "l1_loss", "huber_loss", "log_cosh_loss")
    rows = [regressed(name, 40.0, 41.0 if robust else 90.0) for name in names]
    rows[0] = regressed("mse_loss", 40.0, 90.0)
    convergence = [
        {"loss": name, "steps": [10, 20, 30] if robust else [None] * 3} for name in names
    ]
    found = {f["claim"]: f["confirmed"] for f in regression.findings(rows, convergence)}
    assert found["MSE is more sensitive to outliers"] is robust
    assert found["Huber is robust to outliers"] is robust
    assert found["MSE converges faster than L1"] is False
    assert found["Huber is fast like MSE"] is True
    convergence[2]["steps"] = [10, 20, 38 if robust else 1]  # of Huber
    found = {f["claim"]: f["confirmed"] for f in regression.findings(rows, convergence)}
    assert found["Huber is fast like MSE"] is not robust
    assert found["log-cosh is differentiable twice everywhere"] is True
