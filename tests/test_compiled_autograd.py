"""Compiled autograd for graphs recorded by eager forward passes."""

from __future__ import annotations

import os

import pytest
import torch
from conftest import BACKEND, make
from torch._dynamo import compiled_autograd

import lossops
from lossops import functional
from lossops.core.fused import Fused
from lossops.elementwise.autograd import ElementwiseCall
from lossops.elementwise.ops import ElementwiseArguments


def compiled_gradient(loss: torch.Tensor, input: torch.Tensor, scale: float) -> torch.Tensor:
    with compiled_autograd._enable(torch.compile(backend="eager")):
        (loss * scale).backward()
    return input.grad


@pytest.mark.parametrize("extra", ["return_lse", "return_entropy", "return_accuracy", "inplace"])
def test_rows_with_extras(extra):
    if extra == "inplace" and os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("what is left to eager execution there, dynamo would trace: the interpreter")
    labels = torch.tensor([0, 4, 2], device=make.zeros(1).device)
    input, twin = (make.randn(3, 5, requires_grad=True) for _ in range(2))
    twin.data.copy_(input.data)
    leaf = input
    if extra == "inplace":
        input = input * 1  # a leaf cannot be overwritten
    loss = functional.cross_entropy(input, labels, **{extra: True})
    found = compiled_gradient(loss if extra == "inplace" else loss[0], leaf, 3.0)
    (torch.nn.functional.cross_entropy(twin, labels) * 3.0).backward()
    torch.testing.assert_close(found, twin.grad)


@pytest.mark.skipif(BACKEND == "reference", reason="the reference has no autograd Function")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_elements(reduction):
    input, target = make.randn(4, requires_grad=True), make.randn(4)
    call = ElementwiseCall(BACKEND, ElementwiseArguments("mse", (), reduction, 0), torch.float32)
    (loss,) = Fused.apply(call, input, target, None, None)
    found = compiled_gradient(loss.sum(), input, 3.0)
    expected = 6.0 * (input - target).detach() / (4 if reduction == "mean" else 1)
    torch.testing.assert_close(found, expected)


@pytest.mark.skipif(BACKEND != "native", reason="about the autograd nodes in C++")
@pytest.mark.parametrize("rows", [False, True])
def test_nodes_in_cpp_are_refused(rows):
    input = make.randn(3, 5, requires_grad=True)
    labels = torch.tensor([0, 4, 2], device=input.device)
    with lossops.backend("native"):
        loss = (
            functional.cross_entropy(input, labels)
            if rows
            else functional.mse_loss(input, torch.zeros_like(input))
        )
    with pytest.raises(RuntimeError, match="Capsule"):
        compiled_gradient(loss, input, 3.0)
