"""linear_cross_entropy: the walk over chunks of rows, few logits that are made at once, and both
under torch.compile."""

from __future__ import annotations

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

from lossops import functional, linear
from lossops.report.measure import peak_bytes


@pytest.fixture
def walked(monkeypatch):
    """So few logits as here are made at once; but not now."""
    monkeypatch.setattr(linear, "_FEW_BYTES", -1)


@pytest.mark.parametrize("rows", [1, 127, 128, 129, 700])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("soft", [False, True])
def test_chunks(walked, rows, reduction, soft):
    """Gradients of chunks are those of all at once, the first time and again."""
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
    assert type(loss.grad_fn).__name__ == "ChunkedCrossEntropyBackward"
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


def test_all_ignored_has_no_gradient():
    x, a = make.randn(6, 3, requires_grad=True), make.randn(4, 3, requires_grad=True)
    loss = functional.linear_cross_entropy(x, a, torch.full((6,), -100, device=DEVICE))
    assert loss.isnan()
    loss.backward()
    assert not x.grad.any()
    assert not a.grad.any()


def test_small_gradients_survive_float16():
    """A loss scaled by 32768, as for mixed precision: the gradient is not rounded to 0 first."""
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
    """Gradient accumulation over parts with different numbers of labels."""
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
def test_memory_of_a_chunk():
    """Beyond the gradients, less than 15% of the logits are there at any time."""
    x, a = make.randn(2048, 16, requires_grad=True), make.randn(3000, 16, requires_grad=True)
    target = labels(2048, classes=3000)

    def step():
        torch.autograd.grad(functional.linear_cross_entropy(x, a, target), (x, a))

    gradients = 4 * (x.numel() + a.numel())
    assert peak_bytes(step, "cpu") - gradients <= 0.15 * 4 * 2048 * 3000


# ---------------------------------------------------------------------------------------------
# When all logits are made at once.


def walks(x, a, target, **options) -> bool:
    loss = functional.linear_cross_entropy(x, a, target, **options)
    return type(loss.grad_fn).__name__ == "ChunkedCrossEntropyBackward"


@needs_kernels
def test_few_logits_are_made_at_once():
    few, many = (make.randn(rows, 4, requires_grad=True) for rows in (512, 513))
    a = make.randn(128, 4)  # 256 KiB of float32 with the first
    assert not walks(few, a, labels(512, classes=128))
    assert walks(many, a, labels(513, classes=128))
    assert walks(few.double(), a.double(), labels(512, classes=128))
    assert not walks(few.bfloat16(), a.bfloat16(), labels(512, classes=128))
    # A walk scales the gradients at last, which float16 needs.
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
    # Rows at a time, 0 for a good number; rows of the two calls.
    for dtype, at_once, sizes in (
        (torch.float64, 7, (20, 23)), (torch.float32, 0, (150, 300)), (torch.float16, 7, (20, 23)),
    ):  # fmt: skip
        options = SimpleNamespace(batch_chunk_size=at_once)

        def loss(x, a, b, weight, target, options=options):
            return functional.linear_cross_entropy(
                x, a, target, linear_bias=b, weight=weight, label_smoothing=0.1, softcap=5.0,
                z_loss=1e-3, reduction=reduction, options=options,
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
    """Here too, less than 15% of the logits are there at any time."""
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
