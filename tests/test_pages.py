"""Large results use huge pages, so that a step does not take thousands of page faults."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import cpu_only

ROOT = Path(__file__).parent.parent
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")

# Page faults of one step with a gradient of 64 MiB, in fresh memory.
STEP = """
import resource, sys, torch
from lossops import functional as F

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

x = torch.zeros(4096, 4096, requires_grad=True)
if sys.argv[1] == "none":
    step = lambda: F.mse_loss(x.detach(), x.detach(), reduction="none")
else:
    y = torch.zeros(4096, 4096) if sys.argv[1] == "mse_loss" else torch.zeros(4096).long()
    step = lambda: getattr(F, sys.argv[1])(x, y).backward()
    getattr(F, sys.argv[1])(x[:1], y[:1]).backward()
    x.grad = None
before = faults()
kept = step()
print(faults() - before)
"""


def faults(function: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", STEP, function],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@cpu_only
@pytest.mark.skipif(
    not SETTING.exists() or "[madvise]" not in SETTING.read_text(),
    reason="the system gives huge pages to nobody, or to all without being asked",
)
@pytest.mark.parametrize("function", ["mse_loss", "cross_entropy", "multi_margin_loss", "none"])
def test_a_large_gradient_takes_few_page_faults(function):
    pages = 4096 * 4096 * 4 // 4096
    assert faults(function) < pages / 8
    assert faults(function, LOSSOPS_HUGE_PAGES="0") > pages / 2
