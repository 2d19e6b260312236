"""torch.func and torch.compile, compared with the reference formulas."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings

import pytest
import torch
from conftest import (
    DEVICE,
    away_from_kinks,
    each_case,
    each_spec,
    expect_kernels,
    expect_ops,
    make,
    needs_kernels,
    pair,
    raw_ops,
)

import lossops
from lossops import functional
from lossops.specs import elementwise as specs

TRANSFORMS = {
    "grad": lambda f, x, y: torch.func.grad(f)(x, y),
    "grad of both": lambda f, x, y: torch.func.grad(f, argnums=(0, 1))(x, y),
    "vmap": lambda f, x, y: torch.vmap(f)(x, y),
    "vmap of one": lambda f, x, y: torch.vmap(f, in_dims=(0, None))(x, y[0]),
    "vmap over the last": lambda f, x, y: torch.vmap(f, in_dims=(1, 1))(x, y),
    "vmap of vmap": lambda f, x, y: torch.vmap(torch.vmap(f))(x[..., None], y[..., None]),
    "vmap of grad": lambda f, x, y: torch.vmap(torch.func.grad(f))(x, y),
    "grad of vmap": lambda f, x, y: torch.func.grad(lambda a: torch.vmap(f)(a, y).sum())(x),
    "jvp": lambda f, x, y: torch.func.jvp(f, (x, y), (y, x)),
    "jvp of grad": lambda f, x, y: torch.func.jvp(torch.func.grad(f), (x, y), (y, x)),
    "jacrev": lambda f, x, y: torch.func.jacrev(f)(x, y),
    "jacfwd": lambda f, x, y: torch.func.jacfwd(f)(x, y),
    "hessian": lambda f, x, y: torch.func.hessian(f)(x, y),
    "jacrev of jacrev": lambda f, x, y: torch.func.jacrev(torch.func.jacrev(f))(x, y),
    "jacfwd of jacfwd": lambda f, x, y: torch.func.jacfwd(torch.func.jacfwd(f))(x, y),
    "vmap of hessian": lambda f, x, y: torch.vmap(torch.func.hessian(f))(x, y),
    "third": lambda f, x, y: torch.func.jacfwd(torch.func.hessian(f))(x[0], y[0]),
}


@each_case
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transform(spec, kwargs, transform):
    x, y = away_from_kinks(spec, kwargs, 4, 3)

    def loss(input, target):
        return spec.function(input, target, **kwargs)

    with expect_kernels("forward"):
        found = TRANSFORMS[transform](loss, x, y)
    with lossops.backend("reference"):
        expected = TRANSFORMS[transform](loss, x, y)
    torch.testing.assert_close(found, expected)


@each_spec
@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "sample"])
def test_vmap_of_weighted(spec, reduction):
    x, y = away_from_kinks(spec, spec.defaults, 5, 4, 3)
    w = make.rand(5, 4, 3, dtype=torch.float64)

    def loss(input, target, weight):
        return spec.function(input, target, reduction=reduction, weight=weight, **spec.defaults)

    def gradients(input, target, weight):
        total = lambda *args: loss(*args).sum()  # noqa: E731
        return torch.func.grad(total, argnums=(0, 1, 2))(input, target, weight)

    for in_dims in ((0, 0, 0), (0, None, 0), (None, 0, None), (0, 0, None)):
        args = [t if d == 0 else t[0] for t, d in zip((x, y, w), in_dims, strict=True)]
        for function in (loss, gradients):
            found = torch.vmap(function, in_dims=in_dims)(*args)
            with lossops.backend("reference"):
                expected = torch.vmap(function, in_dims=in_dims)(*args)
            torch.testing.assert_close(found, expected)


def compiled(function, dynamic):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=dynamic)


@each_spec
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile(spec, dynamic):
    """fullgraph with inductor, forward and backward. fullgraph forbids graph breaks."""

    def step(input, target, weight):
        hidden = input * 0.9  # probabilities stay probabilities
        return (
            spec.function(hidden, target, **spec.defaults) * 3
            + spec.function(hidden, target, reduction="sum", weight=weight, **spec.defaults)
            + spec.function(input, target, reduction="none", **spec.defaults).square().mean()
            + spec.function(input, target, reduction="sample", **spec.defaults).max()
        )

    fast = compiled(step, dynamic)
    for rows in (8, 12, 16):
        x, y = away_from_kinks(spec, spec.defaults, rows, 5, dtype=torch.float32)
        w = make.rand(rows, 5)
        results = []
        for function in (fast, step):
            leaf = x.clone().requires_grad_()
            value = function(leaf, y, w)
            value.backward()
            results.append((value.detach(), leaf.grad))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile_mixed_dtypes_broadcast_and_autocast(dynamic):
    def step(x, y, one):
        half = x.bfloat16()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            total = lossops.functional.huber_loss(x @ x.T, y @ y.T)
        return (
            total
            + lossops.functional.mse_loss(half, y)
            + lossops.functional.l1_loss(x, one)
            + lossops.functional.log_cosh_loss(x[:, :1], y)
        )

    x, y = make.randn(2, 6, 4).unbind(0)
    one = make.tensor(1.0, dtype=torch.float64)
    results = []
    for function in (compiled(step, dynamic), step):
        leaf = x.clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the broadcast is intended
            value = function(leaf, y, one)
        value.backward()
        results.append((value.detach(), leaf.grad))
    assert results[0][0].dtype == results[1][0].dtype
    torch.testing.assert_close(*results, rtol=2e-2, atol=2e-2)


@needs_kernels
def test_compiled_code_calls_the_kernels():
    seen = []

    def look(graph, inputs):
        seen.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    from torch._dynamo.backends.common import aot_autograd

    torch._dynamo.reset()
    loss = torch.compile(
        lambda x, y: lossops.functional.huber_loss(x, y),
        backend=aot_autograd(fw_compiler=look),
        fullgraph=True,
    )
    loss(make.randn(8, requires_grad=True), make.randn(8)).backward()
    assert raw_ops().elementwise_forward.default in seen


def test_compile_float16_and_weight_gradient():
    def step(input, target, weight):
        return lossops.functional.mse_loss(input, target, weight=weight)

    x, y = make.randn(2, 6, 4).half().unbind(0)
    w = make.rand(6, 4).half()
    results = []
    for function in (compiled(step, None), step):
        tensors = [t.clone().requires_grad_() for t in (x, y, w)]
        value = function(*tensors)
        (value * 1024).backward()
        results.append((value.detach(), *(t.grad for t in tensors)))
    for found, expected in zip(*results, strict=True):
        # The weight's gradient is a difference, through value and denominator. Its rounding error
        # is that of the larger terms.
        scale = expected.abs().max().item()
        torch.testing.assert_close(found, expected, rtol=0, atol=scale * 4 * 2**-11)


@pytest.mark.parametrize("transform", ["grad", "vmap", "vmap of grad", "jvp", "hessian"])
def test_compiled_transform(transform):
    spec = specs.spec("log_cosh_loss")
    x, y = away_from_kinks(spec, {}, 4, 3)

    def run(x, y):
        return TRANSFORMS[transform](spec.function, x, y)

    torch.testing.assert_close(compiled(run, None)(x, y), run(x, y))


@needs_kernels
@each_spec
def test_autocast(spec):
    """As in torch: float32 result, gradient in the tensor's dtype. But no float32 copy is made."""
    x, y = away_from_kinks(spec, spec.defaults, 9, 7, dtype=torch.bfloat16)
    leaf = x.clone().requires_grad_()
    with torch.autocast(DEVICE.type, torch.bfloat16), expect_ops() as names:
        value = spec.function(leaf, y, **spec.defaults)
        value.backward()
    assert value.dtype == torch.float32
    assert leaf.grad.dtype == torch.bfloat16
    assert not [name for name in names if "copy" in name]
    torch.testing.assert_close(value, spec.function(x.float(), y.float(), **spec.defaults))


@each_spec
def test_fake_and_meta_tensors(spec):
    x = torch.empty(6, 4, device="meta", dtype=torch.bfloat16)
    for reduction, shape in (("none", (6, 4)), ("mean", ()), ("sum", ()), ("sample", (6,))):
        value = spec.function(x, x, reduction=reduction, **spec.defaults)
        assert value.shape == shape
        assert value.device.type == "meta"
        assert value.dtype == torch.bfloat16


@each_spec
def test_fake_tensor_mode(spec):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = make.empty(6, 4, requires_grad=True)
        loss = spec.function(x, make.empty(6, 4), **spec.defaults)
        loss.backward()
        assert loss.shape == ()
        assert x.grad.shape == x.shape
        with lossops.backend("reference"):  # which may look at values
            assert spec.function(x, make.empty(6, 4), **spec.defaults).shape == ()


@each_spec
def test_module(spec):
    """torch's module with only forward replaced: same arguments, attributes and behaviour."""
    module = spec.module(**spec.defaults)
    if spec.torch_module is not None:
        assert isinstance(module, spec.torch_module)
        assert module.extra_repr() == spec.torch_module(**spec.defaults).extra_repr()
    deprecated = "size_average" in inspect.signature(spec.module).parameters
    x, y = pair(spec, 5, 3)
    tensors = (x, y) if not spec.takes_a_difference else (x, torch.zeros_like(x), y)
    expected = spec.function(x, y, **spec.defaults)
    for other in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert not other.state_dict()
        assert torch.equal(other(*tensors), expected)
    if spec.torch_module is None or not (deprecated or spec.takes_a_difference):
        values = (*spec.defaults.values(), "sum") if spec.name != "huber_loss" else ("sum",)
        total = spec.function(x, y, reduction="sum", **spec.defaults)
        assert torch.equal(spec.module(*values)(x, y), total)
    rows = spec.module(reduction="sample", **spec.defaults)(*tensors)
    assert torch.equal(rows, spec.function(x, y, reduction="sample", **spec.defaults))
    weight = make.rand(5, 3)
    assert torch.equal(
        module(*tensors, weight=weight), spec.function(x, y, weight=weight, **spec.defaults)
    )


def test_torch_function_override():
    calls = []

    class Wrapped(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            calls.append(getattr(func, "__name__", ""))
            return super().__torch_function__(func, types, args, kwargs or {})

    for spec in specs.SPECS:
        x, y = pair(spec, 4)
        others = (y,) if not spec.takes_a_difference else (torch.zeros_like(x), y)
        calls.clear()
        function = getattr(functional, spec.public_name)
        value = function(x.as_subclass(Wrapped), *others, **spec.defaults)
        assert isinstance(value, Wrapped)
        assert spec.public_name in calls


@needs_kernels
@pytest.mark.parametrize("loss", ["mse", "huber"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_opcheck(loss, reduction):
    params = (1.0,) if loss == "huber" else ()
    x, y, w = make.rand(3, 4, 5).unbind(0)
    g = make.rand(()) if reduction == "mean" else make.rand(4, 5)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    call = (loss, params, reduction, 0)
    ops = raw_ops()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = (reduction == "mean",) * 3
        args = (x, y, w, None, *call, torch.float32, wanted)
        torch.library.opcheck(ops.elementwise_forward, args, test_utils=tests)
        args = (g, x, y, w, None, *call, (True, True, True))
        torch.library.opcheck(ops.elementwise_backward, args, test_utils=tests)
        args = (g, x, y, w, None, x, y, w, *call, torch.float32, (True,) * 4)
        torch.library.opcheck(ops.elementwise_double_backward, args, test_utils=tests)
        if reduction == "mean":
            torch.library.opcheck(
                ops.elementwise_rescale_, ([x.clone()], g), test_utils=("test_schema",)
            )
            args = ([x.clone()], g, x, y, w, None, *call, (True, False, False))
            torch.library.opcheck(ops.elementwise_backward_, args, test_utils=("test_schema",))
