"""verify and bench of the losses without kernels, and that verify leaves no loss out."""

from __future__ import annotations

import pytest
import torch
from conftest import cpu_only

from lossops import functional
from lossops.report import build, linear_bench, others_verify, targets
from lossops.report.others_verify import OTHERS
from lossops.report.tables import to_text

pytestmark = cpu_only
each_other = pytest.mark.parametrize("other", OTHERS, ids=lambda other: other.name)


def test_every_loss_is_verified():
    names = {getattr(row, "public_name", row.name) for family in build.FAMILIES for row in family}
    assert names == set(functional.__all__)


@each_other
def test_verify_passes(other):
    result = others_verify.verify([other])
    assert result["passed"], others_verify.failures(result)
    assert other.name in to_text(others_verify.tables(result)[0])


@each_other
@pytest.mark.parametrize("what", ["value", "gradient"])
def test_verify_finds_what_is_wrong(other, what, monkeypatch):
    right = getattr(functional, other.name)

    def wrong(input, *arguments, **options):
        loss = right(input, *arguments, **options)
        return loss * 1.001 if what == "value" else loss + (input - input.detach()).sum()

    monkeypatch.setattr(functional, other.name, wrong)
    result = others_verify.verify([other])
    assert not result["passed"]
    failed = {name for row in result["checks"] for name in row if row[name] and name in FOUND}
    assert failed >= {"float64", "float32"} | ({"gradcheck"} if what == "gradient" else set())
    assert others_verify.failures(result)


FOUND = ("float64", "float32", "gradcheck")


def test_the_linear_layer_is_measured():
    task = {"parts": linear_bench.PARTS, "device": "cpu", "quick": True}
    rows = list(linear_bench.run(task))
    assert [row["kind"] for row in rows] == ["linear_step", "linear_memory"]
    assert len(rows) == linear_bench.pieces(OTHERS)
    assert linear_bench.pieces([other for other in OTHERS if other.name == "ctc_loss"]) == 0
    assert all(time > 0 for time in rows[0]["ms"].values())
    held = rows[1]["logits"]
    assert held["lossops"] < 0.5 < held["eager"]
    (table,) = linear_bench.tables(rows)
    assert "over its products" in to_text(table)


def test_the_linear_steps_compute_the_same():
    steps, grads = linear_bench.Steps(6, 5, 7, "cpu"), {}
    for name, step in steps.contenders().items():
        step()
        grads[name] = [steps.x.grad, steps.weight.grad]
    for name in ("eager", "chunked"):
        if name in grads:
            torch.testing.assert_close(grads["lossops"], grads[name])
    assert [g.shape for g in grads["products"]] == [g.shape for g in grads["lossops"]]


@pytest.mark.parametrize(("ms", "met"), [(114.0, True), (116.0, False)])
def test_the_linear_targets_are_met_and_missed(ms, met):
    row = {
        "kind": "linear_step", "loss": linear_bench.NAME, "case": "", "device": "cpu",
        "memory": "default", "ms": {"lossops": ms, "products": 100.0},
    }  # fmt: skip
    (outcome,) = targets.outcomes([row], False, linear_bench.TARGETS)
    assert outcome["met"] is met
