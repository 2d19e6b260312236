"""bench of the losses without kernels."""

from __future__ import annotations

import pytest
import torch
from conftest import cpu_only

from benchmarks.bench import others as others_bench
from benchmarks.bench import targets
from lossops.specs.others import OTHERS
from lossops.verify.tables import to_text

pytestmark = cpu_only


def test_they_are_measured():
    rows = others_bench.bench(quick=True)
    tiny = ["others_tiny"] * len(OTHERS)
    assert [row["kind"] for row in rows] == ["linear_step", *tiny, "linear_memory"]
    assert [row["loss"] for row in rows[1:-1]] == [other.name for other in OTHERS]
    assert len(rows) == others_bench.pieces(OTHERS)
    assert all(time > 0 for row in rows[:-1] for time in row.get("ms", row.get("us")).values())
    assert {"lossops", "eager", "compile", "products"} <= set(rows[0]["ms"])
    held = rows[-1]["logits"]
    assert held["lossops"] < 0.5 < held["eager"]
    linear, calls = map(to_text, others_bench.tables(rows))
    assert "over its products" in linear
    assert all(other.name in calls for other in OTHERS)


def test_parts_of_losses_that_are_measured():
    (ctc,) = (other for other in OTHERS if other.name == "ctc_loss")
    assert others_bench.pieces([ctc]) == others_bench.pieces(OTHERS, ["memory"]) == 1
    assert others_bench.pieces([ctc], ["step"]) == others_bench.pieces([]) == 0
    assert others_bench.bench([ctc], parts=["step"]) == []


def test_the_linear_steps_compute_the_same():
    steps, grads = others_bench.Steps(6, 5, 7, "cpu"), {}
    for name, step in steps.contenders().items():
        step()
        grads[name] = [steps.x.grad, steps.weight.grad]
    for name in ("eager", "compile", "chunked"):
        if name in grads:
            torch.testing.assert_close(grads["lossops"], grads[name])
    assert [g.shape for g in grads["products"]] == [g.shape for g in grads["lossops"]]


@pytest.mark.parametrize(
    ("of", "ms", "met"),
    [("products", 87.0, True), ("products", 86.0, False), ("compile", 101.0, True),
     ("compile", 99.0, False)],
)  # fmt: skip
def test_the_linear_targets_are_met_and_missed(of, ms, met):
    row = {
        "kind": "linear_step", "loss": others_bench.LINEAR, "case": "", "device": "cpu",
        "memory": "default", "ms": {"lossops": 100.0, of: ms},
    }  # fmt: skip
    (outcome,) = targets.outcomes([row], False, others_bench.TARGETS)
    assert outcome["met"] is met


@pytest.mark.parametrize(("us", "met"), [(12.4, True), (12.6, False)])
def test_what_a_call_may_cost(us, met):
    row = {
        "kind": "others_tiny", "loss": "ctc_loss", "case": "", "device": "cpu",
        "memory": "default", "us": {"lossops": us, "eager": 10.0},
    }  # fmt: skip
    (outcome,) = targets.outcomes([row], False, others_bench.TARGETS)
    assert outcome["met"] is met
