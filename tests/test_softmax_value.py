"""The value of every loss over rows of class scores, compared with float64 and with torch's own
error."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as torch_functional
from conftest import (
    DEVICE,
    DTYPES,
    cpu_only,
    each_dtype,
    each_reduction,
    expect_softmax_kernels,
    make,
    needs_kernels,
)
from softmax_losses import (
    CASES,
    EVERYTHING,
    LABEL_LOSSES,
    Case,
    each_softmax_case,
    scaled_ulps,
    truth,
)

from lossops import functional
from lossops.softmax import classification, divergences, log_probs

# Tolerance in float64, where the expected value has as much rounding error.
DOUBLE = 16.0


def allowed(dtype):
    return DOUBLE if dtype == torch.float64 else 0.0


@each_softmax_case
@each_dtype
@each_reduction
@pytest.mark.parametrize("shape", [(7, 10), (3, 33, 5), (2, 4, 3, 5)], ids=str)
def test_value(case, dtype, reduction, shape):
    input, target, kwargs = case.tensors(shape, dtype)
    with expect_softmax_kernels("forward"):
        value = case(input, target, reduction, **kwargs)
    true = case.truth(input, target, reduction, **kwargs)
    assert value.dtype == dtype
    assert value.shape == true.shape
    terms = input.double().abs().max().item() + math.log(shape[1])
    if reduction == "sum":
        terms *= true.numel()
    assert scaled_ulps(value, true, min(terms, 8.0)) <= 1.0 + (
        allowed(dtype) if dtype != torch.float32 else 6.0
    )


@needs_kernels  # the reference is plain torch
@each_dtype
@pytest.mark.parametrize("classes", [2, 10, 1000, 20_000])
@pytest.mark.parametrize("last", [True, False], ids=["last", "first"])
def test_nearly_certain_rows_keep_their_digits(classes, last, dtype):
    """The loss for a class with a probability of 1 - 1e-9 is 1e-9 to the last digits, and so is its
    gradient. log(1 + 1e-9), as torch computes it, has lost most of them."""
    lead = make.tensor([1.0, 6.0, 12.0, 20.0, 30.0], dtype=torch.float64).unsqueeze(1)
    input = torch.randn(5, classes, dtype=torch.float64, device=DEVICE).clamp(-1, 1) - 1
    input[:, classes // 2] = 0
    input = (input - lead).to(dtype)
    target = torch.full((5,), classes // 2, device=DEVICE)
    input[:, classes // 2] = 0.25
    exact = input.double()
    others = (exact - 0.25).exp()
    others[:, classes // 2] = 0
    others = others.sum(1)
    x = (input if last else input.t().contiguous().t()).requires_grad_()
    loss = functional.cross_entropy(x, target, reduction="none")
    loss.backward(torch.ones_like(loss))
    eps = max(torch.finfo(dtype).eps, 1e-300)
    tiny = torch.finfo(dtype).smallest_normal
    # A difference of logits, up to 33 here, is rounded by half an ulp. Its exponential has a
    # relative error of the same size.
    close = {"rtol": 20 * eps, "atol": 2 * tiny * eps}
    torch.testing.assert_close(loss.detach().double(), others.log1p(), **close)
    own = x.grad[:, classes // 2].double()
    torch.testing.assert_close(own, -others / (1 + others), **close)
    if dtype == torch.float32:
        torchs = torch_functional.cross_entropy(input, target, reduction="none")
        assert not torch.allclose(torchs.double(), others.log1p(), **close)


@each_dtype
def test_numbers_keep_the_digits_of_the_dtype(dtype):
    """A normalizer or an alpha that float32 cannot represent."""
    x, y = make.randn(6, 5).to(dtype), torch.randint(5, (6,), device=DEVICE)
    close = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 0.0}
    total = functional.cross_entropy(x.double(), y, reduction="sum")
    for normalizer in (0.1,) if dtype == torch.float16 else (0.1, 16777217.0):
        mean = functional.cross_entropy(x, y, normalizer=normalizer)
        torch.testing.assert_close(mean.double(), total / normalizer, **close)
    for alpha in (0.1, make.tensor(0.1, dtype=torch.float64)):
        scaled = functional.focal_loss(x, y, alpha=alpha, reduction="sum")
        plain = functional.focal_loss(x.double(), y, reduction="sum")
        torch.testing.assert_close(scaled.double(), 0.1 * plain, **close)


def test_accuracy_is_of_the_logits():
    """Also if the gradient overwrites them, and if several classes are tied."""
    x = make.randn(40, 5)
    x[0], x[1] = 0, -math.inf
    target = torch.randint(5, (40,), device=DEVICE)
    soft = torch.nn.functional.one_hot(target, 5).float()
    best = (x.gather(1, target[:, None])[:, 0] >= x.amax(1)).float()
    for y in (target, soft):
        for inplace in (False, True):
            logits = x.clone().requires_grad_() * 1
            found = functional.cross_entropy(logits, y, return_accuracy=True, inplace=inplace)
            assert torch.equal(found[1].detach(), best)


TORCH_OPTIONS = [
    {},
    {"weight": True},
    {"label_smoothing": 0.1},
    {"ignore_index": 3},
    {"weight": True, "label_smoothing": 0.3, "ignore_index": 0},
]


@each_dtype
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("options", TORCH_OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["labels", "bytes", "probs", "nll"])
def test_as_right_as_torch(kind, options, classes, reduction, dtype):
    options = dict(options)
    if options.get("weight"):
        options["weight"] = (make.rand(classes) + 0.25).to(dtype)
    for shape in ((200, classes), (4, classes, 50)):
        input = (2 * make.randn(shape)).to(dtype)
        target = torch.randint(min(classes, 256), (shape[0], *shape[2:]), device=DEVICE)
        ours, theirs = functional.cross_entropy, torch_functional.cross_entropy
        labels = target  # torch itself accepts uint8 labels with at most two dimensions
        if kind == "bytes":
            target = target.byte()
        if kind == "probs":
            target = labels = make.randn(shape).softmax(1).to(dtype)
            options.pop("ignore_index", None)
        if kind == "nll":
            ours, theirs = functional.nll_loss, torch_functional.nll_loss
            input = input.float().log_softmax(1).to(dtype)
            options.pop("label_smoothing", None)
        value = ours(input, target, reduction=reduction, **options)
        wide = {k: v.double() if torch.is_tensor(v) else v for k, v in options.items()}
        wide_target = target.double() if kind == "probs" else labels
        true = theirs(input.double(), wide_target, reduction=reduction, **wide)
        torchs = theirs(input, labels, reduction=reduction, **options)
        assert value.dtype == torchs.dtype
        # If a class is nearly certain, its loss is a difference of terms of size 1.
        worst = scaled_ulps(torchs, true, 1.0)
        if kind == "probs" and dtype == torch.float32:
            worst += 1.0  # two sums over classes, of p and of p z, where torch has one
        assert scaled_ulps(value, true, 1.0) <= 1.0 + worst + allowed(dtype)


@needs_kernels  # the reference is plain torch
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rows_lie", ["apart", "side by side"])
@pytest.mark.parametrize("classes", [1000, 3000, 20_000, 100_000])
def test_sums_over_a_row_are_as_right_as_torchs(classes, rows_lie, dtype):
    """Sums of this many terms, which are added pairwise or in several partial sums."""
    rows = 8 * max(1, 20_000 // classes)
    p, q = make.randn(2, rows, classes, dtype=torch.float64).softmax(2).to(dtype)
    if rows_lie == "side by side":
        p, q = (t.t().contiguous().t() for t in (p, q))
    terms = (p - q).abs()
    exact = make.tensor([math.fsum(row) for row in terms.tolist()], dtype=torch.float64)
    forms = {"input_form": "probs", "target_form": "probs", "reduction": "none"}
    theirs = scaled_ulps(terms.sum(1), exact)
    for loss, factor in (
        (functional.l1_distribution_loss, 1.0), (functional.total_variation, 0.5)
    ):  # fmt: skip
        assert scaled_ulps(loss(q, p, **forms), factor * exact) <= theirs + 1
        leaf = q.clone().requires_grad_()
        value = loss(leaf, p, **forms).detach()  # with a gradient
        assert scaled_ulps(value, factor * exact) <= theirs + 1
    if dtype == torch.float32:
        logits, label = p.log(), torch.zeros(rows, dtype=torch.long, device=DEVICE)
        _, lse = functional.cross_entropy(10 + logits, label, reduction="none", return_lse=True)
        exact = (10 + logits).double().logsumexp(1)
        assert scaled_ulps(lse, exact) <= scaled_ulps((10 + logits).logsumexp(1), exact) + 1


@each_dtype
def test_vocabulary_of_a_language_model(dtype):
    input = (3 * make.randn(5, 128256)).to(dtype)
    target = torch.randint(128256, (5,), device=DEVICE)
    target[1] = -100
    for reduction in ("none", "mean"):
        value = functional.cross_entropy(input, target, reduction=reduction)
        true = torch_functional.cross_entropy(input.double(), target, reduction=reduction)
        torchs = torch_functional.cross_entropy(input, target, reduction=reduction)
        assert scaled_ulps(value, true) <= 1.0 + scaled_ulps(torchs, true) + allowed(dtype)


@each_dtype
@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_log_prob_of(dtype, dim):
    logits = (2 * make.randn(4, 9, 7)).to(dtype)
    rows = list(logits.shape)
    classes = rows.pop(dim)
    index = torch.randint(classes, rows, device=DEVICE)
    for temperature in (1.0, 0.5):
        with expect_softmax_kernels("forward"):
            got = functional.log_prob_of(logits, index, dim=dim, temperature=temperature)
        log_q = (logits.double() / temperature).log_softmax(dim)
        true = log_q.gather(dim, index.unsqueeze(dim)).squeeze(dim)
        assert got.shape == true.shape
        assert scaled_ulps(got, true, 1.0) <= 8.0
        same, entropy = functional.log_prob_of(
            logits, index, dim=dim, temperature=temperature, return_entropy=True
        )
        assert torch.equal(same, got)
        assert scaled_ulps(entropy, -(log_q.exp() * log_q).sum(dim), 1.0) <= 8.0
    last = functional.log_prob_of(logits, torch.zeros(4, 9, dtype=torch.long, device=DEVICE))
    assert last.shape == (4, 9)


@each_dtype
def test_what_else_comes_out(dtype):
    input = (2 * make.randn(6, 11, 4)).to(dtype)
    target = torch.randint(11, (6, 4), device=DEVICE)
    target[0, 0] = -100
    target[1] = input[1].float().argmax(0)
    for options in ({}, {"softcap": 3.0, "temperature": 0.7, "z_loss": 1e-3}):
        names = ("lse", "entropy", "accuracy")
        z = input.double()
        if options:
            z = 3.0 * torch.tanh(z / 3.0) / 0.7
        log_q = z.log_softmax(1)
        right = input.float().gather(1, target.clamp_min(0).unsqueeze(1)).squeeze(1)
        true = {
            "lse": z.logsumexp(1),
            "entropy": -(log_q.exp() * log_q).sum(1),
            "accuracy": ((right >= input.float().amax(1)) & (target >= 0)).double(),
        }
        loss = functional.cross_entropy(input, target, **options)
        assert torch.is_tensor(loss)
        for mask in range(1, 8):
            wanted = [name for i, name in enumerate(names) if mask >> i & 1]
            got = functional.cross_entropy(
                input, target, **options, **{f"return_{name}": True for name in wanted}
            )
            assert isinstance(got, tuple)
            assert len(got) == 1 + len(wanted)
            assert torch.equal(got[0], loss)
            for name, tensor in zip(wanted, got[1:], strict=True):
                assert tensor.shape == (6, 4)
                assert tensor.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
                assert scaled_ulps(tensor, true[name], 1.0) <= 8.0
                if name == "accuracy":
                    assert tensor.min() == 0
                    assert (tensor[1] == 1).all()


@each_dtype
def test_normalizer(dtype):
    """The denominator of a mean over micro-batches: the tokens of the whole batch."""
    input = make.randn(8, 5, 3).to(dtype)
    target = torch.randint(5, (8, 3), device=DEVICE)
    total = functional.cross_entropy(input.double(), target, reduction="sum")
    for normalizer in (100, 100.0, make.tensor(100.0), make.tensor(100)):
        value = functional.cross_entropy(input, target, normalizer=normalizer)
        assert value.dtype == dtype
        assert scaled_ulps(value, total / 100) <= 8.0
    soft = make.randn(8, 5, 3).softmax(1).to(dtype)
    value = functional.kl_divergence(input, soft, target_form="probs", normalizer=7.0)
    true = truth("kl_divergence", input, soft, target_form="probs", normalizer=7.0)
    assert scaled_ulps(value, true) <= 8.0


@pytest.mark.parametrize("kind", ["ignored", "no rows"])
def test_nothing_counts(kind):
    """A mean over nothing is NaN, as in torch, or 0 on request."""
    rows = 4 if kind == "ignored" else 0
    input = make.randn(rows, 5, requires_grad=True)
    target = torch.full((rows,), -100, device=DEVICE)
    assert functional.cross_entropy(input, target).isnan()
    assert functional.cross_entropy(input, target, reduction="sum").item() == 0
    assert functional.cross_entropy(input, target, reduction="none").tolist() == [0.0] * rows
    zero = functional.cross_entropy(input, target, empty="zero")
    assert zero.item() == 0
    (grad,) = torch.autograd.grad(zero, input)
    assert torch.equal(grad, torch.zeros_like(input))
    for name in (*LABEL_LOSSES, "kl_divergence"):
        assert getattr(functional, name)(input, target).isnan()
        assert getattr(functional, name)(input, target, reduction="sum").item() == 0


def test_one_sample_without_a_batch():
    input = make.randn(5, dtype=torch.float64)
    target = torch.randint(5, (), device=DEVICE)
    for reduction in ("none", "mean", "sum"):
        value = functional.cross_entropy(input, target, reduction=reduction)
        torch.testing.assert_close(
            value, torch_functional.cross_entropy(input, target, reduction=reduction)
        )
        soft = input.flip(0).softmax(0)
        value = functional.cross_entropy(input, soft, reduction=reduction)
        torch.testing.assert_close(
            value, torch_functional.cross_entropy(input, soft, reduction=reduction)
        )
    value = functional.kl_divergence(input, input.flip(0))
    torch.testing.assert_close(value, truth("kl_divergence", input, input.flip(0)))


@each_softmax_case
def test_sample_is_each_samples_mean(case):
    input, target, kwargs = case.tensors((5, 4, 3, 2))
    value = case(input, target, "sample", **kwargs)
    for i in range(5):
        one = case(input[i : i + 1], target[i : i + 1], "mean", **kwargs)
        torch.testing.assert_close(value[i], one, equal_nan=True)


@each_dtype
def test_large_logits(dtype):
    """±65504 in float16, and -inf as in masked classes."""
    big = 65504.0 if dtype == torch.float16 else 1e30
    input = make.tensor([[big, -big, 0.0], [-math.inf, 1.0, 1.0], [-big, -big, -big]], dtype=dtype)
    target = torch.tensor([0, 1, 2], device=DEVICE)
    value = functional.cross_entropy(input, target, reduction="none")
    expected = make.tensor([0.0, math.log(2), math.log(3)], dtype=torch.float64).to(dtype)
    torch.testing.assert_close(value, expected)
    assert functional.cross_entropy(input, target.flip(0), reduction="none")[1].item() == (
        pytest.approx(math.log(2), rel=1e-2)
    )
    assert functional.cross_entropy(input[1:2], target[:1] * 0).item() == math.inf


def test_kl_is_torchs():
    input, target = make.randn(2, 6, 9, dtype=torch.float64).unbind(0)
    p, q = target.softmax(1), input.log_softmax(1)
    for reduction, theirs in (("mean", "batchmean"), ("sum", "sum")):
        expected = torch_functional.kl_div(q, p, reduction=theirs)
        for ours in (
            functional.kl_divergence(input, target, reduction=reduction),
            functional.kl_divergence(input, p, target_form="probs", reduction=reduction),
            functional.kl_divergence(
                q, p, input_form="log_probs", target_form="probs", reduction=reduction
            ),
            functional.kl_divergence(q.exp(), p, input_form="probs", reduction=reduction),
            functional.kl_divergence(
                q.exp(), p.log(), input_form="probs", target_form="log_probs", reduction=reduction
            ),
        ):
            torch.testing.assert_close(ours, expected)


def test_identities():
    """Identities between the divergences. Also, as in the lecture, KL is not symmetric."""
    input, target = make.randn(2, 6, 9, dtype=torch.float64).unbind(0)
    f = functional
    close = torch.testing.assert_close
    close(f.kl_divergence(input, target, reverse=True), f.kl_divergence(target, input))
    assert abs(f.kl_divergence(input, target) - f.kl_divergence(target, input)) > 1e-6
    close(f.js_divergence(input, target), f.js_divergence(target, input))
    close(f.l1_distribution_loss(input, target), 2 * f.total_variation(input, target))
    log_p = target.log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1).mean()
    close(f.soft_cross_entropy(input, target) - entropy, f.kl_divergence(input, target))
    label = torch.randint(9, (6,), device=DEVICE)
    close(f.kl_divergence(input, label), f.cross_entropy(input, label))
    close(f.soft_cross_entropy(input, label), f.cross_entropy(input, label))
    close(f.focal_loss(input, label, gamma=0.0), f.cross_entropy(input, label))
    close(f.poly_loss(input, label, epsilon=0.0), f.cross_entropy(input, label))
    close(f.cross_entropy(input, label), f.nll_loss(input.log_softmax(1), label))
    close(-f.log_prob_of(input, label), f.cross_entropy(input, label, reduction="none"))
    for name in ("kl_divergence", "js_divergence", "total_variation", "l1_distribution_loss"):
        close(getattr(f, name)(input, input), make.tensor(0.0, dtype=torch.float64))


def test_dim():
    """Divergences over any dimension."""
    input, target = make.randn(2, 3, 4, 5, dtype=torch.float64).unbind(0)
    for dim in (0, 1, 2, -1, -3):
        got = functional.kl_divergence(input, target, dim=dim, reduction="none")
        expected = truth("kl_divergence", input, target, "none", dim=dim)
        torch.testing.assert_close(got, expected)


def test_mixed_dtypes():
    for dtype in DTYPES:
        for other in DTYPES:
            input = make.randn(5, 6).to(dtype)
            soft = make.randn(5, 6).softmax(1).to(other)
            for value in (
                functional.cross_entropy(input, soft),
                functional.kl_divergence(input, soft, target_form="probs"),
            ):
                assert value.dtype == torch.promote_types(dtype, other)
            true = torch_functional.cross_entropy(input.double(), soft.double())
            value = functional.cross_entropy(input, soft)
            assert scaled_ulps(value, true, 1.0) <= 16
            target = soft.argmax(1)
            weight = make.rand(6).to(other)
            value = functional.cross_entropy(input, target, weight=weight)
            true = torch_functional.cross_entropy(input.double(), target, weight.double())
            assert scaled_ulps(value, true, 1.0) <= 16


@pytest.mark.parametrize("labels", [torch.int64, torch.uint8])
def test_labels_as_torch_takes_them(labels):
    input = make.randn(9, 5)
    target = torch.randint(5, (9,), device=DEVICE)
    expected = functional.cross_entropy(input, target)
    assert torch.equal(functional.cross_entropy(input, target.to(labels)), expected)


@cpu_only
@each_softmax_case
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("shape", [(2, 70_001), (70, 900), (900, 7)], ids=str)
def test_same_bits_for_any_number_of_threads(case, dtype, shape):
    """The threads share the rows, or a single row if there are only a few long ones."""
    before = torch.get_num_threads()
    input, target, kwargs = case.tensors(shape, dtype)
    moving = [input.requires_grad_()]
    if target.is_floating_point():
        moving.append(target.requires_grad_())
    results = []
    try:
        for count in (1, 1, 2, 3, 5):
            torch.set_num_threads(count)
            loss = case(input, target, **kwargs)
            results.append((loss, *torch.autograd.grad(loss, moving)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for found, expected in zip(other, results[0], strict=True):
            assert torch.equal(found, expected)


@cpu_only
def test_same_bits_of_a_shared_row_and_all_that_comes_of_it():
    before = torch.get_num_threads()
    input, label = make.randn(1, 1_000_003).double().requires_grad_(), make.tensor([7])
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found = functional.cross_entropy(
                input, label, softcap=3.0, temperature=0.7, z_loss=1e-3, label_smoothing=0.1,
                return_lse=True, return_entropy=True, return_accuracy=True,
            )  # fmt: skip
            total = found[0] + 1.5 * found[1].sum() - 0.7 * found[2].sum()
            results.append((*found, *torch.autograd.grad(total, input)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(*both) for both in zip(other, results[0], strict=True))


def test_every_option_together():
    case = Case("cross_entropy", kwargs=EVERYTHING, ignored=True)
    for size in (2, 31, 32, 33, 1000, 1025):
        input, target, kwargs = case.tensors((6, size), torch.float32)
        value = case(input, target, **kwargs)
        assert scaled_ulps(value, case.truth(input, target, **kwargs), 1.0) <= 8


def test_all_names_are_tested():
    public = {*classification.__all__, *divergences.__all__, *log_probs.__all__}
    public = {name for name in public if name.islower()}
    assert public - {"log_prob_of"} == {case.name for case in CASES}
    assert public <= {*functional.__all__}


@pytest.mark.parametrize("epsilon", [1.0, -0.5, 3.0])
def test_poly_loss_by_its_definition(epsilon):
    input, target = make.randn(6, 5, dtype=torch.float64), torch.randint(5, (6,), device=DEVICE)
    p = input.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    found = functional.poly_loss(input, target, epsilon, reduction="none")
    torch.testing.assert_close(found, -p.log() + epsilon * (1 - p))
