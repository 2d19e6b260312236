"""torch.jit.script compiles torch's losses in place of ours, and rejects losses that torch
lacks."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
import torch.nn.functional as torch_functional
from conftest import DEVICE, make

import lossops
from lossops import functional, nn, scripting


def scripted(what):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(what)


class Model(torch.nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.layer, self.loss = torch.nn.Linear(5, 5, device=DEVICE), loss

    def forward(self, x, y):
        return self.loss(self.layer(x), y)


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (nn.CrossEntropyLoss(make.rand(5), label_smoothing=0.1), make.arange(5)),
        (nn.MSELoss(reduction="sum"), make.rand(5, 5)),
        (nn.SmoothL1Loss(beta=0.3), make.rand(5, 5)),
        (nn.BCEWithLogitsLoss(pos_weight=make.rand(5)), make.rand(5, 5)),
        (nn.BCEWithLogitsLoss(pos_weight=3.0), make.rand(5, 5)),
        (nn.MultiMarginLoss(p=2, margin=0.5), make.arange(5)),
    ],
)
def test_a_script_has_torchs_loss(loss, target):
    """Alone and in a model, saved, and differentiated."""
    x = make.randn(5, 5, requires_grad=True)
    for module in (loss, Model(loss)):
        expected = module(x, target)
        file = io.BytesIO()
        torch.jit.save(scripted(module), file)
        file.seek(0)
        found = torch.jit.load(file)(x, target)
        torch.testing.assert_close(found, expected)
        grads = [torch.autograd.grad(value, x)[0] for value in (found, expected)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", nn.__all__)
def test_modules_are_scripted_or_refused(name):
    """Modules are scripted like torch's. Modules that torch cannot compile or does not have are
    rejected with a message."""
    arguments = (4, 3) if name == "LinearCrossEntropyLoss" else ()
    module = getattr(nn, name)(*arguments)
    if hasattr(torch.nn, name):
        try:
            scripted(getattr(torch.nn, name)(*arguments))
        except Exception:
            assert name in scripting._BEYOND_SCRIPT
        else:
            assert isinstance(scripted(module), torch.jit.ScriptModule)
            with pytest.raises(NotImplementedError, match="reduction='sample'"):
                scripted(getattr(nn, name)(reduction="sample"))
            return
    with pytest.raises(NotImplementedError, match=rf"lossops\.nn\.{name}.*use torch\.compile"):
        scripted(module)


def test_options_are_refused_that_torch_lacks():
    for module, option in (
        (nn.CrossEntropyLoss(z_loss=0.1), "z_loss=0.1"),
        (nn.CrossEntropyLoss(return_lse=True), "return_lse=True"),
        (nn.BCELoss(label_smoothing=0.1), "label_smoothing=0.1"),
        (nn.NLLLoss(empty="zero"), "empty='zero'"),
    ):
        with pytest.raises(NotImplementedError, match=option):
            scripted(Model(module))


def test_functions_in_scripts():
    def ours(x, y):
        return functional.smooth_l1_loss(x, y, beta=0.5)

    def torchs(x, y):
        return torch_functional.cross_entropy(x, y)

    def weighted(x, y):
        return functional.smooth_l1_loss(x, y, weight=y)

    def lacking(x, y):
        return functional.focal_loss(x, y)

    x, y = make.randn(5, 5), make.rand(5, 5)
    torch.testing.assert_close(scripted(ours)(x, y), ours(x, y))
    with lossops.use_in_torch():
        torch.testing.assert_close(scripted(torchs)(x, y), torchs(x, y))
        compiled = scripted(torch.nn.CrossEntropyLoss())
        torch.testing.assert_close(compiled(x, y), torchs(x, y))
    with pytest.raises(RuntimeError, match="Keyword argument weight unknown"):
        scripted(weighted)
    with pytest.raises(NotImplementedError, match=r"cannot compile.*focal_loss:"):
        scripted(lacking)
    for name in scripting._BEYOND_SCRIPT & set(functional.__all__):
        with pytest.raises(NotImplementedError, match=f"cannot compile.*{name}"):
            scripted(getattr(functional, name))
