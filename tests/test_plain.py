"""The fast path for plain calls: it gives the same bits as the full path, and accepts nothing that
must be checked."""

from __future__ import annotations

import contextlib

import pytest
import torch
from conftest import BACKEND, DEVICE, cpu_only, make
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import lossops
from lossops import functional as F
from lossops.core import plain
from lossops.core.backends import native_extension

pytestmark = pytest.mark.skipif(BACKEND != "native", reason="there is no short way but the native")


def _labels(*shape, classes=5):
    return torch.randint(classes, shape, device=DEVICE)


CALLS = {
    "cross_entropy": F.cross_entropy,
    "nll_loss": F.nll_loss,
    "multi_margin_loss": F.multi_margin_loss,
}
OPTIONS = {
    "cross_entropy": [
        {},
        {"label_smoothing": 0.3},
        {"ignore_index": 2},
        {"z_loss": 0.01, "temperature": 2.0},
        {"weight": True},
        {"weight": True, "label_smoothing": 0.5, "ignore_index": -1},
    ],
    "nll_loss": [{}, {"ignore_index": 0}, {"weight": True}],
    "multi_margin_loss": [{}, {"p": 2}, {"margin": 0.5}],
}
CASES = [
    pytest.param(name, options, id="-".join([name, *map(str, options)]))
    for name in CALLS
    for options in OPTIONS[name]
]
each_case = pytest.mark.parametrize(("name", "options"), CASES)
each_name = pytest.mark.parametrize("name", CALLS)


class Taken:
    """Records whether the calls in a block took the fast path."""

    def __init__(self):
        self.answers: list[bool] = []

    def __bool__(self):
        assert self.answers, "the short way was not tried"
        return all(self.answers)

    def __enter__(self):
        self.kept = {name: getattr(plain, name) for name in ("cross_entropy", "multi_margin_loss")}
        for name, function in self.kept.items():
            setattr(plain, name, self._noting(function))
        return self

    def _noting(self, function):
        def noting(*args, **kwargs):
            loss = function(*args, **kwargs)
            self.answers.append(loss is not None)
            return loss

        return noting

    def __exit__(self, *_):
        for name, function in self.kept.items():
            setattr(plain, name, function)


@contextlib.contextmanager
def the_long_way(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(plain, "_may_be_plain", lambda: False)
        yield


def _shapes(name):
    rows = [(5,), (4, 5), (3, 5, 2, 3)]
    return [(4, 5)] if name == "multi_margin_loss" else rows


def _options(options, dtype):
    if not options.get("weight"):
        return options
    return options | {"weight": make.rand(5, dtype=dtype)}


@each_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_the_same_bits(name, options, dtype, reduction, monkeypatch):
    options = _options(options, dtype)
    for shape in _shapes(name):
        x = make.randn(*shape, dtype=dtype).requires_grad_()
        y = _labels(*shape[:1], *shape[2:]) if len(shape) > 1 else _labels()
        found = []
        for way in (Taken(), the_long_way(monkeypatch)):
            with way as taken:
                loss = CALLS[name](x, y, reduction=reduction, **options)
                (grad,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
            assert taken is None or taken, "a plain call"
            found.append((loss, grad))
        for short, long in zip(*found, strict=True):
            torch.testing.assert_close(short, long, rtol=0, atol=0, equal_nan=True)


@each_name
def test_strided_scores_and_other_label_dtypes(name, monkeypatch):
    x = make.randn(5, 4).T.requires_grad_()
    y = _labels(8)[::2]
    for labels in [y] if name == "multi_margin_loss" else [y, y.int(), y.to(torch.uint8)]:
        with Taken() as taken:
            loss = CALLS[name](x, labels)
        with the_long_way(monkeypatch):
            assert torch.equal(CALLS[name](x, labels), loss)
        assert taken


class Masks(TorchDispatchMode):
    """Records, for each call of a kernel, whether gradients are requested."""

    def __init__(self):
        super().__init__()
        self.seen: list[bool] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "lossops":
            self.seen.append(any(args[-1]))
        return func(*args, **(kwargs or {}))


@each_name
@pytest.mark.parametrize("way", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
def test_without_gradient(name, way, monkeypatch):
    x, y = make.randn(4, 5), _labels(4)
    if way is torch.no_grad:
        x.requires_grad_()
    with way():
        with Taken() as taken, Masks() as masks:
            loss = CALLS[name](x, y)
        with the_long_way(monkeypatch):
            assert torch.equal(CALLS[name](x, y), loss)
    assert taken
    assert masks.seen == [False]
    assert not loss.requires_grad


@each_name
def test_second_derivatives_and_a_second_backward(name, monkeypatch):
    x, y = make.randn(4, 5, dtype=torch.float64).requires_grad_(), _labels(4)
    with Taken() as taken:
        assert torch.autograd.gradgradcheck(lambda x: CALLS[name](x, y), x)
        loss = CALLS[name](x, y)
    first = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(loss, x)[0])
    assert taken


class Subclass(torch.Tensor):
    pass


def test_parameters_are_plain_and_subclasses_are_not():
    x, y = torch.nn.Parameter(make.randn(4, 5)), _labels(4)
    for name, call in CALLS.items():
        with Taken() as taken:
            call(x, y)
        assert taken, name
        with Taken() as taken:
            call(x.detach().as_subclass(Subclass), y)
        assert not taken, name


@each_name
def test_transforms_see_the_formulas(name):
    x, y = make.randn(3, 4, 5), _labels(4)
    answers = []

    def loss(x):
        with Taken() as taken:
            value = CALLS[name](x, y)
        answers.append(bool(taken))
        return value

    torch.func.grad(loss)(x[0])
    torch.vmap(loss)(x)
    torch.func.jvp(loss, (x[0],), (x[1],))
    # Also for a tensor that is not a dual number: it may be computed inside a dual level.
    with forward_ad.dual_level():
        loss(x[0])
    torch.vmap(lambda _: loss(x[0]))(make.zeros(2))
    torch.jit.trace(loss, (x[0],), check_trace=False)
    with torch.device(DEVICE):  # a mode of __torch_function__
        loss(x[0])
    assert answers == [False] * len(answers)
    assert len(answers) >= 7


@each_name
def test_choices_and_checks_are_obeyed(name):
    x, y = make.randn(4, 5), _labels(4)
    with Taken() as taken:
        with lossops.backend("reference"):
            CALLS[name](x, y)
        with lossops.label_checks():
            CALLS[name](x, y)
    assert taken.answers == [False, False]
    with Taken() as taken, lossops.backend("native"):
        CALLS[name](x, y)
    assert taken


@cpu_only
@each_name
def test_autocast_widens_halves(name):
    x, y = make.randn(4, 5, dtype=torch.bfloat16), _labels(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with Taken() as taken:
            assert CALLS[name](x, y).dtype == torch.float32
        assert not taken
        with Taken() as taken:
            assert CALLS[name](x.float(), y).dtype == torch.float32
        assert taken


X = torch.zeros(4, 5)
Y = torch.zeros(4, dtype=torch.long)
NAN, INF = float("nan"), float("inf")


def _softmax(input=X, target=Y, weight=None, ignore_index=-100, reduction="mean",
             label_smoothing=0.0, z_loss=0.0, temperature=1.0):  # fmt: skip
    return native_extension.plain_cross_entropy(
        input, target, weight, ignore_index, reduction, label_smoothing, z_loss, temperature,
        "logits",
    )  # fmt: skip


def _margin(input=X, target=Y, p=1, margin=1.0, reduction="mean"):
    return native_extension.plain_multi_margin(input, target, p, margin, reduction)


ODD_TENSORS = {
    "list": X.tolist(),
    "none": None,
    "subclass": X.as_subclass(Subclass),
    "sparse": X.to_sparse(),
    "meta": X.to("meta"),
    "int": X.long(),
    "complex": X.to(torch.complex64),
    "negative bit": torch._neg_view(X),
    "no rows": X[:0],
    "no classes": X[:, :0],
    "number": X.sum(),
    "a dimension more": X[None],
    "fewer rows": X[:3],
    "quantized": torch.quantize_per_tensor(X, 1.0, 0, torch.qint8),
    "float8": X.to(torch.float8_e5m2),
}
ODD_LABELS = {
    "list": Y.tolist(),
    "none": None,
    "float": Y.float(),
    "int16": Y.short(),
    "fewer": Y[:3],
    "a column": Y[:, None],
    "number": Y.sum(),
    "meta": Y.to("meta"),
    "probabilities": X,
    "subclass": Y.as_subclass(Subclass),
}
ODD_NUMBERS = {"int": 0, "string": "0", "none": None, "tensor": torch.tensor(0.0), "nan": NAN}
ODD_REDUCTIONS = {"sample": "sample", "unknown": "average", "none": None, "int": 1, "bytes": b"sum"}
ODD_SOFTMAX = {
    "input": ODD_TENSORS,
    "target": ODD_LABELS,
    "reduction": ODD_REDUCTIONS,
    "ignore_index": {"bool": True, "float": 1.0, "none": None, "large": 2**63},
    "label_smoothing": ODD_NUMBERS | {"below": -0.1, "above": 1.1},
    "z_loss": ODD_NUMBERS | {"infinite": INF},
    "temperature": ODD_NUMBERS | {"zero": 0.0, "negative": -1.0, "infinite": INF},
    "weight": {
        "other length": torch.ones(4),
        "matrix": torch.ones(5, 1),
        "int": torch.ones(5, dtype=torch.long),
        "gradient": torch.ones(5, requires_grad=True),
        "meta": torch.ones(5, device="meta"),
        "list": [1.0] * 5,
    },
}
ODD_MARGIN = {
    "input": ODD_TENSORS | {"one row": X[0], "pictures": X[:, :, None]},
    "target": ODD_LABELS | {"int32": Y.int(), "uint8": Y.to(torch.uint8)},
    "reduction": ODD_REDUCTIONS,
    "p": {"3": 3, "float": 1.0, "bool": True, "none": None, "large": 2**64},
    "margin": {k: v for k, v in ODD_NUMBERS.items() if k != "nan"},
}
ODD = [
    pytest.param(call, argument, value, id=f"{call.__name__[1:]}-{argument}-{kind}")
    for call, table in ((_softmax, ODD_SOFTMAX), (_margin, ODD_MARGIN))
    for argument, values in table.items()
    for kind, value in values.items()
]


@cpu_only
@pytest.mark.parametrize("call", [_softmax, _margin])
def test_without_oddities_it_is_plain(call):
    assert call() is not None


@cpu_only
@pytest.mark.parametrize(("call", "argument", "value"), ODD)
def test_oddities_are_left_to_the_checks(call, argument, value):
    assert call(**{argument: value}) is None


@cpu_only
def test_labels_of_turned_pictures_are_left_to_the_checks():
    pictures = torch.zeros(2, 5, 3, 4)
    assert _softmax(pictures, torch.zeros(2, 3, 4).long()) is not None
    assert _softmax(pictures, torch.zeros(2, 4, 3).long()) is None
    assert _softmax(pictures, torch.zeros(3, 3, 4).long()) is None


@cpu_only
@pytest.mark.parametrize("label", [-1, 5, 2**40])
def test_labels_that_are_no_class_are_left_to_the_checks(label):
    y = Y.clone()
    y[2] = label
    assert _softmax(target=y) is None
    assert _margin(target=y) is None
    with pytest.raises(IndexError, match="out of bounds"):
        F.cross_entropy(X, y)
    with pytest.raises(RuntimeError, match="out of range"):
        F.multi_margin_loss(X, y)
