"""The CUDA kernels of the softmax family, executed on the CPU by tests/cuda_on_cpu, at all sizes
that matter to them, and checks that errors in the kernels would be found."""

import os
import random

import cuda_on_cpu
import planting
import pytest
import torch
from raw_ops import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, Backend
from raw_softmax import Case, Errors

# Around a vector of 4 and 8, the lanes of a part of a warp and of a warp with 1, 2, 4 and 8 vectors
# each, the first row of a block, and the steps of a block.
EDGES = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3072)
SIZES = sorted({n + d for n in EDGES for d in (-1, 0, 1)} | {1, 2, 1000, 4104, 6144, 9000})
SAME = [(dtype, dtype) for dtype in (FLOAT32, BFLOAT16, FLOAT16)]
PAIRS = {  # pairs that have kernels of their own
    "kl": ("logits", "logits"), "jensen_shannon": ("logits", "logits"),
    "log_kl": ("log_probs", "probs"), "cross_entropy": ("logits", "probs"),
}  # fmt: skip


@pytest.fixture(scope="module")
def backend():
    return Backend(cuda_on_cpu.ops())


def pair(backend, rows, classes, name, **options):
    form, target_form = PAIRS[name]
    loss = name.removeprefix("log_")
    return Case(backend, rows, classes, loss, form=form, target_form=target_form, **options)


@pytest.mark.parametrize("dtypes", SAME, ids=lambda d: str(d[0]).removeprefix("torch."))
@pytest.mark.parametrize("classes", SIZES)
def test_sizes(backend, classes, dtypes):
    for rows in ((1,), (random.randint(2, 9),)):
        reduction = random.choice(("none", "mean"))
        plain = Case(
            backend, rows, classes, dtypes=dtypes, reduction=reduction, ignored=0.2,
            weighted=random.random() < 0.5, one_if_none=True,
        )  # fmt: skip
        plain.grad_lse = plain.grad_entropy = None
        check_step(plain)
        name = random.choice(list(PAIRS))
        pair(backend, rows, classes, name, dtypes=dtypes, reduction=reduction).check()
    options = {"softcap": 5.0, "smoothing": 0.1, "z_loss": 1e-3, "temperature": 1.5}
    chosen = {name: options[name] for name in random.sample(list(options), 2)}
    Case(backend, (3,), classes, dtypes=dtypes, **chosen).check()


def check_step(case):
    """The passes of training with labels only, in the plain kernels."""
    case.to_device()
    one = torch.ones_like(case.grad_output)
    rows, grad, _ = case.truth(one)
    errors = Errors(case)
    loss, *_, got, _ = case.forward([True, False, True, case.scalar, False])
    case.compare("loss", loss, rows.loss, errors.loss())
    if case.scalar:
        case.compare("grad", got, grad, errors.gradients(one, None, None)[0])
    _, grad, _ = case.truth(case.grad_output)
    case.compare(
        "grad", case.backward()[0], grad, errors.gradients(case.grad_output, None, None)[0]
    )


@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32, BFLOAT16])
@pytest.mark.parametrize("classes", [1, 3, 19, 33, 255, 257, 1023, 1025, 2500])
def test_sizes_of_the_general_kernel(backend, classes, dtype):
    """Classes before the rows, and classes last with mixed dtypes or float64."""
    for dim in (0, 1):
        other = FLOAT32 if dtype == BFLOAT16 else dtype
        Case(backend, (random.choice((1, 5, 260)),), classes, dim=0, dtypes=(dtype, dtype)).check()
        Case(
            backend, (7,), classes, "kl", dim=dim, dtypes=(dtype, other), target_form="logits"
        ).check()


@pytest.mark.parametrize("rows", [(3, 1), (40, 1), (3, 40), (5, 300)])
@pytest.mark.parametrize("classes", [10, 1000, 5000])
def test_groups(backend, rows, classes):
    if rows == (5, 300) and classes > 10:
        rows = (5, 30)
    Case(backend, rows, classes, reduction="mean", keep_dims=1, ignored=0.1).check()
    dtypes = (BFLOAT16, BFLOAT16)
    pair(backend, rows, classes, "kl", dtypes=dtypes, reduction="sum", keep_dims=1).check()


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("classes", [1000, 8192])
def test_bytes_moved(dtype, classes):
    """A step with labels reads and writes a row once. A step with two distributions reads both."""
    device, ops = cuda_on_cpu.device(), getattr(torch.ops, cuda_on_cpu.NAMESPACE)
    backend = Backend(ops)
    cuda_on_cpu.ops()
    rows = 9
    size = rows * classes * dtype.itemsize
    case = Case(backend, (rows,), classes, dtypes=(dtype, dtype))
    device.traffic()
    case.forward([True, False, True, True, False])
    read, written = device.traffic()
    few = 8192  # labels, partial sums, tickets, and what the lanes read of each row
    assert size <= read < size + few
    assert size <= written < size + few
    case.forward([False] * 5)
    read, written = device.traffic()
    assert size <= read < size + few
    assert 0 < written < few
    for name in PAIRS:
        case = pair(backend, (rows,), classes, name, dtypes=(dtype, dtype))
        case.forward([False, False, False, True, False])
        read, written = device.traffic()
        assert 2 * size <= read < 2 * size + few, name
        assert size <= written < size + few, name


def test_rows_that_do_not_count_are_not_read():
    device, ops = cuda_on_cpu.device(), getattr(torch.ops, cuda_on_cpu.NAMESPACE)
    cuda_on_cpu.ops()
    case = Case(Backend(ops), (8,), 4096)
    case.target[:] = case.options["ignore_index"]
    case.input[:] = float("nan")
    device.traffic()
    *_, grad, _ = case.forward([False, False, True, True, False])
    read, _ = device.traffic()
    assert read < 8192
    assert torch.equal(grad, torch.zeros_like(grad))


def test_log_probabilities_of_labels_are_read_one_by_one():
    device, ops = cuda_on_cpu.device(), getattr(torch.ops, cuda_on_cpu.NAMESPACE)
    cuda_on_cpu.ops()
    case = Case(Backend(ops), (8,), 4096, form="log_probs")
    device.traffic()
    case.forward([False, False, False, True, False])
    read, written = device.traffic()
    assert read < 8192
    assert written >= 8 * 4096 * 4


# ---------------------------------------------------------------------------------------------
# A short run through all kernels, on several kinds of devices, and on kernels with planted bugs.


def examine() -> None:
    backend = Backend(cuda_on_cpu.ops())
    for dtype, sizes in ((FLOAT32, (3, 30, 1000, 1030, 4100)), (BFLOAT16, (9, 1000, 2100, 8200))):
        for classes in sizes:
            for rows in ((1,), (5,)):
                case = Case(
                    backend, rows, classes, dtypes=(dtype, dtype), ignored=0.2, one_if_none=True
                )
                case.grad_lse = case.grad_entropy = None
                check_step(case)
                pair(backend, rows, classes, "kl", dtypes=(dtype, dtype)).check()
            Case(backend, (2,), classes, dtypes=(dtype, dtype), softcap=3.0, smoothing=0.1).check()
    for dtype in (FLOAT32, BFLOAT16):  # the input is not aligned, but the gradients are
        case = Case(backend, (3,), 101, dtypes=(dtype, dtype))
        case.input = torch.cat([case.input[:, :1], case.input], 1)[:, 1:]
        case.check()
    Case(backend, (5000,), 3, weighted=True, ignored=0.3).check()  # over several blocks
    Case(backend, (300,), 9, dim=0).check()
    Case(backend, (7,), 70, "kl", dtypes=(FLOAT32, FLOAT16), target_form="logits").check()
    Case(backend, (3, 20), 100, keep_dims=1).check()
    for classes, form in ((50, "logits"), (3000, "logits"), (3000, "log_probs")):
        case = Case(backend, (6,), classes, form=form)
        grad = case.forward([False, False, False, True, False])[5]
        memory = case.input.clone()
        case.forward_(memory)
        assert torch.equal(memory, grad), "in place should be the same"
        case = Case(backend, (6,), classes, form=form)
        case.target[3] = classes
        loss, *_, grad, _ = case.forward([False, False, False, True, False])
        assert loss.isnan(), "a label outside should be NaN"
        assert not grad[3].any(), "its gradient should be 0"


DEVICES = {
    "usual": {},
    "old": {"LOSSOPS_TEST_COMPILED": "80"},  # this, or a newer one that has code for it
    "small": {"LOSSOPS_TEST_COMPILED": "80", "LOSSOPS_TEST_SHARED": "12288"},
    "clusters": {"LOSSOPS_TEST_SHARED": "12288"},
    "large": {"LOSSOPS_TEST_MULTIPROCESSORS": "16"},
}


@pytest.mark.parametrize("kind", DEVICES)
def test_devices(kind, seed):
    cuda_on_cpu.ops()
    library = os.environ.get("LOSSOPS_TEST_CUDA_LIBRARY") or cuda_on_cpu.build.kernels()
    run = planting.examine(library, seed, "test_softmax_on_cpu_device", "examine", **DEVICES[kind])
    assert run.stdout.strip() == "passed", run.stderr


RACE, UNWRITTEN, OUTSIDE = "a race: this", "nothing has been written yet", "outside of every tensor"
NUMBERS = "should be|the result depends"
TEAM, PACKS, ROW = "common/team.cuh", "softmax/packs.cuh", "softmax/row.cuh"
CELLS, LABELS, PLAN = "softmax/cells.cuh", "softmax/losses.cuh", "softmax/engine.cu"
PAIRS_OF, CLUSTERS = "softmax/divergences.cuh", "clusters"

PLANTED = {
    "no barrier before the warps' numbers are read": (
        TEAM, "      __syncthreads();\n      how.clear", "      how.clear", f"{UNWRITTEN}|{RACE}"),
    "the same memory for one reduction and the next": (TEAM, "turn_ ^= 1;", "", RACE),
    "no barrier of the cluster before its numbers are read": (
        TEAM, "    cluster.sync();\n    const int lane", "    __syncthreads();\n    const int lane",
        f"{UNWRITTEN}|{RACE}", CLUSTERS),
    "a block that leaves its cluster": (
        TEAM, "if (cluster_ > 1) sync();", "", "of a block that (has|may have) ended", CLUSTERS),
    "a shuffle too few": (
        TEAM, "{\n    for (int distance = width / 2;", "{\n    for (int distance = width / 4;",
        NUMBERS),
    "a maximum of some lanes": (
        TEAM, "{\n        const T other",
        "{\n        if (distance == 1) break;\n        const T other",
        NUMBERS),
    "a mask of too few lanes": (
        TEAM, "(1u << width) - 1)", "(1u << (width - 1)) - 1)", "its own mask leaves out"),
    "a warp that is not there": (
        TEAM, "if (lane < static_cast<int>(blockDim.x) / kWarp)", "", UNWRITTEN),
    "a vector beyond the row": (
        PACKS, "c + N <= classes_) return Numbers::load", "c <= classes_) return Numbers::load",
        f"{OUTSIDE}|{NUMBERS}"),
    "a number beyond the row": (
        PACKS, "if (c + v >= 0 && c + v < classes_) first_", "if (c + v >= 0) first_",
        f"{OUTSIDE}|{RACE}"),
    "a number before the row": (
        PACKS, "if (c + v >= 0 && c + v < classes_) numbers", "if (c + v < classes_) numbers",
        f"{OUTSIDE}|{NUMBERS}"),
    "numbers where there are none": (PACKS, "numbers[v] = beyond;", "numbers[v] = S{};", NUMBERS),
    "vectors off their boundary": (
        PACKS, "vectors_(shift_of(first) == shift)", "vectors_(shift >= 0)", "a misaligned access"),
    "everything is kept, room or not": (
        PACKS, "if (i + u < kept_) keep", "keep", OUTSIDE, "small"),
    "kept in another's place": (
        PACKS, "x_[i * blockDim.x] = x;", "x_[0] = x;", f"{UNWRITTEN}|{NUMBERS}"),
    "steps that nobody takes": (
        PACKS, "k += kUnder * width, i += kUnder", "k += 2 * kUnder * width, i += 2 * kUnder",
        f"{UNWRITTEN}|{NUMBERS}"),
    "a tile whose halves overlap": (
        CELLS, "step * numbers * blockDim.x", "step * blockDim.x", f"{UNWRITTEN}|{NUMBERS}|{RACE}"),
    "rows that nobody takes": (ROW, "r < end; r += step", "r < end; r += 2 * step", "unwritten"),
    "a row for two": (
        ROW, "int64_t(split) * team.per_block() + team.number()",
        "int64_t(split) * team.per_block()", f"{RACE}|unwritten"),
    "a label outside is an index": (
        ROW, "row.label >= 0 && row.label < p.classes &&", "row.label >= 0 &&",
        f"{OUTSIDE}|{NUMBERS}"),
    "the last of a vector is no label": (
        LABELS, "row.label - c < N)", "row.label - c < N - 1 + (N == 1))", NUMBERS),
    "written before the label's score is read": (
        LABELS, "if (!reads || team.width() <= kWarp) team.sync();", "", RACE),
    "a gradient without its sum": (PAIRS_OF, "dx[v] -= q * by_all;", "", NUMBERS),
    "every block counts for itself": (
        PLAN, "if (sum_group(schedule, group, split, sum))", "if (threadIdx.x == 0)",
        f"{RACE}|{NUMBERS}"),
    "labels beyond a group": (
        PLAN, "         r < end; r += step", "         r <= end; r += step",
        f"{OUTSIDE}|{NUMBERS}"),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug, tmp_path, seed):
    *change, finding, kind = PLANTED[bug] if len(PLANTED[bug]) == 5 else (*PLANTED[bug], "usual")
    others = "softmax/thread_double.cu", "vectors/engine.cu", "vectors/label_lists.cu"
    planting.check_that_it_is_found(
        bug, change, finding, tmp_path, seed, "test_softmax_on_cpu_device",
        fewer=planting.FEWER_SOFTMAX, others={*planting.untouched(change[0]), *others},
        **DEVICES[kind],
    )  # fmt: skip
