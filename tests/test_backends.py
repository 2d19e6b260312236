"""Which backend runs, what happens if one is missing, and the cost."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import cpu_only, each_spec, expect_ops, pair, ran

import lossops
from lossops.core import backends

ROOT = Path(__file__).parent.parent


def python(code: str, **environment: str) -> str:
    """Runs code in a new interpreter and returns its output."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@each_spec
def test_reference_runs_no_kernel_and_agrees(spec):
    x, y = pair(spec, 6, 5)
    x.requires_grad_()
    native = spec.function(x, y, **spec.defaults)
    with lossops.backend("reference"), expect_ops() as names:
        plain = spec.function(x, y, **spec.defaults)
        (grad,) = torch.autograd.grad(plain, x)
    assert not ran(names, "lossops")
    torch.testing.assert_close(native, plain)
    torch.testing.assert_close(torch.autograd.grad(native, x)[0], grad)


def test_choice_nests_and_is_undone_after_an_error():
    before = backends.chosen()
    with lossops.backend("reference"):
        with lossops.backend("native"):
            assert backends.chosen() == "native"
        assert backends.chosen() == "reference"
        with pytest.raises(ZeroDivisionError), lossops.backend("native"):
            raise ZeroDivisionError
        assert backends.chosen() == "reference"
    assert backends.chosen() == before


def test_overlapping_choices_of_two_threads():
    before = backends.chosen()
    first, second = lossops.backend("reference"), lossops.backend("native")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert backends.chosen() == "native"
    second.__exit__(None, None, None)
    assert backends.chosen() == before


def test_environment_variable():
    code = "import lossops; print(lossops.info()['chosen'])"
    assert python(code, LOSSOPS_BACKEND="reference") == "reference"
    with pytest.raises(AssertionError, match="LOSSOPS_BACKEND should be one of"):
        python(code, LOSSOPS_BACKEND="fast")


@cpu_only
def test_without_the_extension():
    """lossops can be imported, runs on the reference, and reports this."""
    out = python(
        """
        import sys
        sys.modules["lossops._C"] = None
        import torch, lossops
        x = torch.randn(5, requires_grad=True)
        lossops.functional.huber_loss(x, torch.zeros(5)).backward()
        assert x.grad.abs().sum() > 0
        torch.func.hessian(lambda v: lossops.functional.log_cosh_loss(v, x.detach()))(torch.ones(5))
        print(lossops.info()["native"]["built"], lossops.info()["backends"]["cpu"])
        """
    )
    assert out == "False ['reference']"


INSTRUCTION_SETS = ["default", "avx2", "avx512"]


@cpu_only
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_instruction_set(name):
    """Every instruction set of this machine gives the same results. The default is chosen as in
    torch."""
    if name.upper() not in backends.native_extension.build_info()["instruction_sets"].split(", "):
        pytest.skip(f"built without kernels for {name}: LOSSOPS_ISA")
    best = INSTRUCTION_SETS.index(backends.native_extension.instruction_set())
    if INSTRUCTION_SETS.index(name) > best:
        pytest.skip(f"this processor has no {name}")
    out = python(
        """
        import torch, lossops
        from lossops.core import backends
        from lossops.elementwise import reference
        from lossops.specs import elementwise as specs
        torch.manual_seed(0)
        print(backends.native_extension.instruction_set())
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            for spec in specs.SPECS:
                numbers = torch.randn(2, 37, 61, dtype=torch.float64).unbind(0)
                x, y = (t.to(dtype) for t in spec.inner(*numbers))
                x.requires_grad_()
                value = spec.function(x, y, reduction="none", **spec.defaults)
                g = torch.randn_like(value)
                grad, = torch.autograd.grad(value, x, g)
                e = x.detach().double().requires_grad_()
                params = spec.params(spec.defaults)
                true = reference.FORMULAS[spec.kernel](e, y.double(), *params)
                true_grad, = torch.autograd.grad(true, e, g.double())
                eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal
                close = dict(rtol=(4 + spec.slack(spec.defaults)) * eps, atol=tiny * eps)
                if spec.kernel in reference.TERMS:  # which may cancel
                    close["atol"] = 8 * eps
                torch.testing.assert_close(value.double(), true, **close)
                torch.testing.assert_close(grad.double(), true_grad, **close)
        """,
        ATEN_CPU_CAPABILITY=name,
    )
    assert out == name


def test_info_is_complete():
    info = lossops.info()
    assert info["native"]["built"]
    assert info["native"]["instruction_set"] in INSTRUCTION_SETS
    assert info["native"]["instruction_set"].upper() in info["native"]["instruction_sets"]
    assert info["torch"] == torch.__version__
    assert info["backends"]["cpu"][0] == "native"


@cpu_only  # test_cuda.py has the counterpart
@each_spec
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_peak_memory_is_one_gradient(spec, reduction, scale):
    """Measured from the allocator's own records."""
    n = 1 << 18
    x, y = pair(spec, n)
    x.requires_grad_()
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        (spec.function(x, y, reduction=reduction, **spec.defaults) * scale).backward()
    alive = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    assert peak >= 4 * n, "the gradient itself was not seen: the measurement is broken"
    assert peak <= 4 * n + 4096


def test_extension_lists_the_losses_of_the_specs():
    from lossops.elementwise import reference
    from lossops.specs import elementwise as specs

    built = set(backends.native_extension.build_info()["elementwise_losses"])
    assert built == {row.kernel for row in specs.SPECS} == set(reference.FORMULAS)
