"""linear_cross_entropy: the walk over chunks of rows, the computation of few logits at once, and
both under torch.compile."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as torch_functional
from conftest import (
    BACKEND,
    DEVICE,
    cpu_only,
    expect_ops,
    make,
    needs_kernels,
    ran,
    random_grad_like,
)
from test_drop_in import labels
from torch.utils.flop_counter import FlopCounterMode

import lossops
from lossops import functional, nn
from lossops.linear import chunks as linear_autograd
from lossops.linear import cross_entropy as linear
from lossops.verify.measure import peak_bytes


@pytest.fixture
def walked(monkeypatch):
    """With so few logits, all are computed at once. This forces the walk over chunks."""
    monkeypatch.setattr(linear, "_FEW_BYTES", -1)


@pytest.mark.parametrize("rows", [1, 127, 128, 129, 700])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("soft", [False, True])
def test_chunks(walked, rows, reduction, soft):
    """Gradients computed in chunks equal those computed at once, in the first backward and in later
    ones."""
    classes = 40
    x, a, b = (make.randn(*shape).double() for shape in ((rows, 8), (classes, 8), (classes,)))
    weight = make.rand(classes).double()
    target = (
        make.randn(rows, classes).double().softmax(1) if soft else labels(rows, classes=classes)
    )
    options = {"weight": weight, "label_smoothing": 0.1, "reduction": reduction, "z_loss": 1e-2}
    if not soft:
        target[::3] = -100
        if (target == -100).all():
            target[0] = 3
    moving = [t.requires_grad_() for t in (x, a, b)]
    loss = functional.linear_cross_entropy(x, a, target, linear_bias=b, **options)
    assert type(loss.grad_fn).__name__ == "FusedBackward"
    right = functional.cross_entropy(torch_functional.linear(x, a, b), target, **options)
    torch.testing.assert_close(loss, right)
    cotangent = random_grad_like(right)
    expected = torch.autograd.grad(right, moving, cotangent, retain_graph=True)
    for _ in range(2):
        found = torch.autograd.grad(loss, moving, cotangent, retain_graph=True)
        torch.testing.assert_close(found, expected)
    again = torch.autograd.grad(loss, moving, cotangent, create_graph=True)
    torch.testing.assert_close(again, expected)
    with torch.no_grad():
        value = functional.linear_cross_entropy(x, a, target, linear_bias=b, **options)
    torch.testing.assert_close(value, right)


def in_other_ways(loss, x, a, b, target):
    """The loss and its gradients, computed in every available way."""
    moving = (x, a, b)

    def total(*moving):
        return loss(*moving, target).sum()

    def gradients(value, **options):
        return (value.detach(), *torch.autograd.grad(value.sum(), moving, **options))

    yield "eager", gradients(loss(*moving, target))
    yield "create_graph", gradients(loss(*moving, target), create_graph=True)
    yield "torch.func", (loss(*moving, target), *torch.func.grad(total, (0, 1, 2))(*moving))
    torch._dynamo.reset()
    yield "compiled", gradients(torch.compile(loss, fullgraph=True)(*moving, target))
    with torch.no_grad():
        yield "no_grad", (loss(*moving, target),)
    with lossops.backend("reference"):
        yield "reference", gradients(loss(*moving, target))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_logits_in_float32(dtype, reduction, autocast):
    """For few rows and for several chunks, with classes in pieces: errors are those of rounding the
    results. Logits rounded to their dtype would have errors of whole units."""
    classes = 3 * linear_autograd._FEWEST_CLASSES + 7
    for rows in (5, 2 * linear_autograd._FEWEST_ROWS + 9):
        layer = [make.randn(rows, 48), make.randn(classes, 48), make.randn(classes)]
        layer = [(8 * t).to(dtype).to(torch.float32 if autocast else dtype) for t in layer]
        target = labels(rows, classes=classes)

        def loss(x, a, b, target):
            with torch.autocast(DEVICE.type, dtype, enabled=autocast):
                return functional.linear_cross_entropy(
                    x, a, target, linear_bias=b, reduction=reduction, temperature=50.0
                )

        exact = [t.double().requires_grad_() for t in layer]
        value = functional.cross_entropy(
            torch_functional.linear(*exact), target, reduction=reduction, temperature=50.0
        )
        right = (value, *torch.autograd.grad(value.sum(), exact))
        moving = [t.requires_grad_() for t in layer]
        out = torch.float32 if autocast else dtype
        # On a GPU the gradient of the logits is rounded for its matrix products.
        eps = torch.finfo(dtype if DEVICE.type != "cpu" else out).eps
        eps = eps if out == dtype or DEVICE.type != "cpu" else 2e-5
        for way, found in in_other_ways(loss, *moving, target):
            for got, true in zip(found, right, strict=False):
                assert got.dtype == out, way
                off = (got.double() - true).abs().max()
                assert off <= 1.5 * eps * true.abs().max(), (way, rows, off)


def test_all_ignored_has_no_gradient():
    x, a = make.randn(6, 3, requires_grad=True), make.randn(4, 3, requires_grad=True)
    loss = functional.linear_cross_entropy(x, a, torch.full((6,), -100, device=DEVICE))
    assert loss.isnan()
    loss.backward()
    assert not x.grad.any()
    assert not a.grad.any()


def test_small_gradients_survive_float16():
    """With a loss scale of 32768, as in mixed precision, the gradient is not rounded to 0 first."""
    rows, classes = 2000, 50
    x = (make.randn(rows, 16) * 0.1).half().requires_grad_()
    a = (make.randn(classes, 16) * 0.01).half()
    target = labels(rows, classes=classes)
    (functional.linear_cross_entropy(x, a, target) * 32768).backward()
    exact = x.detach().double().requires_grad_()
    loss = functional.cross_entropy(torch_functional.linear(exact, a.double()), target)
    (expected,) = torch.autograd.grad(loss * 32768, exact)
    torch.testing.assert_close(x.grad.double(), expected, rtol=2e-2, atol=2e-3)


def test_micro_batches_with_a_normalizer_are_one_batch():
    """Gradient accumulation over micro-batches with different numbers of labels."""
    x, a = make.randn(12, 5).double(), make.randn(7, 5).double().requires_grad_()
    target = labels(12, classes=7)
    target[[0, 1, 5]] = -100
    tokens = (target != -100).sum()
    functional.linear_cross_entropy(x, a, target).backward()
    expected, a.grad = a.grad, None
    for part in (slice(0, 2), slice(2, 7), slice(7, 12)):
        functional.linear_cross_entropy(x[part], a, target[part], normalizer=tokens).backward()
    torch.testing.assert_close(a.grad, expected)


@cpu_only
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_memory_of_a_chunk(reduction, dtype):
    """Besides the gradients, less than 15% of the logits are in memory at any time."""
    x = make.randn(2048, 16).to(dtype).requires_grad_()
    a = make.randn(3000, 16).to(dtype).requires_grad_()
    target, cotangent = labels(2048, classes=3000), make.randn(2048).to(dtype)

    def step():
        loss = functional.linear_cross_entropy(x, a, target, reduction=reduction)
        torch.autograd.grad(loss, (x, a), cotangent if reduction == "none" else None)

    # The gradients of the weight are accumulated in float32 before they are rounded.
    gradients = dtype.itemsize * (x.numel() + a.numel()) + 4 * a.numel() * (dtype.itemsize == 2)
    assert peak_bytes(step, "cpu") - gradients <= 0.15 * dtype.itemsize * 2048 * 3000


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("compiled", [False, True])
def test_without_gradients_none_are_made(context, compiled, monkeypatch, walked):
    torch._dynamo.reset()
    x, a = make.randn(9, 4, requires_grad=True), make.randn(6, 4, requires_grad=True)
    target, asked = labels(9, classes=6), []
    add = linear_autograd._Chunks.add
    monkeypatch.setattr(
        linear_autograd._Chunks, "add", lambda *arguments: (asked.append(1), add(*arguments))
    )
    options = SimpleNamespace(batch_chunk_size=4)
    loss = functools.partial(functional.linear_cross_entropy, options=options)
    expected = loss(x, a, target).detach()
    assert len(asked) == (3 if BACKEND != "reference" else 0)
    asked.clear()
    with context():
        found = (torch.compile(loss, fullgraph=True) if compiled else loss)(x, a, target)
    torch.testing.assert_close(found, expected)
    assert not asked


@needs_kernels
def test_flops_of_all_three_products_are_counted(walked):
    x, a = make.randn(9, 4, requires_grad=True), make.randn(6, 4, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        functional.linear_cross_entropy(x, a, labels(9, classes=6)).backward()
    assert counter.get_total_flops() == 3 * 2 * 9 * 4 * 6


@needs_kernels
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backward_under_autocast_multiplies_as_forward_did(walked, reduction):
    x, a = make.randn(9, 40, requires_grad=True), make.randn(6, 40, requires_grad=True)
    loss = functional.linear_cross_entropy(x, a, labels(9, classes=6), reduction=reduction).sum()
    expected = torch.autograd.grad(loss, (x, a), retain_graph=True)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        found = torch.autograd.grad(loss, (x, a))
    torch.testing.assert_close(found, expected)


def test_what_a_walk_refuses(walked):
    x, a, target = make.randn(9, 4), make.randn(6, 4), labels(9, classes=6)
    for few in (-1, 1 << 20):
        linear._FEW_BYTES = few  # restored by the fixture
        with pytest.raises(ValueError, match="'sample' needs a batch"):
            functional.linear_cross_entropy(x[0], a, target[0], reduction="sample")
    options = SimpleNamespace(batch_chunk_size=-1)
    with pytest.raises(ValueError, match="batch_chunk_size should not be negative, got -1"):
        functional.linear_cross_entropy(x, a, target, options=options)


# ---------------------------------------------------------------------------------------------
# All logits are computed at once.


def walks(x, a, target, **options) -> bool:
    loss = functional.linear_cross_entropy(x, a, target, **options)
    return type(loss.grad_fn).__name__ == "FusedBackward"


@needs_kernels
def test_few_logits_are_made_at_once():
    few, many = (make.randn(rows, 4, requires_grad=True) for rows in (512, 513))
    a = make.randn(128, 4)  # 256 KiB of float32 with the first
    assert not walks(few, a, labels(512, classes=128))
    assert walks(many, a, labels(513, classes=128))
    assert walks(few.double(), a.double(), labels(512, classes=128))
    # A walk widens half precision piece by piece.
    assert walks(few.bfloat16(), a.bfloat16(), labels(512, classes=128))
    assert walks(few.half(), a.half(), labels(512, classes=128))
    assert walks(few, a, labels(512, classes=128), options=SimpleNamespace(batch_chunk_size=7))
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert walks(few, a, labels(512, classes=128))


@needs_kernels
def test_number_of_rows_at_a_time(walked):
    x, a = make.randn(10, 4), make.randn(6, 4)
    for rows, chunks in ((1, 10), (3, 4), (10, 1), (100, 1), (None, 1)):
        options = SimpleNamespace(batch_chunk_size=rows)
        with expect_ops() as names:
            functional.linear_cross_entropy(x, a, labels(10, classes=6), options=options)
        assert len(ran(names, f"lossops{'_triton' * (BACKEND == 'triton')}::softmax")) == chunks


# ---------------------------------------------------------------------------------------------
# torch.compile sees a walk as one op.


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "sample"])
def test_compile(dynamic, reduction):
    classes = 30
    # Rows at a time, with 0 for the default; rows of the two calls.
    for dtype, at_once, sizes in (
        (torch.float64, 7, (20, 23)), (torch.float32, 0, (150, 300)), (torch.float16, 7, (20, 23)),
    ):  # fmt: skip
        options = SimpleNamespace(batch_chunk_size=at_once)

        def loss(x, a, b, weight, target, options=options, normalizer=None):
            return functional.linear_cross_entropy(
                x, a, target, linear_bias=b, weight=weight, label_smoothing=0.1, softcap=5.0,
                z_loss=1e-3, reduction=reduction, options=options, normalizer=normalizer,
            )  # fmt: skip

        torch._dynamo.reset()
        compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic)
        for rows in sizes:
            tensors = [make.randn(*s).to(dtype) for s in ((rows, 8), (classes, 8), (classes,))]
            moving = [t.requires_grad_() for t in tensors]
            weight, target = make.rand(classes).to(dtype), labels(rows, classes=classes)
            target[::3] = -100
            expected = loss(*moving, weight, target)
            found = compiled(*moving, weight, target)
            torch.testing.assert_close(found, expected)
            cotangent = random_grad_like(expected)
            right = torch.autograd.grad(expected, moving, cotangent)
            torch.testing.assert_close(torch.autograd.grad(found, moving, cotangent), right)
            with torch.no_grad():
                torch.testing.assert_close(compiled(*moving, weight, target), expected)


def test_compile_of_what_moves_in_part():
    torch._dynamo.reset()
    x, a, b = make.randn(9, 4), make.randn(6, 4, requires_grad=True), make.randn(6)
    target = make.rand(9, 6).softmax(1)

    def loss(x, a, b, target):
        return functional.linear_cross_entropy(x, a, target, linear_bias=b)

    for moving in ((a,), (x.requires_grad_(), a), (b.requires_grad_(),)):
        found = torch.compile(loss, fullgraph=True)(x, a, b, target)
        expected = loss(x, a, b, target)
        torch.testing.assert_close(found, expected)
        grads = (torch.autograd.grad(value, moving) for value in (found, expected))
        torch.testing.assert_close(*grads)


def test_compile_under_autocast():
    torch._dynamo.reset()
    x, a = make.randn(200, 16, requires_grad=True), make.randn(300, 16, requires_grad=True)
    target = labels(200, classes=300)

    def loss(x, a):
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return functional.linear_cross_entropy(x, a, target)

    found, expected = torch.compile(loss, fullgraph=True)(x, a), loss(x, a)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    grads = (torch.autograd.grad(value, (x, a)) for value in (found, expected))
    torch.testing.assert_close(*grads)


@cpu_only
def test_memory_when_compiled():
    """When compiled, too, less than 15% of the logits are in memory at any time."""
    torch._dynamo.reset()
    x, a = make.randn(2048, 16, requires_grad=True), make.randn(3000, 16, requires_grad=True)
    target = labels(2048, classes=3000)
    loss = torch.compile(functional.linear_cross_entropy, fullgraph=True)

    def step():
        torch.autograd.grad(loss(x, a, target), (x, a))

    step()
    gradients = 4 * (x.numel() + a.numel())
    assert peak_bytes(step, "cpu") - gradients <= 0.15 * 4 * 2048 * 3000


@needs_kernels
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_opcheck(soft, dtype):
    tensors = [make.randn(*shape).to(dtype) for shape in ((9, 4), (6, 4), (6,))]
    target = make.rand(9, 6).to(dtype) if soft else labels(9, classes=6)
    form, out = ("probs" if soft else "labels"), torch.float32
    tests = ("test_schema", "test_faketensor")
    for mask in ((True, True, True), (False, True, False), (False,) * 3):
        call = (BACKEND, form, [1.0, 0.0, 0.1, 0.0, 0.0, 0.0], -100, dtype, out, 4)
        read = (*tensors, target, make.rand(6).to(dtype), *call)
        ops = torch.ops.lossops
        torch.library.opcheck(ops.linear_cross_entropy_sum, (*read, mask), test_utils=tests)
        torch.library.opcheck(ops.linear_cross_entropy_losses, read, test_utils=tests)
        torch.library.opcheck(
            ops.linear_cross_entropy_losses_backward, (make.randn(9), *read, mask), test_utils=tests
        )


@pytest.mark.parametrize("walk", [False, True])
@pytest.mark.parametrize("number", [int, float, torch.tensor], ids=["int", "float", "tensor"])
def test_compile_with_a_normalizer(number, walk, monkeypatch):
    torch._dynamo.reset()
    if walk:
        monkeypatch.setattr(linear, "_FEW_BYTES", -1)
    x, a = make.randn(9, 4, requires_grad=True), make.randn(6, 4, requires_grad=True)
    target = labels(9, classes=6)
    normalizer = number(5)
    normalizer = normalizer.to(DEVICE) if isinstance(normalizer, torch.Tensor) else normalizer

    def loss(x, a):
        return functional.linear_cross_entropy(x, a, target, normalizer=normalizer)

    found, expected = torch.compile(loss, fullgraph=True)(x, a), loss(x, a)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(value, (x, a)) for value in (found, expected)]
    torch.testing.assert_close(*grads)
    mean = functional.linear_cross_entropy(x, a, target)
    torch.testing.assert_close(expected, mean * 9 / 5)


def test_few_logits_are_made_at_once_when_compiled():
    """But not in an exported program, which may be called with many rows."""
    x, a, target = make.randn(9, 4), make.randn(6, 4), labels(9, classes=6)
    graphs = []

    def keep(graph, _):
        graphs.append(str(graph.graph))
        return graph.forward

    torch._dynamo.reset()
    loss = functional.linear_cross_entropy
    torch.compile(loss, fullgraph=True, backend=keep)(x, a, target)
    # torch 2.10 takes every compiled function for one to be exported.
    exporting = torch.compile(lambda t: t + torch.compiler.is_exporting(), backend="eager")
    as_exported = exporting(make.zeros(1)).item() == 1
    assert ("linear_cross_entropy_sum" in graphs[0]) == (as_exported and BACKEND != "reference")

    class Loss(torch.nn.Module):
        def forward(self, x, target):
            return loss(x, a, target)

    rows = torch.export.Dim("rows")
    program = torch.export.export(Loss(), (x, target), dynamic_shapes=({0: rows}, {0: rows}))
    assert BACKEND == "reference" or "linear_cross_entropy_sum" in str(program.graph)
    x, target = make.randn(90_000, 4), labels(90_000, classes=6)
    torch.testing.assert_close(program.module()(x, target), loss(x, a, target))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("grad", [False, True])
def test_an_exported_program_trains(reduction, grad):
    module = nn.LinearCrossEntropyLoss(4, 6, bias=True, reduction=reduction, device=DEVICE)
    x, target = make.randn(9, 4), labels(9, classes=6)
    with torch.set_grad_enabled(grad):
        exported = torch.export.export(module, (x, target)).module()
    found, expected = (loss(x, target) for loss in (exported, module))
    torch.testing.assert_close(found, expected)
    cotangent = random_grad_like(expected)
    grads = [
        torch.autograd.grad(loss, list(of.parameters()), cotangent)
        for loss, of in ((found, exported), (expected, module))
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("walk", [False, True])
def test_compile_of_a_tensor_in_two_roles(walk, monkeypatch):
    torch._dynamo.reset()
    if walk:
        monkeypatch.setattr(linear, "_FEW_BYTES", -1)
    a, target = make.randn(6, 4, requires_grad=True), labels(6, classes=6)
    for loss in (
        lambda a: functional.linear_cross_entropy(a, a, target),
        lambda a: functional.mse_loss(a, a * 0 + 1, weight=a.detach().abs()),
        lambda a: functional.mse_loss(a, a),
        lambda a: functional.smooth_l1_loss(a, a.detach() + 1, weight=a),
        lambda a: functional.kl_divergence(a, a),
        lambda a: functional.cosine_embedding_loss(a, a, target.sign()),
    ):
        found, expected = torch.compile(loss, fullgraph=True)(a), loss(a)
        torch.testing.assert_close(found, expected)
        grads = [torch.autograd.grad(value, a) for value in (found, expected)]
        torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_float16_gradients_of_the_input_are_scaled_before_they_are_rounded(reduction):
    """The gradient of the sum may overflow or underflow where the result does not."""
    labels, options = make.arange(64) * 7, {}
    if reduction == "mean":
        weight, x, factor = (make.randn(512, 16) * 4).half(), make.randn(64, 16).half(), 1.0
        options["weight"] = make.full((512,), 1e4).half()
    else:  # nearly certain rows, with loss scaling
        weight, factor = make.randn(512, 16).half(), 2.0**15
        x = (weight[labels] * 2).half()
    x.requires_grad_()
    chunks = SimpleNamespace(batch_chunk_size=4)
    loss = functional.linear_cross_entropy(
        x, weight, labels, reduction=reduction, options=chunks, **options
    )
    (found,) = torch.autograd.grad(loss.float() * factor, x)
    double = x.detach().double().requires_grad_()
    wide = {name: tensor.double() for name, tensor in options.items()}
    loss = functional.cross_entropy(double @ weight.double().T, labels, reduction=reduction, **wide)
    (expected,) = torch.autograd.grad(loss * factor, double)
    in_range = expected.abs() < 6e4
    assert found[in_range].isfinite().all()
    assert (found[expected.abs() > 2e-4] != 0).all()
    torch.testing.assert_close(found.double()[in_range], expected[in_range], rtol=2e-2, atol=2e-4)
