"""The losses over rows of vectors, above their raw ops: which kernels run, and how they are
differentiated."""

from __future__ import annotations

import pytest
import torch
from conftest import DEVICE, expect_ops, make, needs_kernels, ran, raw_ops
from conftest import NAMESPACE as OPS
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode

import lossops
from lossops import functional
from lossops.vectors.reference import VECTOR_SIGNATURES

pytestmark = needs_kernels

LABELS = {
    "multi_margin": lambda n, d: torch.randint(d, (n,), device=DEVICE),
    "cosine": lambda n, d: torch.randint(2, (n,), device=DEVICE) * 2 - 1,
    "multilabel_margin": lambda n, d: torch.randint(-1, d, (n, d), device=DEVICE),
}
# By name: the number of vectors per row, and the loss of these and of a label.
LOSSES = {
    "cosine": (2, lambda v, y, **k: functional.cosine_embedding_loss(*v, y, 0.1, **k)),
    "triplet": (3, lambda v, y, **k: functional.triplet_margin_loss(*v, swap=True, **k)),
    "triplet_l1": (3, lambda v, y, **k: functional.triplet_margin_loss(*v, p=1, **k)),
    "triplet_with_distance": (
        3, lambda v, y, **k: functional.triplet_margin_with_distance_loss(*v, **k)
    ),
    "multi_margin": (1, lambda v, y, **k: functional.multi_margin_loss(*v, y, **k)),
    "multi_margin_squared": (1, lambda v, y, **k: functional.multi_margin_loss(*v, y, p=2, **k)),
    "multilabel_margin": (1, lambda v, y, **k: functional.multilabel_margin_loss(*v, y, **k)),
    "dice": (2, lambda v, y, **k: functional.dice_loss(v[0], v[1].sigmoid(), **k)),
    "tversky_of_probs": (
        2,
        lambda v, y, **k: functional.tversky_loss(
            v[0].sigmoid(), v[1].sigmoid(), 0.3, 0.6, input_form="probs", **k
        ),
    ),
}  # fmt: skip
each_loss = pytest.mark.parametrize("name", LOSSES)
each_reduction = pytest.mark.parametrize("reduction", ["none", "mean", "sum", "sample"])
FORWARD, BACKWARD = (f"{OPS}::vectors_{op}" for op in ("forward", "backward"))
RESCALE = f"{OPS}::elementwise_rescale_"


def arguments(name, n=5, d=7, dtype=torch.float64):
    count, loss = LOSSES[name]
    vectors = [make.randn(n, d, dtype=dtype, requires_grad=True) for _ in range(count)]
    label = LABELS.get(name.removesuffix("_squared"), lambda n, d: None)(n, d)
    return vectors, label, loss


@each_loss
def test_a_training_step_is_one_pass(name):
    vectors, label, loss = arguments(name, dtype=torch.float32)
    with expect_ops(FORWARD, RESCALE) as found:
        first = loss(vectors, label)
        (first * 3).backward(retain_graph=True)
    assert not ran(found, BACKWARD)
    grads = [v.grad.clone() for v in vectors]
    for v in vectors:
        v.grad = None
    with expect_ops(BACKWARD):  # the gradient that was ready has been given away
        (first * 3).backward()
    for v, grad in zip(vectors, grads, strict=True):
        torch.testing.assert_close(v.grad, grad)


@each_loss
def test_float16_is_scaled_before_it_is_rounded(name):
    """Loss scaling keeps gradients in range that would underflow in float16."""
    vectors, label, loss = arguments(name, n=4000, d=33, dtype=torch.float16)
    with expect_ops(FORWARD, BACKWARD):
        (loss(vectors, label) * 1024).backward()
    wide = [v.detach().double().requires_grad_() for v in vectors]
    (loss(wide, label) * 1024).backward()
    for v, w in zip(vectors, wide, strict=True):
        close = (v.grad.double() - w.grad).abs() <= 2e-3 * w.grad.abs() + 2e-3 * w.grad.abs().max()
        assert close.double().mean() > 0.99  # except for differences across a kink


@each_loss
@each_reduction
def test_derivatives(name, reduction):
    vectors, label, loss = arguments(name, 3, 5)

    def function(*v):
        return loss(v, label, reduction=reduction)

    torch.autograd.gradcheck(
        function, vectors, check_forward_ad=True, check_batched_grad=True, fast_mode=True
    )
    torch.autograd.gradgradcheck(function, vectors, check_batched_grad=True, fast_mode=True)


@each_loss
def test_some_vectors_are_fixed(name):
    vectors, label, loss = arguments(name)
    for i, v in enumerate(vectors):
        fixed = [u if u is v else u.detach() for u in vectors]
        (found,) = torch.autograd.grad(loss(fixed, label), v)
        torch.testing.assert_close(found, torch.autograd.grad(loss(vectors, label), vectors)[i])


@each_loss
def test_transforms(name):
    vectors, label, loss = arguments(name)
    fixed = [v.detach() for v in vectors]
    labels = [] if label is None else [label]

    def one(*arguments):
        v, y = arguments[: len(fixed)], arguments[len(fixed) :]
        return loss([u[None] for u in v], y[0][None] if y else None)

    by = tuple(range(len(fixed)))
    found = torch.vmap(torch.func.grad(one, argnums=by))(*fixed, *labels)
    expected = torch.autograd.grad(loss(vectors, label, reduction="sum"), vectors)
    torch.testing.assert_close(found, expected)


@each_loss
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile(name, dynamic):
    """Compiles to one graph, in which the only kernel of ours is the forward one."""
    called = []

    def keep(graph, _):
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    _, _, loss = arguments(name)
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend=backend)
    for n, d in ((5, 7), (6, 9)):
        vectors, label, _ = arguments(name, n, d, torch.float32)
        expected = torch.autograd.grad(loss(vectors, label) * 3, vectors)
        found = torch.autograd.grad(compiled(vectors, label) * 3, vectors)
        torch.testing.assert_close(found, expected)
    ours = [op for op in called if op.startswith(OPS)]
    # If all numbers are symbols, the defaults of a signature are symbols, too.
    forms = ("", "_tensor_params") if dynamic else ("",)
    assert set(ours) <= {f"{OPS}.vectors_forward{form}.default" for form in forms}
    assert len(ours) == (1 if dynamic else 2)


@each_loss
def test_layouts_are_read_where_they_lie(name):
    """A slice of wider rows, and rows that are broadcast."""
    vectors, label, loss = arguments(name)
    expected = torch.autograd.grad(loss(vectors, label), vectors)
    wide = [torch.nn.functional.pad(v, (2, 3))[:, 2:-3] for v in vectors]
    torch.testing.assert_close(loss(wide, label), loss(vectors, label))
    torch.testing.assert_close(torch.autograd.grad(loss(wide, label), vectors), expected)
    columns = [v.detach().t().contiguous().t().requires_grad_() for v in vectors]
    torch.testing.assert_close(torch.autograd.grad(loss(columns, label), columns), expected)
    if name.startswith("triplet"):
        found = loss([vectors[0][:1], *vectors[1:]], label)
        same = [vectors[0][:1].expand(5, 7), *vectors[1:]]
        torch.testing.assert_close(found, loss(same, label))
        grads = (torch.autograd.grad(each, vectors[0])[0] for each in (found, loss(same, label)))
        torch.testing.assert_close(*grads)


def test_a_norm_is_over_the_length_of_its_own_vectors():
    """Vectors of one element are broadcast against longer ones, in pairs."""
    a, p, n = make.ones(2, 1, requires_grad=True), make.zeros(2, 1), 3 * make.ones(2, 5)
    for swap in (False, True):
        found, expected = (
            m.triplet_margin_loss(a, p, n, margin=10.0, swap=swap)
            for m in (functional, torch.nn.functional)
        )
        torch.testing.assert_close(found, expected)
        grads = [torch.autograd.grad(loss, a)[0] for loss in (found, expected)]
        torch.testing.assert_close(*grads)
    x, y, label = make.randn(2, 1), make.randn(2, 3), make.tensor([1, -1])
    found, expected = (
        m.cosine_embedding_loss(x, y, label, -1.0) for m in (functional, torch.nn.functional)
    )
    torch.testing.assert_close(found, expected)


def test_labels_may_be_more_than_rows():
    x, y, label = make.randn(1, 3), make.randn(1, 3), make.tensor([1, -1, 1, 0])
    for reduction in ("none", "mean"):
        found, expected = (
            m.cosine_embedding_loss(x, y, label, -1.0, reduction=reduction)
            for m in (functional, torch.nn.functional)
        )
        torch.testing.assert_close(found, expected)


def test_nothing_is_read_on_another_device():
    x, far = make.randn(2, 3), torch.randn(2, 3, device="meta")
    label = make.tensor([1, 0])
    for call in (
        lambda: functional.cosine_embedding_loss(x, far, label),
        lambda: functional.cosine_embedding_loss(x, x, label.to("meta")),
        lambda: functional.triplet_margin_loss(x, x, far),
        lambda: functional.multi_margin_loss(x, label.to("meta")),
        lambda: functional.multi_margin_loss(x, label, weight=far[0]),
        lambda: functional.dice_loss(x, far),
    ):
        with pytest.raises(RuntimeError, match="device"):
            call()
    with pytest.raises(NotImplementedError, match="dense"):
        functional.triplet_margin_loss(x, x.to_sparse(), x)


def test_tensors_without_numbers():
    """Fake and meta tensors have no label values to check."""
    with FakeTensorMode():
        x, label = torch.randn(2, 3), torch.zeros(2, dtype=torch.int64)
        assert functional.multi_margin_loss(x, label).shape == ()
        assert functional.multi_margin_loss(x, label, reduction="none").shape == (2,)
        labels = torch.zeros(2, 3, dtype=torch.int64)
        assert functional.multilabel_margin_loss(x, labels, reduction="none").shape == (2,)
        assert functional.dice_loss(x, x, reduction="none").shape == (2,)
    far = torch.randn(4, 3, device="meta", requires_grad=True)
    loss = functional.triplet_margin_loss(far, far, far, reduction="none")
    assert loss.shape == (4,)
    assert torch.autograd.grad(loss.sum(), far)[0].shape == (4, 3)


def test_a_region_has_the_dtype_of_its_input():
    x = make.randn(2, 5)
    for target in (make.ones(2, 5, dtype=torch.float64), make.ones(2, 5, dtype=torch.bool)):
        for dtype in (torch.float32, torch.bfloat16):
            assert functional.dice_loss(x.to(dtype), target).dtype == dtype
            weight = make.ones(2, 5, dtype=torch.float64)
            assert functional.dice_loss(x.to(dtype), target, weight=weight).dtype == dtype
    with pytest.raises(NotImplementedError, match="should be floating point"):
        functional.tversky_loss(x.long(), x)


@pytest.mark.parametrize("far", [torch.inf, torch.nan])
def test_what_a_triplet_does_not_swap_does_not_count(far):
    """|p - n| is part of the loss only with swap."""
    a, p = make.zeros(1, 2, requires_grad=True), make.tensor([[1.0, 0.0]], requires_grad=True)
    n = make.tensor([[far, 0.0]])
    loss = functional.triplet_margin_loss(a, p, n)
    assert torch.autograd.grad(loss, p)[0].tolist() == [[0.0, 0.0]]


def test_a_sum_beyond_the_range_of_its_dtype_is_infinite():
    x = make.full((3, 1), 2e38, dtype=torch.float32, requires_grad=True)
    zero = make.zeros(3, 1, dtype=torch.float32)
    with torch.no_grad():
        value = functional.triplet_margin_loss(x, zero, x, p=1, reduction="sum")
    loss = functional.triplet_margin_loss(x, zero, x, p=1, reduction="sum")
    assert value == loss == torch.inf


def test_lists_have_the_shape_of_the_scores():
    for shape, other in (((5,), (1, 5)), ((5,), (5, 1)), ((), (1, 1)), ((2, 5), (5, 2))):
        x, labels = make.randn(shape), torch.zeros(other, dtype=torch.int64, device=DEVICE)
        for module in (functional, torch.nn.functional):
            with pytest.raises(RuntimeError, match="inconsistent target size"):
                module.multilabel_margin_loss(x, labels)


def test_other_norms_are_formulas():
    vectors = [make.randn(3, 5) for _ in range(3)]
    with expect_ops() as found:
        value = functional.triplet_margin_loss(*vectors, p=3)
    assert not ran(found, f"{OPS}::vectors")
    torch.testing.assert_close(value, torch.nn.functional.triplet_margin_loss(*vectors, p=3))


def test_no_samples_at_all():
    empty = make.zeros(0, 4)
    for loss in (
        functional.cosine_embedding_loss(empty, empty, make.zeros(0)),
        functional.triplet_margin_loss(empty, empty, empty),
        functional.dice_loss(empty, empty),
    ):
        assert loss.isnan()
    assert functional.dice_loss(empty, empty, reduction="none").shape == (0,)


@each_loss
def test_opcheck(name):
    raw = {
        "cosine": "cosine_embedding", "triplet": "triplet_margin", "dice": "tversky_of_logits",
        "triplet_l1": "triplet_margin_l1", "multi_margin": "multi_margin",
        "multi_margin_squared": "multi_margin_squared", "tversky_of_probs": "tversky",
        "triplet_with_distance": "triplet_margin", "multilabel_margin": "multilabel_margin",
    }[name]  # fmt: skip
    vectors, label, _ = arguments(name)
    vectors = [v.detach() for v in vectors]
    if label is not None and name == "cosine":
        label = label.double()
    params = [0.5] * VECTOR_SIGNATURES[raw].params
    mask = [i < len(vectors) for i in range(3)]
    call = (vectors, label, None, raw, params, "mean")
    ops = raw_ops()
    torch.library.opcheck(ops.vectors_forward.default, (*call, torch.float64, mask))
    one = torch.ones((), dtype=torch.float64, device=DEVICE)
    torch.library.opcheck(ops.vectors_backward.default, (one, *call, mask))


@pytest.mark.parametrize("name", ["multi_margin_loss", "multilabel_margin_loss"])
def test_label_checks_hold_where_values_need_a_sync(name, monkeypatch):
    """As on a GPU, which this test only pretends."""
    x, label, bad = make.randn(2, 3), make.tensor([0, 1]), make.tensor([0, 3])
    if name == "multilabel_margin_loss":
        label, bad = (make.tensor([[0, -1, -1], [last, -1, -1]]) for last in (1, 3))
    monkeypatch.setattr("lossops.vectors.call.can_look", lambda tensor: False)
    function = getattr(functional, name)
    with lossops.backend("reference"):
        assert function(x, bad).isnan()
        with lossops.label_checks():
            assert function(x, label).isfinite()
            with pytest.raises(RuntimeError, match="target out of range, of 3 classes"):
                function(x, bad)
