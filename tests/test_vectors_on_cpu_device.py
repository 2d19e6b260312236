"""The CUDA kernels of the vector family, executed on the CPU by tests/cuda_on_cpu: the bytes they
move, and planted bugs, which the tests of the contract must find."""

from __future__ import annotations

import random

import cuda_on_cpu
import planting
import pytest
import torch
from raw_ops import FLOAT32, FLOAT64, Backend
from raw_vectors import (
    LABELS,
    LAYOUTS,
    VECTORS,
    certain,
    check_a_label_out_of_range,
    check_a_label_that_is_listed_twice,
)  # fmt: skip

# The remaining losses keep their positions in the list.
UNUSED = r",\s*MultiMarginSquared,\s*TverskyOfLogits,\s*Tversky,\s*MultilabelMargin>;"
FEWER_TYPES = [
    ("cuda/common/memory.cuh", rf"operator\(\)<{half}>", "operator()<float>")
    for half in ("__half", "__nv_bfloat16")
]
FEWER = [("losses/vectors.h", UNUSED, ">;"), *FEWER_TYPES]


@pytest.mark.parametrize("loss", [loss for loss in VECTORS if LABELS[loss] != "list"])
@pytest.mark.parametrize(("length", "lanes"), [(1000, 32), (5000, 256)])
def test_bytes_that_are_moved(loss, length, lanes):
    """Each vector is read twice, the second time from the cache. Each gradient is written once."""
    rows, count = 6, VECTORS[loss]
    case = certain(Backend(cuda_on_cpu.ops()), loss, rows, length, FLOAT32)
    mask = [i < count for i in range(3)]
    cuda_on_cpu.device().traffic()
    torch.ops.lossops_cuda_on_cpu.vectors_forward(*case.call(), FLOAT32, mask)
    read, written = cuda_on_cpu.device().traffic()
    size = 4 * count * rows * length
    # Each lane reads the values that a row has once, such as its label, all at one address.
    assert 2 * size <= read <= 2 * size + 16 * lanes * rows
    assert size <= written <= size + 8 * rows


def examine():
    backend = Backend(cuda_on_cpu.ops())
    for loss in ("cosine_embedding", "multi_margin"):
        for length in (1, 4, 7, 33, 127, 600, 4100):
            for reduction in ("mean", "none"):
                dtype = random.choice([FLOAT32, FLOAT64])
                rows = 300 if length < 5 else 19
                certain(backend, loss, rows, length, dtype, reduction, LAYOUTS, True).check()


def test_the_examination_passes_what_is_right(tmp_path, seed):
    library = planting.plant(
        tmp_path,
        "vectors/engine.cu",
        "namespace",
        "namespace",
        FEWER,
        planting.untouched("vectors/engine.cu"),
    )
    run = planting.examine(library, seed, "test_vectors_on_cpu_device", "examine")
    assert run.returncode == 0, run.stderr[-1500:]
    assert "passed" in run.stdout


WRONG = r"should be|depends on the order|unwritten"
OWN = "if (kHasIndex<Loss> && i + v == own_) "
PLANTED = {
    "an element beyond the row": ("i >= 0 && i < length_", "i >= 0 && i <= length_", "."),
    "an element before the row": ("i >= 0 && i < length_", "i < length_", "."),
    "a vector beyond the row": ("i + N <= length_ &&", "i < length_ &&", "."),
    "vectors off their boundary": ("% 16 == 0;", "% 16 < 16;", "."),
    "the own score counts": (OWN + "continue;", "", WRONG),
    "the own score has no derivative": (OWN + "grad[0] =", OWN + "(void)", WRONG),
    "sums of one lane": ("team_.reduce(Sums<double>{}, sums);", "", WRONG),
    "a step too long": ("int64_t(team_.width()) * N;", "int64_t(team_.width() + 1) * N;", "."),
    "rows that nobody takes": ("r += step", "r += 2 * step", "."),
    "a weight that is forgotten": ("r_, value * weight)", "r_, value)", WRONG),
    "every lane writes the loss": (" && team_.index() == 0", "", "."),
    "grad_output of the first row": ("r * numbers.outer_stride);", "0);", WRONG),
    "another label's score": ("vector(0).at(own_)", "vector(0).at(0)", WRONG),
}  # fmt: skip


def examine_lists():
    backend = Backend(cuda_on_cpu.ops())
    for length in (1, 4, 33, 127, 1100):
        for reduction in ("mean", "none"):
            dtype = random.choice([FLOAT32, FLOAT64])
            rows = 150 if length < 5 else 19  # more rows than teams of threads
            certain(
                backend, "multilabel_margin", rows, length, dtype, reduction, LAYOUTS, True
            ).check()
    check_a_label_out_of_range(backend, "multilabel_margin")
    check_a_label_that_is_listed_twice(backend, 1100)


LIST = "int listed[1] = {own < 0 ? index : width};"
PLANTED_IN_LISTS = {
    "a list without end": (LIST, "int listed[1] = {width};", "."),
    "one label less": (LIST, "int listed[1] = {own < 0 ? index : width - 1};", "."),
    "labels of others as well": (" && !marked(c);", ";", WRONG),
    "marks that stay": ("marks_[i] = 0;", "marks_[i] = marks_[i];", "."),
    "marks of another row": ("memory) + team.number() * words", "memory)", "."),
    "leads of another row": ("marks, leads + team.number() * width)", "marks, leads)", "."),
    "no wait before leads": ("      team_.sync();\n      if (own < count_)",
                             "      if (own < count_)", "."),
    "no wait for leads": ("lead(label(own));\n      team_.sync();", "lead(label(own));", "."),
    "no wait for marks": ("    team_.sync();\n    team_.reduce(Sums<int>{}, outside);",
                          "    team_.reduce(Sums<int>{}, outside);", "."),
    "no wait for the row before": ("    team_.sync();  // with those who still read what is of the",
                                   "    // of the", "."),
    "the first labels only": ("begin < count_; begin += width)", "begin < width; begin += width)",
                              "."),
    "a label that counts once": ("static_cast<T>(times[0]) * open[0]", "open[0]", WRONG),
    "hinges of labels": ("if (!marked(c)) Loss::add", "Loss::add", WRONG),
    "written twice": ("if (times[1] > 0) continue;", "", "."),
    "a class beyond the row": ("c < problem_.length && !marked(c)", "!marked(c)", "."),
    "outside of the row": ("return outside[0] == 0;", "return true;", "."),
    "a derivative of the mean": ("share * problem_.scale * weight", "share * weight", WRONG),
}  # fmt: skip


def check_that_it_is_found(bug, file, old, new, finding, *where, **examination):
    planting.check_that_it_is_found(
        bug, (file, old, new), finding, *where, "test_vectors_on_cpu_device",
        others=planting.untouched(file), **examination,
    )  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED_IN_LISTS)
def test_a_bug_planted_in_lists_is_found(bug, tmp_path, seed):
    where = "vectors/label_lists.cu", *PLANTED_IN_LISTS[bug], tmp_path, seed
    check_that_it_is_found(bug, *where, function="examine_lists", fewer=FEWER_TYPES)


def test_lists_that_are_right_pass(seed):
    library = cuda_on_cpu.build.kernels()
    run = planting.examine(library, seed, "test_vectors_on_cpu_device", "examine_lists")
    assert run.returncode == 0, run.stderr[-1500:]


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug, tmp_path, seed):
    check_that_it_is_found(bug, "vectors/engine.cu", *PLANTED[bug], tmp_path, seed, fewer=FEWER)
