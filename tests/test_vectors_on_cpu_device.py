"""The CUDA kernels of the vector family, executed on the CPU by tests/cuda_on_cpu: what they move,
and bugs planted in them, which the contract's tests must find."""

from __future__ import annotations

import random
import re

import cuda_on_cpu
import planting
import pytest
import torch
from raw_ops import FLOAT32, FLOAT64, Backend
from test_raw_vectors import LAYOUTS, VECTORS, certain

# The others keep their places in the list.
FEWER = [("losses/vectors.h", r",\s*MultiMarginSquared,\s*TverskyOfLogits,\s*Tversky>;", ">;")]


@pytest.mark.parametrize("loss", VECTORS)
@pytest.mark.parametrize(("length", "lanes"), [(1000, 32), (5000, 256)])
def test_bytes_that_are_moved(loss, length, lanes):
    """Each vector twice, the second time out of the cache; each gradient once."""
    rows, count = 6, VECTORS[loss]
    case = certain(Backend(cuda_on_cpu.ops()), loss, rows, length, FLOAT32)
    mask = [i < count for i in range(3)]
    cuda_on_cpu.device().traffic()
    torch.ops.lossops_cuda_on_cpu.vectors_forward(*case.call(), FLOAT32, mask)
    read, written = cuda_on_cpu.device().traffic()
    size = 4 * count * rows * length
    # Each lane reads what the row has once, its label say: all at one address.
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
        tmp_path, "vectors.cu", "namespace", "namespace", FEWER, planting.untouched("vectors.cu")
    )
    run = planting.examine(library, seed, "test_vectors_on_cpu_device", "examine")
    assert run.returncode == 0, run.stderr[-1500:]
    assert "passed" in run.stdout


WRONG = r"times the bound|depends on the order|unwritten"
OWN = "if (kHasOwn<Loss> && i + v == own_) "
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


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug, tmp_path, seed):
    old, new, finding = PLANTED[bug]
    library = planting.plant(
        tmp_path, "vectors.cu", old, new, FEWER, planting.untouched("vectors.cu")
    )
    run = planting.examine(library, seed, "test_vectors_on_cpu_device", "examine")
    assert run.returncode != 0
    assert re.search(finding, run.stderr[-1500:]), run.stderr[-1500:]
