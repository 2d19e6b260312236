"""The contract of the raw softmax ops (see ``lossops/core/library.py``), for every engine, as in
test_raw_ops.py for the elementwise ops."""

import copy
import itertools
import math
import random

import pytest
import torch
from raw_ops import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, each_pair
from raw_softmax import LOSSES, Case, Errors

from lossops.softmax.reference import DIVERGENCES, LABEL_LOSSES

DTYPES = [
    (FLOAT64, FLOAT64),
    (FLOAT32, FLOAT32),
    (BFLOAT16, BFLOAT16),
    (FLOAT16, FLOAT16),
    (BFLOAT16, FLOAT32),
    (FLOAT16, FLOAT32),
    (FLOAT32, FLOAT64),
    (FLOAT32, BFLOAT16),
]
SAME = DTYPES[:4]
REDUCTIONS = [("none", 0), ("mean", 0), ("sum", 0), ("mean", 1), ("sum", 1), ("mean", 2)]
FORMS = ["logits", "log_probs", "probs"]
SIZES = [1, 2, 3, 7, 8, 21, 31, 32, 33, 64, 100, 1000, 1024, 1025, 4097]
each_same = each_pair(SAME)
each_reduction = pytest.mark.parametrize(("reduction", "keep_dims"), REDUCTIONS)

# The branch that is not selected may divide by zero, which numpy reports in Triton's interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")


def by_loss(case, mask=None):
    """The gradients for a cotangent of the loss alone."""
    return case.backward(mask, grad_lse=None, grad_entropy=None)


def some_rows(keep_dims):
    return tuple(random.randint(1, 3) for _ in range(max(keep_dims, 1) + random.randint(0, 1)))


# ---------------------------------------------------------------------------------------------
# Every loss, form, dtype and reduction.


@each_same
@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("loss", LABEL_LOSSES)
def test_label_losses(backend, loss, form, dtypes):
    for reduction, keep_dims in REDUCTIONS:
        rows, classes = some_rows(keep_dims), random.randint(2, 40)
        dim = random.randint(keep_dims, len(rows))
        options = {"weighted": random.random() < 0.5, "ignored": random.choice((0, 0.4))}
        Case(
            backend, rows, classes, loss, dim=dim, dtypes=dtypes, form=form, reduction=reduction,
            keep_dims=keep_dims, **options,
        ).check()  # fmt: skip


@each_pair(DTYPES)
@pytest.mark.parametrize("target_form", FORMS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", DIVERGENCES)
def test_divergences(backend, loss, form, target_form, dtypes):
    for reduction, keep_dims in random.sample(REDUCTIONS, 2):
        rows, classes = some_rows(keep_dims), random.randint(1, 40)
        dim = random.randint(keep_dims, len(rows))
        temperature = random.choice((1.0, 2.5))
        Case(
            backend, rows, classes, loss, dim=dim, dtypes=dtypes, form=form,
            target_form=target_form, reduction=reduction, keep_dims=keep_dims,
            temperature=temperature,
        ).check()  # fmt: skip


@each_same
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", [name for name in DIVERGENCES if name != "reverse_kl"])
def test_divergences_from_a_label(backend, loss, form, dtypes):
    for reduction, keep_dims in REDUCTIONS:
        rows = some_rows(keep_dims)
        Case(
            backend, rows, 19, loss, dim=len(rows), dtypes=dtypes, form=form, reduction=reduction,
            keep_dims=keep_dims, ignored=0.3,
        ).check()  # fmt: skip


@each_pair(DTYPES)
@each_reduction
def test_soft_targets(backend, reduction, keep_dims, dtypes):
    """Probabilities as the target of cross entropy, with all options of cross entropy."""
    for form in FORMS[:2]:
        rows = some_rows(keep_dims)
        options = {"weighted": random.random() < 0.5, "smoothing": random.choice((0.0, 0.3))}
        Case(
            backend, rows, 23, dim=random.randint(keep_dims, len(rows)), dtypes=dtypes, form=form,
            target_form="probs", reduction=reduction, keep_dims=keep_dims, **options,
        ).check()  # fmt: skip


OPTIONS = {
    "smoothing": 0.2,
    "z_loss": 1e-2,
    "softcap": 3.0,
    "temperature": 0.7,
    "weighted": True,
    "ignored": 0.5,
    "one_if_none": True,
}


@each_same
@each_reduction
@pytest.mark.parametrize("loss", LABEL_LOSSES)
def test_pairs_of_options(backend, loss, reduction, keep_dims, dtypes):
    pairs = list(itertools.combinations(OPTIONS, 2))
    for names in [*random.sample(pairs, 5), list(OPTIONS)]:
        options = {name: OPTIONS[name] for name in names}
        if loss != "cross_entropy":
            options.pop("smoothing", None)
        rows = some_rows(keep_dims)
        Case(
            backend, rows, 17, loss, dim=random.randint(keep_dims, len(rows)), dtypes=dtypes,
            reduction=reduction, keep_dims=keep_dims, **options,
        ).check()  # fmt: skip


@each_same
@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_alone(backend, option, dtypes):
    for target_form in ("labels", "probs"):
        if target_form == "probs" and option in ("ignored", "one_if_none"):
            continue
        case = Case(
            backend, (9,), 37, dtypes=dtypes, target_form=target_form, **{option: OPTIONS[option]}
        )
        case.check()


@each_same
def test_normalizer(backend, dtypes):
    for reduction, keep_dims in (("mean", 0), ("sum", 0), ("mean", 1), ("mean", 2)):
        rows = (3, 2, 4)
        for kept in {(), rows[:keep_dims]}:
            for target_form in ("labels", "probs"):
                normalizer = (torch.rand(kept) + 0.5).to(dtypes[0])
                Case(
                    backend, rows, 11, dtypes=dtypes, target_form=target_form, reduction=reduction,
                    keep_dims=keep_dims, normalizer=normalizer, weighted=True,
                ).check()  # fmt: skip


@pytest.mark.parametrize("labels", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("ignore_index", [-100, -1, 3, 255, 10**12, -(10**12)])
def test_labels_of_every_type_and_any_ignored_one(backend, labels, ignore_index):
    info = torch.iinfo(labels)
    inside = info.min <= ignore_index <= info.max
    Case(
        backend, (40,), 6, labels=labels, ignore_index=ignore_index,
        ignored=0.4 if inside else 0.0, weighted=True,
    ).check()  # fmt: skip


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16])
def test_loss_of_another_dtype(backend, dtype):
    """As under autocast: half-precision tensors, a float32 loss and its gradient."""
    for reduction, keep_dims in REDUCTIONS:
        rows = (2, 3, 4)
        Case(
            backend, rows, 50, dtypes=(dtype, dtype), reduction=reduction, keep_dims=keep_dims,
            out_dtype=FLOAT32,
        ).check()  # fmt: skip


# ---------------------------------------------------------------------------------------------
# Sizes and layouts.


@each_same
@pytest.mark.parametrize("classes", SIZES)
def test_number_of_classes(backend, classes, dtypes):
    for loss in ("cross_entropy", "jensen_shannon"):
        target_form = "labels" if loss == "cross_entropy" else "logits"
        for dim in (0, 1):
            Case(
                backend, (3,), classes, loss, dim=dim, dtypes=dtypes, target_form=target_form,
                reduction=random.choice(("none", "mean")),
            ).check()  # fmt: skip


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 33, 300])
@pytest.mark.parametrize("classes", [1, 5, 32, 130])
def test_number_of_rows(backend, rows, classes):
    for dim, reduction in itertools.product((0, 1), ("none", "mean", "sum")):
        Case(
            backend, (rows,), classes, dim=dim, reduction=reduction, weighted=True, ignored=0.2,
            smoothing=0.1,
        ).check()  # fmt: skip
        Case(
            backend, (rows,), classes, "kl", dim=dim, target_form="log_probs", reduction=reduction
        ).check()


LAYOUTS = {
    "channels_last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1),
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "inside_out": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "sliced": lambda t: torch.cat((t, t), dim=1)[:, 1 : 1 + t.shape[1]],
    "sliced_last": lambda t: torch.cat((t, t), dim=-1)[..., 1 : 1 + t.shape[-1]],
    "every_other": lambda t: torch.stack((t, t), dim=-1)[..., 0],
    "shifted": lambda t: torch.cat((t.flatten(), t.flatten()))[1 : 1 + t.numel()].view_as(t),
    "broadcast_rows": lambda t: t[:1].expand_as(t),
    "broadcast_classes": lambda t: t[:, :1].expand_as(t),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", ["input", "target", "both"])
@pytest.mark.parametrize("target_form", ["labels", "probs", "logits"])
def test_layouts(backend, layout, which, target_form):
    loss = "kl" if target_form == "logits" else "cross_entropy"
    for dtype, classes in ((FLOAT32, 12), (BFLOAT16, 67)):
        for reduction, keep_dims in (("none", 0), ("mean", 0), ("mean", 1)):
            case = Case(
                backend, (4, 5, 3), classes, loss, dim=1, dtypes=(dtype, dtype),
                target_form=target_form, reduction=reduction, keep_dims=keep_dims,
            ).to_device()  # fmt: skip
            if which != "target":
                case.input = LAYOUTS[layout](case.input)
            if which != "input":
                case.target = LAYOUTS[layout](case.target)
                if case.has_extras:
                    case.grad_lse = LAYOUTS[layout](case.grad_lse)
                if reduction == "none":
                    case.grad_output = LAYOUTS[layout](case.grad_output)
            case.check()


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16])
@pytest.mark.parametrize("classes", [7, 64, 1031])
def test_rows_off_their_alignment(backend, dtype, classes):
    """Rows that start at every offset from a vector boundary."""
    for offset in range(1, 9):
        case = Case(backend, (3,), classes, dtypes=(dtype, dtype), z_loss=1e-3).to_device()
        memory = torch.zeros(case.input.numel() + 16, dtype=dtype, device=backend.device)
        shifted = memory[offset : offset + case.input.numel()].view_as(case.input)
        case.input = shifted.copy_(case.input)
        case.check()


def test_many_dimensions(backend):
    """No two dimensions can be merged."""
    rows = (2, 3, 2, 2, 3, 2)
    for target_form in ("labels", "logits"):
        loss = "cross_entropy" if target_form == "labels" else "total_variation"
        for reduction, keep_dims in (("none", 0), ("mean", 0), ("sum", 1)):
            case = Case(
                backend, rows, 5, loss, dim=3, target_form=target_form, reduction=reduction,
                keep_dims=keep_dims,
            ).to_device()  # fmt: skip
            order = random.sample(range(7), 7)
            inverse = [order.index(d) for d in range(7)]
            case.input = case.input.permute(order).contiguous().permute(inverse)
            case.check()


def test_one_number_for_all_rows(backend):
    """Cotangents with stride 0, as from a sum."""
    case = Case(backend, (6, 4), 30, dim=1, reduction="none").to_device()
    for name in ("grad_output", "grad_lse", "grad_entropy"):
        one = torch.tensor(random.gauss(0, 1), device=backend.device)
        setattr(case, name, one.expand(6, 4))
    case.check()


# ---------------------------------------------------------------------------------------------
# Masks, in-place ops, agreement.


@pytest.mark.parametrize("target_form", ["labels", "probs"])
def test_only_what_is_asked_for(backend, target_form):
    case = Case(backend, (5,), 70, target_form=target_form, z_loss=1e-3).to_device()
    soft = target_form != "labels"
    full = case.forward([True, True, not soft, True, soft])
    for mask in itertools.product((False, True), repeat=5):
        if (soft and mask[2]) or (not soft and mask[4]):
            continue
        loss, *rows, denominator, grad_input, grad_target = case.forward(list(mask))
        assert torch.equal(loss, full[0])
        assert (denominator is None) == soft
        got = [*rows, grad_input, grad_target]
        expected = [*full[1:4], *full[5:]]
        for tensor, other, wanted in zip(got, expected, mask, strict=True):
            assert (tensor is not None) == wanted
            if wanted:
                assert torch.equal(tensor, other)
    given = [case.grad_output, case.grad_lse, case.grad_entropy]
    for present in itertools.product((False, True), repeat=3):
        if not any(present):
            continue
        some = [g if yes else None for g, yes in zip(given, present, strict=True)]
        changes = dict(zip(("grad_output", "grad_lse", "grad_entropy"), some, strict=True))
        _, *expected = case.truth(*some)
        got = case.backward(**changes)
        assert (got[1] is None) == (not soft)
        case.compare("grad_input", got[0], expected[0], expected[0].abs().amax())
        if soft:
            case.compare("grad_target", got[1], expected[1], expected[1].abs().amax())
            only = case.backward([False, True], **changes)
            assert only[0] is None
            assert torch.equal(only[1], got[1])


@each_same
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_forward_in_place(backend, dim, dtypes):
    """The same bits as out of place, written over the input."""
    for target_form, classes in itertools.product(("labels", "probs"), (7, 33, 1030)):
        for reduction in ("mean", "sum"):
            soft = target_form != "labels"
            case = Case(
                backend, (2, 3), classes, dim=dim, dtypes=dtypes, target_form=target_form,
                reduction=reduction, weighted=True, smoothing=0.1, z_loss=1e-3,
            ).to_device()  # fmt: skip
            *values, grad, _ = case.forward([True, True, not soft, True, False])
            memory = case.input.clone()
            got = case.forward_(memory, (True, True, not soft))
            assert torch.equal(memory, grad)
            for one, other in zip(got, values, strict=True):
                assert (one is None) == (other is None)
                assert one is None or torch.equal(one, other)


@pytest.mark.parametrize("layout", ["channels_last", "shifted"])
def test_forward_in_place_on_other_layouts(backend, layout):
    case = Case(backend, (4, 5, 3), 12, dim=1, reduction="mean").to_device()
    one = torch.ones((), device=backend.device)
    memory = case.input = LAYOUTS[layout](case.input)
    _, expected, _ = case.truth(one)
    errors = Errors(case)
    case.forward_(memory)
    case.compare("grad_input", memory, expected, errors.gradients(one, None, None)[0])


@each_pair(DTYPES)
@pytest.mark.parametrize("loss", ["cross_entropy", "kl"])
def test_backward_in_place(backend, loss, dtypes):
    target_form = "probs" if loss == "kl" else "labels"
    case = Case(backend, (3, 4), 50, loss, dim=1, dtypes=dtypes, target_form=target_form)
    case.to_device()
    expected = [g for g in by_loss(case) if g is not None]
    # Overwrites the previous contents, unless grad_output is 1.
    grads = [torch.full_like(g, 7.0) for g in expected]
    case.backward_(grads)
    for got, other in zip(grads, expected, strict=True):
        assert torch.equal(got, other)
    grads = [torch.full_like(g, 7.0) for g in expected]
    case.grad_output = torch.ones_like(case.grad_output)
    case.backward_(grads)
    assert all((g == 7).all() for g in grads)


def agree(case):
    *_, grad_input, grad_target = case.forward([False, False, False, True, case.soft])
    grads = [g for g in (grad_input, grad_target) if g is not None]
    case.backend.ops.elementwise_rescale_(grads, case.grad_output)
    again = by_loss(case)
    for got, other in zip(grads, [g for g in again if g is not None], strict=True):
        assert torch.equal(got, other)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_two_backward_passes_agree(backend, loss, reduction):
    """The rescaled gradient of the forward pass and the recomputed one have the same bits in
    float32."""
    for classes, dim in ((5, 1), (33, 0), (1000, 1), (1025, 0)):
        target_form = "logits" if loss in DIVERGENCES else "labels"
        case = Case(
            backend, (4,), classes, loss, dim=dim, target_form=target_form, reduction=reduction,
            weighted=loss in LABEL_LOSSES, ignored=0.0 if loss in DIVERGENCES else 0.3,
        ).to_device()  # fmt: skip
        agree(case)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_same_bits_every_time(backend, dtype):
    for rows, classes, dim in (((40,), 1000, 1), ((7, 30), 33, 1), ((300,), 5, 1)):
        case = Case(backend, rows, classes, dim=dim, dtypes=(dtype, dtype), weighted=True)
        case.to_device()
        first = [*case.forward(), *case.backward()]
        for _ in range(3):
            for one, other in zip(first, [*case.forward(), *case.backward()], strict=True):
                assert (one is None) == (other is None)
                assert one is None or torch.equal(one, other)


# ---------------------------------------------------------------------------------------------
# Edge cases of the values.


def logits_case(backend, rows, target, loss="cross_entropy", dtype=FLOAT32, **options):
    """A case with these values."""
    options.setdefault("reduction", "none")
    rows = torch.tensor(rows, dtype=FLOAT64)
    case = Case(backend, rows.shape[:1], rows.shape[1], loss, dtypes=(dtype, dtype), **options)
    case.input = rows.to(dtype)
    case.target = torch.tensor(target).to(case.target.dtype)
    return case.to_device()


def hard(case, got, expected, **tolerance):
    tolerance = {"rtol": 4 * torch.finfo(case.input.dtype).eps, "atol": 1e-30} | tolerance
    expected = torch.tensor(expected, dtype=FLOAT64).to(got.dtype)
    torch.testing.assert_close(got.cpu(), expected, equal_nan=True, **tolerance)


@each_same
def test_infinite_logits(backend, dtypes):
    inf, dtype = math.inf, dtypes[0]
    rows = [[-inf, 0.0, 0.0], [-inf, 0.0, 0.0], [-inf, 2.0, -inf], [-inf, 2.0, -inf]]
    for repeat in (1, 40):  # rows of a few classes, and of several vectors
        wide = [row + [-inf] * (3 * repeat - 3) for row in rows]
        case = logits_case(backend, wide, [1, 0, 1, 2], dtype=dtype)
        loss, lse, entropy, accuracy, *_ = case.forward()
        hard(case, loss, [math.log(2), inf, 0.0, inf])
        hard(case, lse, [math.log(2), math.log(2), 2.0, 2.0])
        hard(case, entropy, [math.log(2), math.log(2), 0.0, 0.0])
        hard(case, accuracy, [1.0, 0.0, 1.0, 0.0])
        case.grad_output = torch.full_like(case.grad_output, 2.0)
        (grad, _) = by_loss(case)
        hard(case, grad[0], [0.0, -1.0, 1.0] + [0.0] * (3 * repeat - 3))
        hard(case, grad[2], [0.0] * (3 * repeat))
        assert (grad[:, 3:][[0, 2]] == 0).all()
        (grad, _) = case.backward()  # a cotangent of H must not turn 0 log 0 into NaN
        assert grad[[0, 2]].isfinite().all()


@each_same
def test_certain_classes(backend, dtypes):
    """Logits of +inf are the limit of large equal ones."""
    inf = math.inf
    rows = [[inf, 0.0, 1.0], [inf, 0.0, 1.0], [inf, inf, -1.0], [inf, -inf, inf]]
    for repeat in (1, 40, 1500):  # rows of a few classes, of several vectors, and of several blocks
        wide = [row + [2.0] * (3 * repeat - 3) for row in rows]
        case = logits_case(backend, wide, [0, 1, 1, 2], dtype=dtypes[0])
        loss, lse, entropy, accuracy, *_ = case.forward()
        hard(case, loss, [0.0, inf, math.log(2), math.log(2)])
        hard(case, lse, [inf] * 4)
        hard(case, entropy, [0.0, 0.0, math.log(2), math.log(2)])
        hard(case, accuracy, [1.0, 0.0, 1.0, 1.0])
        case.grad_output = torch.full_like(case.grad_output, 2.0)
        grad, _ = by_loss(case)
        hard(case, grad[:, :3].flatten(), [0, 0, 0, 2, -2, 0, 1, -1, 0, 1, 0, -1])
        assert not grad[:, 3:].any()
        (grad, _) = case.backward()
        assert grad.isfinite().all()
        large = case.input.double().nan_to_num(posinf=1e300).requires_grad_()
        rows_of, *_ = case.rows(large, case.target)
        (expected,) = torch.autograd.grad(rows_of.sum(), large)
        case.grad_output = torch.ones_like(case.grad_output)
        grad, _ = by_loss(case)
        hard(case, grad.flatten(), expected.flatten().tolist())


@each_same
def test_rows_of_impossible_classes(backend, dtypes):
    """Logits that are all -inf are treated as equal, like those that are all +inf, whatever is
    stored next to the row. This is the limit of equal logits, where torch gives NaN."""
    inf = math.inf
    for classes in (3, 31, 120, 4501):  # a few classes, several vectors, several blocks
        rows = [[-inf] * classes, [0.0] * classes, [-inf] * classes, [1.0] + [-inf] * (classes - 1)]
        case = logits_case(backend, rows, [1, 0, classes - 1, 0], dtype=dtypes[0])
        loss, lse, entropy, accuracy, *_ = case.forward()
        hard(case, loss, [math.log(classes)] * 3 + [0.0])
        hard(case, lse, [-inf, math.log(classes), -inf, 1.0])
        hard(case, entropy, [math.log(classes)] * 3 + [0.0])
        hard(case, accuracy, [1.0] * 4)
        grad, _ = case.backward()
        assert grad.isfinite().all()
        case.input = case.input[[1, 1, 1, 3]]
        expected, _ = case.backward()
        hard(case, grad.flatten(), expected.flatten().tolist(), atol=1e-6 / classes)


@each_same
@pytest.mark.parametrize("loss", DIVERGENCES)
@pytest.mark.parametrize("side", ["input", "target", "both"])
def test_divergences_of_impossible_classes(backend, side, loss, dtypes):
    for classes, dim in itertools.product((3, 31, 120, 4501), (0, 1)):
        case = Case(backend, (4,), classes, loss, dim=dim, dtypes=dtypes, target_form="logits")
        case.to_device()
        of_zeros = copy.copy(case)
        for name in ("input", "target"):
            if side in (name, "both"):
                row = (slice(None), 2) if dim == 0 else (2,)
                for of, number in ((case, -math.inf), (of_zeros, 0.0)):
                    setattr(of, name, getattr(case, name).clone())
                    getattr(of, name)[row] = number
        found, expected = case.forward([False] * 5), of_zeros.forward([False] * 5)
        found, expected = [*found, *case.backward()], [*expected, *of_zeros.backward()]
        for one, other in zip(found, expected, strict=True):
            if other is not None:
                eps = torch.finfo(one.dtype).eps
                torch.testing.assert_close(one, other, rtol=8 * eps, atol=eps / classes)


@each_same
@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "poly"])
def test_a_weight_of_zero_counts_nothing(backend, loss, dtypes):
    """Also if the loss is infinite."""
    for classes in (3, 120):
        rows = [[-math.inf] + [1.0] * (classes - 1)] * 2
        case = logits_case(backend, rows, [0, 1], loss, dtype=dtypes[0], weighted=True)
        case.class_weight = torch.ones_like(case.class_weight)
        case.class_weight[0] = 0
        value, *_ = case.forward()
        assert value[0] == 0
        assert value[1] > 0
        grad, _ = by_loss(case)
        assert not grad[0].any()


@each_same
def test_the_mean_of_nothing_and_nothing(backend, dtypes):
    """Classes with probability 0 on both sides. The derivative of Jensen-Shannon, with the other
    side at 0, tends to log(2)/2."""
    for more in (0, 60):
        row = [0.0, 1.0, 0.0] + [0.0] * more
        case = logits_case(
            backend, [row], [0], "jensen_shannon", dtype=dtypes[0], form="probs"
        )  # fmt: skip
        case.target_form, case.target = "probs", case.input.clone()
        case.grad_output = torch.ones_like(case.grad_output)
        value, *_ = case.forward([False] * 5)
        hard(case, value, [0.0])
        for grad in by_loss(case, [True, True]):
            half = 0.5 * math.log(2)
            hard(case, grad[0], [half, 0.0, half] + [half] * more)


@each_same
def test_rows_without_a_distribution(backend, dtypes):
    """Rows with NaN give NaN, as in torch, and do not affect their neighbours."""
    inf, nan = math.inf, math.nan
    rows = [[-inf, nan, -inf], [inf, 0.0, nan], [nan, 0.0, 1.0], [0.0, 0.0, nan], [0.5, 0.5, 0.5]]
    for repeat in (1, 30):
        case = logits_case(backend, [row * repeat for row in rows], [0] * 5, dtype=dtypes[0])
        torchs = torch.nn.functional.cross_entropy(
            case.input.double(), case.target, reduction="none"
        )
        loss, *_ = case.forward()
        torch.testing.assert_close(loss.double(), torchs, equal_nan=True, rtol=1e-2, atol=1e-2)
        assert loss[:4].isnan().all()
        grad, _ = by_loss(case)
        assert grad[:4].isnan().any(1).all()
        assert grad[4].isfinite().all()
        case.reduction = "mean"
        assert case.forward()[0].isnan()  # a NaN is not lost in a reduction


@each_same
@pytest.mark.parametrize("loss", LOSSES)
def test_the_largest_numbers(backend, loss, dtypes):
    """±max gives log-probabilities of -2 max, which overflow in float16, but no NaN."""
    largest = 65504.0 if dtypes[0] == FLOAT16 else 1e30
    rows = [[largest, -largest, 0.0, 1.0], [-largest] * 4, [largest] * 4, [0.0, 1.0, largest, 2.0]]
    labels = loss in LABEL_LOSSES
    case = logits_case(
        backend, rows, [0, 1, 2, 2] if labels else [[0.25, 0.5, 0.0, 0.25]] * 4, loss,
        dtype=dtypes[0], target_form="labels" if labels else "probs",
    )  # fmt: skip
    loss_value, lse, entropy, accuracy, *_ = case.forward()
    rows_truth, expected, _ = case.truth(torch.ones_like(case.grad_output))
    assert not loss_value.isnan().any()
    torch.testing.assert_close(
        loss_value, rows_truth.loss.to(loss_value.dtype), rtol=1e-2, atol=1e-6
    )
    if case.has_extras:
        for got, true in ((lse, rows_truth.lse), (entropy, rows_truth.entropy)):
            torch.testing.assert_close(got, true.to(got.dtype), rtol=1e-6, atol=1e-6)
    if labels:
        hard(case, accuracy, [1.0, 1.0, 1.0, 1.0])
    case.grad_output = torch.ones_like(case.grad_output)
    grad, _ = by_loss(case)
    finite = expected.isfinite()
    assert grad[finite].isfinite().all()
    torch.testing.assert_close(grad[finite], expected[finite].to(grad.dtype), rtol=1e-2, atol=1e-6)


@each_same
def test_zero_probabilities(backend, dtypes):
    """0 log 0 is 0: classes with probability 0 in one distribution, or in both."""
    inf, dtype = math.inf, dtypes[0]
    p, q = [0.875, 0.125, 0.0, 0.0], [0.5, 0.25, 0.25, 0.0]

    def kl(p, q):
        return sum(a * math.log(a / b) if b else inf for a, b in zip(p, q, strict=True) if a)

    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    values = {
        "kl": kl(p, q),
        "soft_cross_entropy": 0.875 * math.log(2) + 0.125 * math.log(4),
        "l1_distribution": 0.75,
        "total_variation": 0.375,
        "reverse_kl": inf,
        "jensen_shannon": 0.5 * (kl(p, middle) + kl(q, middle)),
        "cross_entropy": 0.875 * math.log(2) + 0.125 * math.log(4),
    }

    def numbers(form, probs):
        if form == "probs":
            return probs
        return [math.log(v) if v else -inf for v in probs]

    for (loss, value), form, target_form in itertools.product(values.items(), FORMS, FORMS):
        if loss == "cross_entropy" and (target_form != "probs" or form == "probs"):
            continue
        rows, target = numbers(form, q), numbers(target_form, p)
        for repeat in (0, 60):
            more = numbers(form, [0.0])
            case = logits_case(backend, [rows + more * repeat], [0], loss, dtype=dtype, form=form)
            case.target_form = target_form
            more = numbers(target_form, [0.0])
            target_row = torch.tensor([target + more * repeat], dtype=FLOAT64)
            case.target = target_row.to(backend.device, dtype)
            got, *_ = case.forward([False] * 5)
            eps = torch.finfo(dtype).eps
            hard(case, got, [value], rtol=4 * eps + 1e-6 * (dtype != FLOAT64), atol=2 * eps)
            if loss in ("reverse_kl", "jensen_shannon"):
                continue  # their slope is infinite there
            grad, _ = by_loss(case, [True, False])
            _, expected, _ = case.truth(case.grad_output)
            assert grad.isfinite().all(), (loss, form, target_form)
            torch.testing.assert_close(
                grad, expected.to(dtype), rtol=4 * eps, atol=4 * eps, msg=f"{loss} {form}"
            )


# For a class with probability 0 in both: the derivatives with respect to q and p.
AT_NOTHING = {
    "kl": (0.0, -math.inf),
    "reverse_kl": (-math.inf, 0.0),
    "jensen_shannon": (0.5 * math.log(2), 0.5 * math.log(2)),
    "l1_distribution": (0.0, 0.0),
    "total_variation": (0.0, 0.0),
    "soft_cross_entropy": (0.0, math.inf),
}


@each_same
@pytest.mark.parametrize("loss", DIVERGENCES)
def test_derivatives_by_probabilities_of_nothing(backend, loss, dtypes):
    for classes in (3, 200):
        rest = [0.0] * (classes - 2)
        case = logits_case(
            backend, [[0.5, 0.5, *rest]], [[0.25, 0.75, *rest]], loss, dtype=dtypes[0],
            form="probs", target_form="probs",
        )  # fmt: skip
        case.grad_output = torch.ones_like(case.grad_output)
        for found, right in zip(
            by_loss(case, [True, True]), AT_NOTHING[loss],
            strict=True,
        ):  # fmt: skip
            hard(case, found[0, 2:], [right] * (classes - 2), rtol=4e-3)


@each_same
@pytest.mark.parametrize("loss", DIVERGENCES)
def test_classes_that_underflow(backend, loss, dtypes):
    """Probabilities that underflow in both distributions or in one, or are the smallest number."""
    least = -103.5 if dtypes[0] == FLOAT32 else -745.0 if dtypes[0] == FLOAT64 else -100.0
    rows = [[0.0, -1.0, 2 * least], [0.0, -1.0, 2 * least], [0.5, 0.0, least]]
    others = [[0.0, 1.0, 3 * least], [0.0, 1.0, 0.5 * least], [1.0, 0.0, least]]
    case = logits_case(backend, rows, others, loss, dtype=dtypes[0], target_form="logits")
    value, *_ = case.forward([False] * 5)
    rows_truth, by_input, by_target = case.truth(torch.ones_like(case.grad_output))
    case.grad_output = torch.ones_like(case.grad_output)
    found = by_loss(case, [True, True])
    close = {"rtol": max(1e-5, 4 * torch.finfo(dtypes[0]).eps), "atol": 1e-6}
    for got, true in zip((value, *found), (rows_truth.loss, by_input, by_target), strict=True):
        torch.testing.assert_close(got, true.to(got.dtype), **close)


@each_same
def test_a_one_hot_target_has_a_gradient(backend, dtypes):
    """The gradient is -w log q, also for probabilities that are 0."""
    case = Case(
        backend, (6,), 30, dtypes=dtypes, target_form="probs", reduction="sum", weighted=True
    ).to_device()  # fmt: skip
    hot = torch.nn.functional.one_hot(case.target.argmax(1), 30)
    case.target = hot.to(case.target.dtype)
    weight = case.class_weight.double()
    expected = -weight * case.input.double().log_softmax(1)
    grad_target = case.forward([False, False, False, False, True])[6]
    case.compare("grad_target", grad_target, expected, 8 * weight)
    expected = expected * case.grad_output.double()
    again = by_loss(case, [False, True])[1]
    case.compare("grad_target", again, expected, 8 * weight * case.grad_output.double().abs())


@each_same
def test_equal_distributions_diverge_by_nothing(backend, dtypes):
    for loss in ("kl", "reverse_kl", "jensen_shannon", "l1_distribution", "total_variation"):
        for form, dim in itertools.product(FORMS, (0, 1)):
            case = Case(
                backend, (5,), 40, loss, dim=dim, dtypes=dtypes, form=form, target_form=form
            ).to_device()  # fmt: skip
            case.target = case.input.clone()
            loss_value, *_, grad, _ = case.forward([False, False, False, True, True])
            eps = torch.finfo(FLOAT64 if dtypes[0] == FLOAT64 else FLOAT32).eps
            assert abs(loss_value.item()) <= 4 * eps, (loss, form)
            if form == "logits" and loss not in ("l1_distribution", "total_variation"):
                assert (grad.abs() <= 4 * eps).all()


@each_same
@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "poly", "kl"])
def test_ignored_rows_may_hold_anything(backend, loss, dtypes):
    """Their gradient is 0 in the fused pass, the recomputed one and the in-place one."""
    nan, inf = math.nan, math.inf
    rows = [[nan] * 40, [inf] * 40, [-inf] * 40, [0.25] * 40, [nan, 1.0] * 20]
    for reduction in ("mean", "none"):
        case = logits_case(
            backend, rows, [-100, -100, -100, 3, -100], loss, dtype=dtypes[0], reduction=reduction,
        )  # fmt: skip
        loss_value, _, _, accuracy, denominator, grad, _ = case.forward(
            [False, False, case.has_extras, reduction == "mean", False]
        )
        assert loss_value.isfinite().all()
        if case.has_extras:
            hard(case, accuracy, [0.0, 0.0, 0.0, 1.0, 0.0])
        if reduction == "mean":
            assert denominator.item() == 1
            assert (grad[[0, 1, 2, 4]] == 0).all()
            assert grad[3].isfinite().all()
            assert (grad[3] != 0).any()
            memory = case.input.clone()
            case.forward_(memory)
            assert torch.equal(memory, grad)
        again, _ = by_loss(case)
        assert (again[[0, 1, 2, 4]] == 0).all()
        assert (again[3] != 0).any()


@each_same
@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "kl"])
def test_nothing_counts(backend, loss, dtypes):
    for rows in (0, 1, 5):
        for reduction, one_if_none, expected in (
            ("mean", False, math.nan), ("mean", True, 0.0), ("sum", False, 0.0),
        ):  # fmt: skip
            case = Case(
                backend, (rows,), 9, loss, dtypes=dtypes, reduction=reduction,
                one_if_none=one_if_none, ignored=1.0, weighted=loss != "kl",
            ).to_device()  # fmt: skip
            case.target = torch.full_like(case.target, -100)
            extras = [case.has_extras] * 3
            got, *_, denominator, grad, _ = case.forward([*extras, True, False])
            hard(case, got, expected)
            if reduction == "mean":
                assert denominator.item() == one_if_none
            assert grad.shape == case.input.shape
            if one_if_none or reduction == "sum":
                assert (grad == 0).all()
                assert (by_loss(case)[0] == 0).all()


def test_no_rows_of_other_targets(backend):
    for shape, dim in (((0, 5), 1), ((5, 0), 0), ((3, 0, 4), 2)):
        x = torch.empty(shape, device=backend.device)
        for keep_dims in range(dim + 1):
            kept = (x.shape[:dim] + x.shape[dim + 1 :])[:keep_dims]
            for reduction, expected in (("mean", math.nan), ("sum", 0.0)):
                loss, *_ = backend.ops.softmax_forward(
                    x, x, None, None, "kl", dim, "logits", "logits", [1.0, 0, 0, 0, 0, 0], -100,
                    False, reduction, keep_dims, FLOAT32, [False] * 5,
                )  # fmt: skip
                full = torch.full(kept, expected, device=backend.device)
                torch.testing.assert_close(loss, full, equal_nan=True)


@pytest.mark.parametrize("labels", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_labels_out_of_range(backend, labels, reduction):
    """Never used as an index. Raises an IndexError on the CPU; elsewhere NaN with gradient 0."""
    bads = [5, 200] if labels == torch.uint8 else [5, -1, -99, 2**31 - 1, -(2**31)]
    if labels == torch.int64:
        bads += [2**62, -(2**62), 2**32]
    for bad, classes in itertools.product(bads, (5, 40)):
        if 0 <= bad < classes:
            continue
        case = Case(backend, (6,), classes, labels=labels, reduction=reduction, weighted=True)
        case.to_device()
        case.target[2] = bad
        if backend.raises_index_errors:
            calls = [case.forward]
            if reduction == "mean":
                calls.append(lambda c=case: c.forward_(c.input.clone()))
            for call in calls:
                with pytest.raises(IndexError, match=f"^Target {bad} is out of bounds.$"):
                    call()
            continue
        loss, _, _, accuracy, _, grad, _ = case.forward(
            [False, False, True, reduction == "mean", False]
        )
        assert (loss[2] if reduction == "none" else loss).isnan()
        assert accuracy[2] == 0
        again, _ = by_loss(case)
        for tensor in (again, grad) if reduction == "mean" else (again,):
            assert (tensor[2] == 0).all()
            assert tensor.isfinite().all()
            assert (tensor[[0, 1, 3, 4, 5]] != 0).any(1).all()


@pytest.mark.parametrize("classes", [5, 40, 1030])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "poly", *DIVERGENCES])
def test_a_large_offset_costs_no_digits(backend, loss, dim, classes):
    """Softmax is invariant under x + c, which is exact here. A log-sum-exp of 16384 is rounded to
    0.001, so neither log-probabilities nor the entropy may be computed from it."""
    for target_form in {"labels" if loss in LABEL_LOSSES else "logits", "probs"}:
        if loss in ("focal", "poly") and target_form == "probs":
            continue
        case = Case(
            backend, (3,), classes, loss, dim=dim, reduction="none", target_form=target_form,
            smoothing=0.1 * (loss == "cross_entropy"),
        ).to_device()  # fmt: skip
        case.input = (case.input * 64).round() / 64
        errors, extras = Errors(case), [case.has_extras] * 2
        near = case.forward([*extras, False, False, False])
        near_gradients = case.backward(grad_lse=None)
        case.input = case.input + 2.0**14
        far = case.forward([*extras, False, False, False])
        case.compare("loss", far[0], near[0].double(), errors.loss())
        if case.has_extras:
            case.compare("entropy", far[2], near[2].double(), errors.entropy)
        allowed = errors.gradients(case.grad_output, None, case.grad_entropy)
        expected = [None if g is None else g.double() for g in near_gradients]
        case.compare_gradients(case.backward(grad_lse=None), expected, allowed)


def test_a_certain_label(backend):
    """Focal and poly where p is 1 to the last digit, and where it is 0."""
    rows = [[60.0, 0.0], [0.0, 60.0], [200.0, 0.0], [0.0, 200.0], [1e-3, 0.0]]
    for loss in LABEL_LOSSES:
        for dtype in (FLOAT32, FLOAT64):
            case = logits_case(backend, rows, [0] * 5, loss, dtype=dtype)
            truth, expected, _ = case.truth(case.grad_output)
            got, *_ = case.forward([False] * 5)
            grad, _ = by_loss(case)
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(got.double(), truth.loss, rtol=16 * eps, atol=4 * eps)
            torch.testing.assert_close(grad.double(), expected, rtol=16 * eps, atol=4 * eps)


def test_focal_with_gamma_zero_is_cross_entropy(backend):
    case = Case(backend, (7,), 20, "focal").to_device()
    params = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    results = []
    for loss in ("focal", "cross_entropy"):
        call = (loss, 1, "logits", "labels", params, -100, False, "none", 0)
        results.append(
            backend.ops.softmax_backward(
                torch.ones(7, device=backend.device), None, None, case.input, *case.read, *call,
                [True, False],
            )[0]
        )  # fmt: skip
    torch.testing.assert_close(*results)
