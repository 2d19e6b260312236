"""Arguments that the losses over rows of class scores reject, with torch's exceptions and messages
where torch has them, and without side effects."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
import torch.nn.functional as torch_functional
from conftest import DEVICE, cpu_only, make, needs_kernels
from softmax_losses import DIVERGENCES as DIVERGENCE_NAMES
from softmax_losses import LABEL_LOSSES, each_softmax_case

import lossops
from lossops import functional as F
from lossops.core import labels as checking

DIVERGENCES = [name for name in DIVERGENCE_NAMES if name != "reverse"]
TORCHS = ("cross_entropy", "nll_loss")
each_name = pytest.mark.parametrize("name", [*LABEL_LOSSES, *DIVERGENCES])
each_label_loss = pytest.mark.parametrize("name", LABEL_LOSSES)
each_of_torch = pytest.mark.parametrize("name", TORCHS)
each_divergence = pytest.mark.parametrize("name", DIVERGENCES)


def labels(*shape, classes=5):
    return torch.randint(classes, shape, device=DEVICE)


def refuses(error, message, function, *args, **kwargs):
    """The call raises, its tensors are unchanged, and the next call works."""
    tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
    before = [t.clone() for t in tensors]
    with pytest.raises(error, match=message):
        function(*args, **kwargs)
    for tensor, copy in zip(tensors, before, strict=True):
        if tensor.device.type != "meta" and not tensor.is_sparse:
            assert torch.equal(tensor, copy)
    x = make.zeros(1, 2, requires_grad=True)
    F.cross_entropy(x, labels(1, classes=1)).backward()
    assert torch.equal(x.grad, make.tensor([[-0.5, 0.5]]))


def as_torch(error, name, *args, **kwargs):
    """Both reject the arguments with the same exception type, and our message contains torch's."""
    with pytest.raises(error) as theirs:
        getattr(torch_functional, name)(*args, **kwargs)
    words = re.escape(str(theirs.value).rstrip("]. "))
    refuses(error, words, getattr(F, name), *args, **kwargs)


@each_of_torch
def test_shapes_as_torch(name):
    x = make.randn(4, 5).log_softmax(1)
    as_torch(ValueError, name, x, labels(3))
    as_torch(ValueError, name, make.randn(2, 5, 3), labels(3, 3))
    as_torch(RuntimeError, name, make.randn(2, 5, 3), labels(2, 4))
    as_torch(RuntimeError, name, x, labels(4), weight=make.ones(4))
    as_torch(RuntimeError, name, x, labels(4), weight=make.ones(5, 1))
    refuses(RuntimeError, "target", getattr(F, name), make.randn(2, 5, 3, 2), labels(2, 4, 2))
    refuses(RuntimeError, "target", getattr(F, name), make.randn(2, 5, 3, 2), labels(2, 3))
    refuses(RuntimeError, "multi-target not supported", getattr(F, name), x, labels(4, 1))


def test_shapes_of_cross_entropy_as_torch():
    x = make.randn(4, 5)
    as_torch(ValueError, "cross_entropy", x[0], labels(4))
    as_torch(RuntimeError, "cross_entropy", x, labels(4, 5))
    as_torch(ValueError, "cross_entropy", x, x[:3].softmax(1))
    refuses(RuntimeError, "target", F.cross_entropy, x, x[:, :3])
    refuses(ValueError, "batch_size", F.cross_entropy, x, labels())
    refuses((RuntimeError, ValueError), "", F.cross_entropy, make.tensor(1.0), labels())
    refuses(ValueError, "1 or more dimensions", F.nll_loss, make.tensor(1.0), labels())


@each_label_loss
def test_shapes_of_all_label_losses(name):
    function = getattr(F, name)
    x = make.randn(4, 5)
    refuses(
        ValueError, r"batch_size \(4\) to match target batch_size \(3\)", function, x, labels(3)
    )
    wrong = {"alpha" if name == "focal_loss" else "weight": make.ones(4)}
    refuses(RuntimeError, r"all 5 classes .* shape: \[4\]", function, x, labels(4), **wrong)


@each_of_torch
def test_dtypes_as_torch(name):
    x = make.randn(4, 5).log_softmax(1)
    for bad in (torch.float32, torch.int16, torch.bool, torch.int8):
        refuses(
            RuntimeError, "expected target dtype to be Long.* but got", getattr(F, name), x,
            labels(4).to(bad),
        )  # fmt: skip
    for bad in (torch.int64, torch.complex64):
        refuses(NotImplementedError, "input should be", getattr(F, name), x.to(bad), labels(4))
    with pytest.raises(NotImplementedError):
        getattr(F, name)(x.to(torch.float8_e4m3fn), labels(4))


@cpu_only
@each_name
@pytest.mark.parametrize("bad", [5, -1, -99, 2**40])
def test_label_out_of_range(name, bad):
    """On a GPU the row is NaN instead, see test_raw_softmax.py."""
    target = labels(4)
    target[2] = bad
    for shape in ((4, 5), (4, 5, 1)):
        x = make.randn(shape, requires_grad=True)
        y = target.reshape(4, *shape[2:])
        for reduction in ("none", "mean", "sum", "sample"):
            refuses(
                IndexError, f"^Target {bad} is out of bounds", getattr(F, name), x, y,
                reduction=reduction,
            )  # fmt: skip


@cpu_only
@each_label_loss
@pytest.mark.parametrize("bad", [-1, 5])
def test_label_out_of_range_by_the_formulas(name, bad):
    x, y = make.randn(4, 5), make.tensor([0, 1, bad, 2])
    option = "alpha" if name == "focal_loss" else "weight"
    weight = make.ones(5, requires_grad=True)
    refuses(IndexError, "out of bounds", getattr(F, name), x, y, **{option: weight})
    with lossops.backend("reference"):
        refuses(IndexError, "out of bounds", getattr(F, name), x, y)


@each_name
@pytest.mark.parametrize("bad", [5, -1, 2**40])
def test_label_checks(name, bad):
    """On every device and backend, with the row in the message."""
    x, y = make.randn(4, 5, 3), labels(4, 3)
    y[2, 1] = bad
    with lossops.label_checks():
        refuses(
            IndexError, rf"^Target {bad} is out of bounds, in row \(2, 1\)", getattr(F, name), x, y
        )
        y[2, 1] = 0
        getattr(F, name)(x, y)
        if name != "log_prob_of":
            y[2, 1] = -100
            getattr(F, name)(x, y)
    y[2, 1] = bad
    if x.device.type != "cpu":
        assert getattr(F, name)(x, y, reduction="none")[2, 1].isnan()


def test_label_checks_may_be_nested():
    x, y = make.randn(4, 5), labels(4)
    y[3] = 9
    with lossops.label_checks():
        with lossops.label_checks():
            pass
        refuses(IndexError, r"in row \(3,\)", F.cross_entropy, x, y)
    assert checking._open == 0


@cpu_only
def test_no_classes():
    x = make.empty(4, 0)
    refuses(IndexError, "", F.cross_entropy, x, labels(4))
    refuses(IndexError, "Target 7 is out of bounds", F.log_prob_of, make.randn(2, 5),
            labels(2) * 0 + 7)  # fmt: skip


@each_name
def test_reduction(name):
    x = make.randn(4, 5)
    for bad in ("avg", "MEAN", "batchmean", "", None, 3, ("mean",)):
        refuses(
            ValueError, "^" + re.escape(f"{bad} is not a valid value for reduction"),
            getattr(F, name), x, labels(4), reduction=bad,
        )  # fmt: skip
    refuses(
        ValueError, "reduction='sample' needs a batch dimension", getattr(F, name), x[0],
        labels(), reduction="sample",
    )  # fmt: skip


def test_label_smoothing():
    x = make.randn(4, 5)
    as_torch(RuntimeError, "cross_entropy", x, labels(4), label_smoothing=1.5)
    for bad in (-0.1, -1e-9, 1.0001, float("nan"), float("inf")):
        refuses(
            RuntimeError, "label_smoothing must be between 0.0 and 1.0. Got: ", F.cross_entropy, x,
            labels(4), label_smoothing=bad,
        )  # fmt: skip
    for fine in (0, 1, 0.0, 1.0, True):
        F.cross_entropy(x, labels(4), label_smoothing=fine)


def test_ignore_index_with_probabilities():
    x = make.randn(4, 5)
    as_torch(RuntimeError, "cross_entropy", x, x.softmax(1), ignore_index=2)
    F.cross_entropy(x, x.softmax(1), ignore_index=-7)


@pytest.mark.parametrize(
    ("function", "argument", "values"),
    [
        (F.cross_entropy, "temperature", (0.5, 3)),
        (F.cross_entropy, "softcap", (None, 30, 0.5)),
        (F.cross_entropy, "z_loss", (0, 1e-4)),
        (F.focal_loss, "gamma", (0, 0.5, 5)),
    ],
)
def test_hyperparameters_may_be_integers(function, argument, values):
    for value in values:
        function(make.randn(4, 5), labels(4), **{argument: value})


def test_normalizer_and_empty():
    x, y = make.randn(4, 5), labels(4)
    for bad in ("none", "sum", "sample"):
        refuses(ValueError, "normalizer", F.cross_entropy, x, y, normalizer=2.0, reduction=bad)
    refuses(ValueError, "normalizer", F.cross_entropy, x, y, normalizer=make.ones(4))
    refuses(
        (ValueError, TypeError), "normalizer", F.cross_entropy, x, y,
        normalizer=make.tensor(2.0, requires_grad=True),
    )  # fmt: skip
    refuses(TypeError, "normalizer", F.cross_entropy, x, y, normalizer="2")
    for bad in ("zeros", None, 0):
        refuses(ValueError, "empty should be", F.cross_entropy, x, y, empty=bad)


def test_in_place():
    x, y = make.randn(4, 5, requires_grad=True), labels(4)
    for reduction in ("none", "sample"):
        refuses(ValueError, "inplace", F.cross_entropy, x * 1, y, reduction=reduction, inplace=True)
    refuses(RuntimeError, "leaf Variable that requires grad", F.cross_entropy, x, y, inplace=True)
    leaf = make.randn(4, 10, requires_grad=True)
    for logits in ((leaf[:1, :5] * 1).expand(4, 5), (leaf * 1).as_strided((4, 5), (3, 1))):
        kept = logits.detach().clone()
        with pytest.raises(RuntimeError, match="should not share memory with each other"):
            F.cross_entropy(logits, y, inplace=True)
        assert torch.equal(logits, kept)


def test_in_place_spares_what_is_not_its_own():
    leaf, y = make.randn(6, 5, requires_grad=True), labels(6)
    kept = leaf.detach().clone()
    for view in (lambda x: x.view(6, 5), lambda x: x[0:6], lambda x: x.t().t()):
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
            F.cross_entropy(view(leaf), y, inplace=True)
        assert torch.equal(leaf, kept)
    soft = make.randn(6, 5).softmax(1).requires_grad_()
    with pytest.raises(RuntimeError, match="no gradient by the target"):
        F.cross_entropy(leaf * 1, soft, inplace=True)
    F.cross_entropy(leaf * 1, soft.detach(), inplace=True).backward()


@needs_kernels
def test_in_place_notices_that_the_gradient_is_overwritten():
    leaf, y = make.randn(6, 5, requires_grad=True), labels(6)
    hidden = leaf * 1
    loss = F.cross_entropy(hidden, y, inplace=True)
    with torch.no_grad():
        hidden.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_in_place_under_transforms_changes_nothing():
    x, y = make.randn(6, 5), labels(6)
    kept = x.clone()
    grad = torch.func.grad(lambda a: F.cross_entropy(a, y, inplace=True))(x)
    torch.testing.assert_close(grad, torch.func.grad(lambda a: F.cross_entropy(a, y))(x))
    assert torch.equal(x, kept)


def test_what_is_surely_wrong_is_refused():
    x, y = make.randn(4, 5), labels(4)
    for bad in (float("nan"), 0, -3.0, float("inf")):
        refuses(ValueError, "normalizer should be positive", F.cross_entropy, x, y, normalizer=bad)
    probs = x.softmax(1)
    refuses(
        ValueError, "temperature is for logits", F.kl_divergence, probs, probs, input_form="probs",
        temperature=2.0,
    )  # fmt: skip
    F.kl_divergence(x, probs, target_form="probs", temperature=2.0)
    refuses(TypeError, "input should be a Tensor", F.focal_loss, [1.0], y, alpha=0.1)
    for bad in (None, 1.5):
        refuses(TypeError, "as an integer", F.cross_entropy, x, y, ignore_index=bad)
    refuses(RuntimeError, "but got Short", F.cross_entropy, x, y.short())


@each_divergence
def test_divergences(name):
    function = getattr(F, name)
    x, y = make.randn(2, 4, 5).unbind(0)
    refuses((ValueError, RuntimeError), "shape|size", function, x, y[:, :4])
    refuses((ValueError, RuntimeError), "shape|size", function, x, y[:3])
    refuses((ValueError, RuntimeError), "shape|size", function, x, labels(3))
    for bad in ("logit", "", None, 1):
        refuses(ValueError, "input_form should be one of", function, x, y, input_form=bad)
    for bad in ("labels ", "", 1):
        refuses(ValueError, "target_form should be", function, x, y, target_form=bad)
    for bad in (2, -3):
        refuses(IndexError, "Dimension out of range", function, x, y, dim=bad)
    refuses(NotImplementedError, "input should be", function, x.long(), y)
    refuses((RuntimeError, ValueError), "class indices|target", function, x, y > 0)
    refuses((ValueError, RuntimeError), "", function, make.tensor(1.0), make.tensor(1.0))


def test_log_prob_of():
    x = make.randn(4, 5)
    refuses(ValueError, "shape", F.log_prob_of, x, labels(3))
    refuses(RuntimeError, "dtype", F.log_prob_of, x, make.ones(4))
    refuses(IndexError, "Dimension out of range", F.log_prob_of, x, labels(4), dim=2)
    refuses(TypeError, "Tensor, got", F.log_prob_of, x, 3)


@each_name
def test_types_devices_and_layouts(name):
    function, x = getattr(F, name), make.randn(4, 5)
    for bad, kind in (([1.0, 2.0], "list"), (None, "NoneType"), (1.0, "float")):
        refuses(TypeError, f"input should be a Tensor, got {kind}", function, bad, labels(4))
        refuses(TypeError, f"target should be a Tensor, got {kind}", function, x, bad)
    meta = torch.zeros(4, dtype=torch.long, device="meta")
    refuses(RuntimeError, "same device, but found target on meta", function, x, meta)
    refuses(
        NotImplementedError, "input should be a dense tensor", function, x.to_sparse(), labels(4)
    )
    if name in LABEL_LOSSES and name != "focal_loss":
        refuses(TypeError, "weight should be a Tensor", function, x, labels(4), weight=2.0)
        refuses(
            RuntimeError, "same device, but found weight on meta", function, x, labels(4),
            weight=torch.ones(5, device="meta"),
        )  # fmt: skip


@each_of_torch
def test_signature_is_torchs(name):
    ours = list(inspect.signature(getattr(F, name)).parameters.values())
    theirs = list(inspect.signature(getattr(torch_functional, name)).parameters.values())
    for own, other in zip(ours, theirs, strict=False):
        assert (own.name, own.default, own.kind) == (other.name, other.default, other.kind)
    assert all(own.kind is own.KEYWORD_ONLY for own in ours[len(theirs) :])


@each_of_torch
def test_deprecated_arguments_warn_and_work(name):
    x, y, function = make.randn(4, 5), labels(4), getattr(F, name)
    for legacy, reduction in (
        ({"size_average": False}, "sum"), ({"reduce": False}, "none"), ({"reduce": True}, "mean"),
    ):  # fmt: skip
        with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
            assert torch.equal(function(x, y, **legacy), function(x, y, reduction=reduction))


@each_softmax_case
def test_arguments_are_left_alone(case):
    x, y, kwargs = case.tensors((6, 5), torch.float32)
    tensors = [x, y, *(v for v in kwargs.values() if torch.is_tensor(v))]
    before = [t.clone() for t in tensors]
    x.requires_grad_()
    case(x, y, **kwargs).backward()
    for tensor, copy in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copy)
