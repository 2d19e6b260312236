"""bench of the losses over rows of vectors."""

from __future__ import annotations

import torch
from conftest import cpu_only

from benchmarks.bench import families as bench_all
from benchmarks.bench import targets
from benchmarks.bench import vectors as vectors_bench
from lossops.specs.vectors import VECTOR_SPECS, vector_spec
from lossops.verify.tables import to_text

pytestmark = cpu_only


def test_bench_quick():
    spec = vector_spec("dice_loss")
    task = {
        "losses": [spec.name], "parts": vectors_bench.PARTS, "device": "cpu", "quick": True,
        "rounds": 1,
    }  # fmt: skip
    rows = list(vectors_bench.run(task))
    assert [row["kind"] for row in rows] == ["vectors_step", "vectors_tiny", "vectors_memory"]
    assert len(rows) == vectors_bench.pieces([spec])
    for row in rows:
        if row["kind"] == "vectors_memory":
            assert 0.9 < row["gradients"]["lossops"] < 1.1
        else:
            assert all(time > 0 for time in row.get("ms", row.get("us")).values())
    found = {"bench": rows, "targets": targets.outcomes(rows, False, vectors_bench.TARGETS)}
    text = "\n".join(to_text(table) for table in bench_all.tables(found))
    assert "rows of vectors" in text
    assert "eager / lossops" in text


def test_steps_compute_what_they_say():
    for spec in VECTOR_SPECS:
        steps, grads = vectors_bench.Steps(spec, (6, 11), "cpu"), {}
        contenders = steps.contenders(compiled=False)
        for name in ("lossops", "eager"):
            contenders[name]()
            grads[name] = [v.grad for v in steps.vectors]
        torch.testing.assert_close(grads["lossops"], grads["eager"])


def test_targets_are_met_and_missed():
    row = {
        "kind": "vectors_step", "loss": "dice_loss", "case": "16384 × 1024", "device": "cpu",
        "memory": "warm", "ms": {"lossops": 10.0, "eager": 21.0, "compile": 9.0},
    }  # fmt: skip
    found = {
        outcome["target"]: outcome["met"]
        for outcome in targets.outcomes([row], False, vectors_bench.TARGETS)
    }
    assert found["losses over vectors faster than torch eager"] is True
    assert found["losses over vectors faster than torch.compile"] is False
