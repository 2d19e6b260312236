"""Losses under tracers: torch.compile with changing hyperparameters and tensor subclasses,
ahead-of-time compilation, make_fx, and tensors without data."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import DEVICE, cpu_only, make, needs_kernels
from test_graphs import ALL
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx

from lossops import functional
from lossops.specs.elementwise import SPECS


def _labels(classes=5, rows=8):
    return torch.arange(rows, device=DEVICE) % classes


WALKED = SimpleNamespace(batch_chunk_size=3)

# name: the loss of logits x and a number that changes from step to step.
SCHEDULES = {
    "delta": lambda x, v: functional.huber_loss(x, 0 * x.detach(), delta=v),
    "beta": lambda x, v: functional.smooth_l1_loss(x, 0 * x.detach(), beta=v),
    "epsilon": lambda x, v: functional.charbonnier_loss(x, 0 * x.detach(), epsilon=v),
    "quantile": lambda x, v: functional.quantile_loss(x, 0 * x.detach(), v / 20),
    "gamma": lambda x, v: functional.sigmoid_focal_loss(x, x.detach().sigmoid(), gamma=v),
    "alpha": lambda x, v: functional.sigmoid_focal_loss(x, x.detach().sigmoid(), alpha=v / 20),
    "pos_weight": lambda x, v: functional.binary_cross_entropy_with_logits(
        x, x.detach().sigmoid(), pos_weight=v
    ),
    "eps": lambda x, v: functional.poisson_nll_loss(
        x.exp(), x.detach().exp(), log_input=False, eps=v
    ),
    "var": lambda x, v: functional.gaussian_nll_loss(x, 0 * x.detach(), v),
    "none": lambda x, v: functional.huber_loss(x, 0 * x.detach(), "none", v).sum(),
    "label_smoothing": lambda x, v: functional.cross_entropy(x, _labels(), label_smoothing=v / 20),
    "temperature": lambda x, v: functional.cross_entropy(x, _labels(), temperature=v),
    "softcap": lambda x, v: functional.cross_entropy(x, _labels(), softcap=v),
    "z_loss": lambda x, v: functional.cross_entropy(x, _labels(), z_loss=v),
    "normalizer": lambda x, v: functional.cross_entropy(x, _labels(), normalizer=v),
    "lse": lambda x, v: functional.cross_entropy(x, _labels(), temperature=v, return_lse=True)[
        1
    ].sum(),
    "softmax gamma": lambda x, v: functional.focal_loss(x, _labels(), gamma=v),
    "softmax alpha": lambda x, v: functional.focal_loss(x, _labels(), alpha=v),
    "divergence": lambda x, v: functional.kl_divergence(x, 0 * x.detach(), temperature=v),
    "margin": lambda x, v: functional.triplet_margin_loss(x, x.detach() + 1, x.detach(), v),
    "hinge": lambda x, v: functional.multi_margin_loss(x, _labels(), margin=v),
    "smooth": lambda x, v: functional.dice_loss(x, x.detach().sigmoid(), smooth=v),
    "linear": lambda x, v: functional.linear_cross_entropy(
        x, torch.eye(300, 5, device=DEVICE), _labels(), z_loss=v, options=WALKED
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_a_hyperparameter_that_changes_is_compiled_twice_at_most(name, compiler):
    """Once with a constant and once with a symbol."""
    if compiler == "inductor" and name not in ("delta", "temperature", "margin", "linear"):
        pytest.skip("one of each family is enough for the compiler that takes long")
    loss = SCHEDULES[name]
    torch._dynamo.reset()
    counter = CompileCounter() if compiler == "eager" else CompileCounterWithBackend(compiler)
    compiled = torch.compile(loss, backend=counter, fullgraph=True)
    x = make.randn(8, 5).requires_grad_()
    for value in (1.5, 2.25, 0.75, 1.25, 3.5):
        found, expected = compiled(x, value), loss(x, value)
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(value, x)[0] for value in (found, expected)]
        torch.testing.assert_close(*gradients)
    assert counter.frame_count <= 2


class Tagged(torch.Tensor):
    pass


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tagged", [0, 1], ids=["input", "target"])
@pytest.mark.parametrize("name", ["mse_loss", "cross_entropy", "triplet_margin_loss"])
def test_compiled_subclasses(name, tagged):
    loss = getattr(functional, name)
    given = [make.randn(8, 5), make.randn(8, 5), make.randn(8, 5)]
    given = given[:2] if name == "mse_loss" else given
    if name == "cross_entropy":
        given[1:] = [_labels()]
    given[tagged] = given[tagged].as_subclass(Tagged)
    x = given[0].requires_grad_()
    torch._dynamo.reset()
    expected = loss(*given)
    found = torch.compile(loss, fullgraph=True)(*given)
    assert type(found) is type(expected)
    torch.testing.assert_close(found.as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor))
    gradients = [
        torch.autograd.grad(value, x)[0].as_subclass(torch.Tensor) for value in (found, expected)
    ]
    torch.testing.assert_close(*gradients)


class _Model(torch.nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.layer, self.loss = torch.nn.Linear(4, 5), loss

    def forward(self, x, y):
        return self.loss(self.layer(x), y)


@cpu_only
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["mse_loss", "cross_entropy", "triplet", "linear_cross_entropy"])
def test_programs_compiled_ahead_of_time(name, tmp_path):
    losses = {
        "triplet": lambda a, b: functional.triplet_margin_loss(a, b, b.flip(0)),
        "linear_cross_entropy": lambda a, b: functional.linear_cross_entropy(
            a, torch.eye(300, 5), b
        ),
    }
    model = _Model(losses.get(name) or getattr(functional, name)).eval()
    y = _labels() if "cross_entropy" in name else torch.randn(8, 5)
    x = torch.randn(8, 4)
    with torch.no_grad():
        program = torch.export.export(model, (x, y))
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "model.pt2")
        )
        found = torch._inductor.aoti_load_package(package)(x, y)
        torch.testing.assert_close(found, model(x, y))


MODES = ["real", "fake", "symbolic"]


@pytest.mark.parametrize("name", [*ALL, "binary_cross_entropy"])
@pytest.mark.parametrize("mode", MODES)
def test_make_fx(name, mode):
    """A training step traced to ops also gives the correct results for other inputs."""
    if name == "binary_cross_entropy":
        tensors, loss = [make.rand(4, 5), make.rand(4, 5)], functional.binary_cross_entropy
    else:
        tensors, loss = ALL[name]()
    x, *fixed = (t.detach() for t in tensors)

    def step(x, *fixed):
        x = x.detach().requires_grad_()
        value = loss(x, *fixed)
        return value.detach(), *torch.autograd.grad(value, x)

    traced = make_fx(step, tracing_mode=mode, _allow_non_fake_inputs=True)(x, *fixed)
    others = [0.9 * x, *fixed]
    for found, expected in zip(traced(*others), step(*others), strict=True):
        torch.testing.assert_close(found, expected)


def test_pos_weight_without_numbers():
    x, y = (torch.empty(4, 3, device="meta") for _ in range(2))
    for pos_weight in (2.0, torch.empty(3, device="meta"), torch.empty((), device="meta")):
        for reduction, shape in (("none", (4, 3)), ("mean", ())):
            loss = functional.binary_cross_entropy_with_logits(
                x.requires_grad_(), y, pos_weight=pos_weight, reduction=reduction
            )
            assert loss.shape == shape
            assert loss.device.type == "meta"


@needs_kernels
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_compiled_losses_of_nine_dimensions(reduction):
    x = make.randn(2, 1, 2, 1, 2, 1, 2, 1, 3).permute(8, 7, 6, 5, 4, 3, 2, 1, 0)
    x.requires_grad_()

    def loss(x):
        return functional.mse_loss(x, torch.ones_like(x), reduction=reduction).sum()

    torch._dynamo.reset()
    found = torch.compile(loss, fullgraph=True)(x)
    torch.testing.assert_close(found, loss(x))
    gradients = [torch.autograd.grad(value, x)[0] for value in (found, loss(x))]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("module", [False, True])
def test_many_losses_are_compiled(module):
    """torch.compile limits compilations per code object, so each loss must have its own."""
    torch._dynamo.reset()
    names = [spec.public_name for spec in SPECS if not spec.takes_a_difference]
    assert len(set(names)) > torch._dynamo.config.recompile_limit
    for name in dict.fromkeys(names):
        loss = getattr(functional, name)
        loss = loss.module() if module else loss
        x, y = make.rand(4, 5).requires_grad_(), make.rand(4, 5)
        compiled = torch.compile(loss, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, y), loss(x, y))
