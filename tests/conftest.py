"""Shared by all tests: fresh random numbers whose seed a failure prints, and proof of what ran."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
from collections.abc import Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lossops import specs

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ALL_CASES = [
    pytest.param(row, kwargs, id="-".join([row.name, *(f"{k}={v}" for k, v in kwargs.items())]))
    for row in specs.SPECS
    for kwargs in row.samples
]
each_case = pytest.mark.parametrize(("spec", "kwargs"), ALL_CASES)
each_spec = pytest.mark.parametrize("spec", specs.SPECS, ids=lambda row: row.name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
each_reduction = pytest.mark.parametrize("reduction", ["none", "mean", "sum", "sample"])


@pytest.fixture(autouse=True)
def seed(request) -> int:
    """A fresh seed for every test. LOSSOPS_TEST_SEED repeats the one that a failure printed."""
    value = int(os.environ.get("LOSSOPS_TEST_SEED") or secrets.randbits(31))
    torch.manual_seed(value)
    random.seed(value)
    request.node.user_properties.append(("seed", value))
    return value


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for name, value in item.user_properties:
            if name == "seed":
                report.sections.append(("seed", f"repeat with LOSSOPS_TEST_SEED={value}"))


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def expect_ops(*names: str) -> Iterator[list[str]]:
    """Asserts that these ops ran in the block, whatever else did."""
    recorder = _Recorder()
    with recorder:
        yield recorder.names
    missing = [name for name in names if name not in recorder.names]
    assert not missing, f"did not run: {missing}; what ran: {recorder.names}"


def ran(names: list[str], prefix: str) -> list[str]:
    return [name for name in names if name.startswith(prefix)]


def away_from_kinks(spec, kwargs, *shape, dtype=torch.float64, margin=0.05):
    """Input and target whose difference is nowhere near a kink, on both sides of each."""
    target = torch.randn(shape, dtype=torch.float64)
    difference = torch.randn(shape, dtype=torch.float64) * 1.5
    for kink in spec.kinks(kwargs):
        near = (difference - kink).abs() < margin
        difference = torch.where(
            near, kink + torch.sign(difference - kink + 1e-9) * margin, difference
        )
    return (target + difference).to(dtype), target.to(dtype)


def random_grad_like(loss: torch.Tensor) -> torch.Tensor:
    """A cotangent that is neither uniform nor positive."""
    return torch.randn_like(loss.detach())
