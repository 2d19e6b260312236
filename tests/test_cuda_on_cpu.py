"""The CUDA kernels, executed on the CPU by tests/cuda_on_cpu, at all sizes that matter to them, and
checks that errors in the kernels would be found."""

import ctypes
import random
from pathlib import Path

import cuda_on_cpu
import planting
import pytest
import torch
from cuda_on_cpu import build
from raw_ops import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    LOSSES,
    NO_GRADIENTS,
    Backend,
    Case,
    each_pair,
)  # fmt: skip

# Kernels that no check here runs. Planted bugs reuse their compiled objects.
OTHER_FAMILIES = [
    f"{path.parent.name}/{path.name}"
    for path in Path(planting.ROOT, "csrc", "cuda").glob("*/*.cu")
    if path.parent.name != "elementwise"
]

# The pairs of dtypes that the dense kernels are compiled for, and one that only the strided ones
# support.
PAIRS = [
    (FLOAT64, FLOAT64), (FLOAT32, FLOAT32), (BFLOAT16, BFLOAT16), (FLOAT16, FLOAT16),
    (BFLOAT16, FLOAT32), (FLOAT16, FLOAT32), (FLOAT32, BFLOAT16),
]  # fmt: skip

# Around a vector of 2, 4 and 8 elements, a warp, a block, the vectors of a block, the elements that
# justify another block, and the capacity of all blocks of this device in one round.
EDGES = (2, 4, 8, 32, 64, 256, 512, 1024, 2048, 4096)
SIZES = sorted({n + d for n in EDGES for d in (-1, 0, 1)} | {3, 6, 32767, 32769})
GROUPS = (1, 7, 31, 33, 256, 1023, 1024, 1025, 2049, 4097)


@pytest.fixture(scope="module")
def backend():
    return Backend(cuda_on_cpu.ops())


def check_sizes(backend, sizes, dtypes, loss):
    for size in sizes:
        case = Case(backend, (size,), dtypes, loss, "mean").to_device()
        value, gradients = case.truth()
        value_size, *_, sizes = case.magnitudes()
        got, grad, *_ = case.forward([True, False, False])  # the pass `step`
        case.compare(got, value, value_size)
        g = case.grad_output.double()
        case.compare(grad, gradients[0] / g, sizes[0] / g.abs())
        case.compare(case.forward(NO_GRADIENTS)[0], value, value_size)  # `value`
        case = Case(backend, (size,), dtypes, loss, "none").to_device()
        value, gradients = case.truth()
        value_size, *_, sizes = case.magnitudes()
        case.compare(case.forward(NO_GRADIENTS)[0], value, value_size)
        case.compare(case.backward([True, False, False])[0], gradients[0], sizes[0])  # `backward`


@each_pair(PAIRS)
@pytest.mark.parametrize("loss", LOSSES)
def test_sizes(backend, loss, dtypes):
    check_sizes(backend, SIZES, dtypes, loss)


@each_pair(PAIRS)
def test_sizes_with_everything(backend, dtypes):
    """Weights, all gradients and second derivatives: the pass `any` and the strided kernels."""
    for size in SIZES:
        loss = random.choice(LOSSES)
        Case(backend, (size,), dtypes, loss, random.choice(("none", "mean")), weighted=True).check()


@each_pair(PAIRS)
def test_groups(backend, dtypes):
    for size in GROUPS:
        for groups in (2, 3, 40 if size < 1000 else 5):
            weighted = random.random() < 0.5
            loss = random.choice(LOSSES)
            Case(backend, (groups, size), dtypes, loss, "mean", 1, weighted=weighted).check()


@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32, BFLOAT16, FLOAT16])
def test_memory_that_is_not_aligned(backend, dtype):
    for shift in (1, 2, 3):
        for which in range(3):
            case = Case(backend, (1000 + shift,), (dtype, dtype), "huber", weighted=True)
            moved = torch.empty(1000 + 2 * shift, dtype=dtype)[shift:].copy_(case.operands[which])
            case.operands[which] = moved
            case.check()
        grad = torch.randn(1000 + shift).to(dtype)[shift:]
        expected = (grad.double() * 0.5).to(dtype)
        backend.ops.elementwise_rescale_([grad], torch.tensor(0.5))
        assert torch.equal(grad, expected)


@pytest.mark.parametrize("size", SIZES)
def test_rescale(backend, size):
    grads = [torch.randn(size).to(dtype) for dtype in (FLOAT64, FLOAT32, BFLOAT16, FLOAT16)]
    factor = torch.tensor(random.uniform(0.3, 3), dtype=FLOAT64)
    expected = []
    for grad in grads:
        compute = FLOAT64 if grad.dtype == FLOAT64 else FLOAT32
        expected.append((grad.to(compute) * factor.to(compute)).to(grad.dtype))
    backend.ops.elementwise_rescale_(grads, factor)
    for got, truth in zip(grads, expected, strict=True):
        assert torch.equal(got, truth)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_bytes_moved(dtype):
    """A training step reads the input and the target once and writes the gradient once."""
    n, device, ops = 20_001, cuda_on_cpu.device(), getattr(torch.ops, cuda_on_cpu.NAMESPACE)
    cuda_on_cpu.ops()
    x, y = torch.randn(2, n).to(dtype)
    y = y.clone()  # aligned to 16 bytes
    bytes, few = n * dtype.itemsize, 4096  # for partial sums and tickets
    call = ("huber", [1.0], "mean", 0)
    device.traffic()
    ops.elementwise_forward(x, y, None, None, *call, FLOAT32, [True, False, False])
    read, written = device.traffic()
    assert 2 * bytes <= read < 2 * bytes + few
    assert bytes <= written < bytes + few
    ops.elementwise_forward(x, y, None, None, *call, FLOAT32, NO_GRADIENTS)
    read, written = device.traffic()
    assert 2 * bytes <= read < 2 * bytes + few
    assert 0 < written < few
    ops.elementwise_rescale_([x], torch.tensor(1.0))
    read, written = device.traffic()
    assert 0 < read <= few * 16  # every thread reads grad_output
    assert written == 0


# ---------------------------------------------------------------------------------------------
# The device detects faults in small kernels, at the marked line.

OBJECTIONS = {
    "no_barrier": "where nothing has been written yet",
    "no_second_barrier": "a race: this",
    "no_warp_barrier": "where nothing has been written yet",
    "barrier_of_some": "not all threads reach a point of synchronization",
    "two_barriers": "threads of a block meet at different barriers",
    "shuffle_of_some": "not all threads reach a point of synchronization",
    "shuffle_from_outside": "a shuffle reads a lane that its mask leaves out",
    "shuffle_without_me": "a lane that its own mask leaves out",
    "read_beyond": "a read of 4 bytes outside of every tensor",
    "write_before": "a write of 4 bytes outside of every tensor",
    "write_input": "a write of 4 bytes to an input",
    "shared_beyond": "outside of every tensor",
    "shared_unwritten": "where nothing has been written yet",
    "output_unwritten": "where nothing has been written yet",
    "misaligned": "a misaligned access",
    "same_place": "a race: this write",
    "read_by_a_warp_only": "a race: this write and an earlier read",
    "read_by_two_warps": "a race: this write and an earlier read",
    "local_beyond": "an index beyond a local array",
    "last_block_no_release": "a race: this read and an earlier write",
    "last_block_no_acquire": "a race: this read and an earlier write",
    "cluster_without_barrier": "a race: this read and an earlier write",
    "cluster_turns_no_barrier": "a race: this",
    "cluster_left": "shared memory of a block that has ended",
}


@pytest.fixture(scope="module")
def faults():
    """Runs a kernel of faults.cu on at least 64 numbers. Returns the error message and the
    numbers."""
    device = build.Device(build.faults())
    library = device.library
    library.run.restype = ctypes.c_char_p

    def run(kernel, blocks=4, threads=64, cluster=1, size=2048, seed=None, written=True):
        numbers = (ctypes.c_int * (size + 8))(*range(-4, size + 4))  # with neighbours that are not
        ticket = ctypes.c_uint(0)  # part of its tensor
        library.cuda_on_cpu_forget()
        inside = ctypes.byref(numbers, 16)
        constant = kernel == "write_input"
        library.cuda_on_cpu_memory(inside, ctypes.c_int64(4 * size), int(written), int(constant))
        library.cuda_on_cpu_memory(ctypes.byref(ticket), ctypes.c_int64(4), 1, 0)
        device.seed(random.getrandbits(60) if seed is None else seed)
        objection = library.run(
            kernel.encode(), inside, ctypes.byref(ticket), blocks, threads, cluster
        )
        return objection.decode(), list(numbers[4:-4])

    return run


@pytest.mark.parametrize("kernel", OBJECTIONS)
def test_a_fault_is_found(faults, kernel):
    options = {
        "blocks": 4 if "block" in kernel or "cluster" in kernel else 1,
        "cluster": 2 if "cluster" in kernel else 1,
        "size": 64 if kernel in ("read_beyond", "write_before") else 2048,
        "written": kernel != "output_unwritten",
    }
    marker = kernel.removesuffix("_no_release").removesuffix("_no_acquire")
    marker = marker.removesuffix("_no_barrier") if kernel.startswith("cluster") else marker
    source = (Path(build.__file__).parent / "faults.cu").read_text().splitlines()
    lines = [i for i, line in enumerate(source, 1) if line.endswith(f"// fault: {marker}")]
    assert len(lines) == 1
    for _ in range(5):
        objection, _ = faults(kernel, **options)
        assert OBJECTIONS[kernel] in objection
        assert f"tests/cuda_on_cpu/faults.cu:{lines[0]}" in objection


def test_dependence_on_the_order_of_blocks_shows(faults):
    results = [faults("order_of_blocks", blocks=4, seed=seed) for seed in range(10)]
    assert all(objection == "" for objection, _ in results)
    assert len({tuple(numbers[:4]) for _, numbers in results}) > 1


def test_what_is_right_passes(faults):
    lanes = list(range(32))
    objection, numbers = faults("shuffles", blocks=1)
    assert objection == ""
    for thread in range(64):
        lane = thread % 32
        assert numbers[8 * thread : 8 * thread + 8] == [
            min(lane + 3, 31) if lane + 3 < 32 else lane,
            lane - 3 if lane >= 3 else lane,
            lane ^ 5,
            7,
            lane + 3 if lane % 8 + 3 < 8 else lane,
            lane // 8 * 8 + 1,
            ctypes.c_int(sum(1 << i for i in lanes if i % 3 == 0)).value,
            2,
        ]
    _, numbers = faults("half_warps", blocks=1)
    assert numbers[:32] == [i ^ 1 if i < 16 else i ^ 2 for i in lanes]
    objection, numbers = faults("reverse", blocks=1)
    assert objection == ""
    assert numbers[:64] == list(range(63, -1, -1))
    objection, numbers = faults("read_by_a_warp", blocks=1)
    assert objection == ""
    assert numbers[:64] == [i // 32 * 32 + i for i in range(64)]
    objection, numbers = faults("neighbours", cluster=4)
    assert objection == ""
    assert numbers[:256] == [(i // 64 + 1) % 4 * 100 + i % 64 for i in range(256)]
    objection, numbers = faults("cluster_turns", cluster=4)
    assert (objection, numbers[:256]) == ("", [6] * 256)
    objection, numbers = faults("count")
    assert (objection, sorted(numbers[:4])) == ("", [0, 0, 0, 1])
    objection, numbers = faults("last_block")
    assert (objection, numbers[:4]) == ("", [1, 2, 3, 4])


def test_limits_of_a_launch(faults):
    assert "over 1024 threads" in faults("same_place", threads=1025)[0]
    assert "over 16 blocks" in faults("neighbours", blocks=32, cluster=32)[0]
    assert "clusters do not divide" in faults("neighbours", blocks=5, cluster=2)[0]


def test_leave_for_shared_memory_holds_for_other_threads():
    """A kernel gets permission for all shared memory, on every device, before any thread launches
    it."""
    library = ctypes.CDLL(str(build.launches()))
    library.launch_in_threads.restype = ctypes.c_char_p
    sizes = [kilobytes * 1024 for kilobytes in (60, 100, 200, 226, 221, 30, 49, 150)]
    random.shuffle(sizes)
    wrong = library.launch_in_threads((ctypes.c_int * len(sizes))(*sizes), len(sizes), 200)
    assert wrong == b""


# ---------------------------------------------------------------------------------------------
# Planted bugs: with one change in the sources, the tests above must fail.

RACE, UNWRITTEN, OUTSIDE = "a race: this", "nothing has been written yet", "outside of every tensor"
STUCK, NUMBERS = "not all threads reach", "should be"
REDUCE, DENSE, STRIDED = "common/reduce.cuh", "elementwise/dense.cu", "elementwise/strided.cu"
GROUPS_OF, MEMORY, LAUNCH = "common/groups.cuh", "common/memory.cuh", "elementwise/engine.cu"

PLANTED = {
    "no barrier before the warps' sums are read": (
        REDUCE, "sums[threadIdx.x / kWarp] = x;\n  __syncthreads();",
        "sums[threadIdx.x / kWarp] = x;", f"{UNWRITTEN}|{RACE}"),
    "a barrier that one warp reaches": (
        REDUCE, "if (threadIdx.x < kWarp) x = warp_sum(",
        "if (threadIdx.x >= kWarp) return x;\n  x = warp_sum(", STUCK),
    "half of a warp": (REDUCE, "0xffffffffu", "0x0000ffffu", "its own mask leaves out"),
    "a shuffle too few": (REDUCE, "distance = kWarp / 2", "distance = kWarp / 4", NUMBERS),
    "sums of warps that are not there": (
        REDUCE, "threadIdx.x < blockDim.x / kWarp ? sums[threadIdx.x] : 0", "sums[threadIdx.x]",
        UNWRITTEN),
    "the last block but one reduces": (
        REDUCE, "arrivals - 1", "arrivals - 2", f"{UNWRITTEN}|{RACE}"),
    "no fence before the ticket": (
        REDUCE, "__threadfence();  // the share", "// the share", RACE),
    "no fence after the ticket": (
        REDUCE, "__threadfence();  // and the", "// and the", RACE),
    "the block does not wait for the ticket": (
        REDUCE, "  __syncthreads();\n  const bool result", "  const bool result",
        f"{UNWRITTEN}|{RACE}"),
    "tickets that nobody cleared": (
        GROUPS_OF, "check(cudaMemsetAsync", "if (false) check(cudaMemsetAsync", UNWRITTEN),
    "every thread writes the loss": (
        GROUPS_OF, "return threadIdx.x == 0;", "return true;", RACE),
    "an element beyond the tail": (
        DENSE, "if (i < end) sum", "if (i <= end) sum", f"{OUTSIDE}|{RACE}"),
    "the tail is left out": (
        DENSE, "if (i >= head) i += tail - head;", "if (i >= head) return;",
        f"{NUMBERS}|unwritten|{STUCK}"),
    "a vector beyond the end": (
        DENSE, "last = end / N;", "last = (end + N - 1) / N;", f"{OUTSIDE}|{RACE}"),
    "an unmasked lane": (
        DENSE, "if (at + u * step < last) elements[u]", "elements[u]", OUTSIDE),
    "a stride that skips": (DENSE, "at += unroll * step", "at += (unroll + 1) * step",
                            f"{NUMBERS}|unwritten"),
    "vectors off their boundary": (MEMORY, "reinterpret_cast<uintptr_t>(p) % bytes == 0",
                                   "p != nullptr && bytes > 0", "a misaligned access"),
    "weights that are forgotten": (
        DENSE, "dx[v] = weighted * f.dx", "dx[v] = scale * f.dx", NUMBERS),
    "an element beyond a group": (
        STRIDED, "i < end; i += step", "i <= end; i += step", f"{OUTSIDE}|{RACE}"),
    "strides that are mixed up": (
        STRIDED, "offset += index_[d] * operand.stride[d]",
        "offset += index_[d] * operand.stride[d - 1]", f"{OUTSIDE}|{NUMBERS}|unwritten|{RACE}"),
    "a tail that is not rescaled": (
        LAUNCH, "int64_t i = vectors * N + start; i < numel", "int64_t i = numel; i < numel",
        "AssertionError: rescale"),
    "a rescaling that rounds its factor": (
        LAUNCH, "const T factor = static_cast<T>(number);",
        "const T factor = widen<T>(narrow<S>(static_cast<T>(number)));", "AssertionError: rescale"),
    "more shares than threads": (
        GROUPS_OF, "for (int i = threadIdx.x; i < schedule.splits; i += blockDim.x) sum",
        "if (const int i = threadIdx.x; i < schedule.splits) sum", "of a large device"),
    "groups that nobody takes": (
        DENSE, "group += gridDim.x / schedule.splits", "group += problem.groups", "unwritten"),
    "a thread that does not end": (
        DENSE, "at += unroll * step", "at += 0 * step", "a thread that does not end"),
}  # fmt: skip


def plant(folder: Path, *change: str) -> Path:
    return planting.plant(folder, *change, planting.FEWER_ELEMENTWISE, OTHER_FAMILIES)


def examine() -> None:
    """A short run through all kernels, which must fail for kernels with planted bugs."""
    backend = Backend(cuda_on_cpu.ops())
    for dtypes in ((FLOAT32, FLOAT32), (BFLOAT16, BFLOAT16)):
        check_sizes(backend, (1, 9, 300, 2049, 9001), dtypes, "mse")
        for weighted in (False, True):
            Case(backend, (2500,), dtypes, "mse", weighted=weighted).check()
            Case(backend, (3, 1100), dtypes, "mse", "mean", 1, weighted=weighted).check()
            Case(backend, (29, 70), dtypes, "mse", "mean", 1, weighted=weighted).check()
    case = Case(backend, (301,), (FLOAT32, FLOAT32), "mse", weighted=True)
    case.operands[1] = torch.randn(304)[3:]
    case.check()
    case = Case(backend, (30, 40), (FLOAT32, FLOAT16), "mse", weighted=True)
    case.operands[1] = case.operands[1].t().contiguous().t()
    case.check()
    for size in (3, 1001):
        grad = torch.randn(size)
        half = grad.bfloat16()
        expected, expected_half = grad * 1.2345, (half.float() * 1.2345).bfloat16()
        backend.ops.elementwise_rescale_([grad, half], torch.tensor(1.2345))
        assert torch.equal(grad, expected), "rescale"
        assert torch.equal(half, expected_half), "rescale"


def examine_a_large_device() -> None:
    """Sums over more blocks than a block has threads, on a device of 40 multiprocessors."""
    x = torch.randn(655_360)
    cuda_on_cpu.ops()
    total, *_ = getattr(torch.ops, cuda_on_cpu.NAMESPACE).elementwise_forward(
        x, torch.zeros_like(x), None, None, "mse", [], "sum", 0, FLOAT64, NO_GRADIENTS
    )
    truth = x.double().square().sum()
    assert torch.isclose(total, truth, rtol=1e-6), "of a large device"


def examination(large: bool) -> dict[str, str]:
    return {
        "module": "test_cuda_on_cpu",
        "function": "examine_a_large_device" if large else "examine",
        "LOSSOPS_TEST_MULTIPROCESSORS": "40" if large else "2",
    }


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_the_examination_passes_what_is_right(tmp_path, seed, large):
    library = plant(tmp_path, REDUCE, "warp_sum", "warp_sum")
    run = planting.examine(library, seed, **examination(large))
    assert run.stdout.strip() == "passed", run.stderr


@pytest.mark.parametrize(
    ("file", "old"),
    [(DENSE, "for (int64_t at"), (STRIDED, "for (int64_t i"), (STRIDED, "int64_t offset")],
)
def test_an_index_of_32_bits_does_not_compile(file, old, tmp_path):
    with pytest.raises(RuntimeError, match="Werror=conversion"):
        plant(tmp_path, file, old, old.replace("int64_t", "int"))


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug, tmp_path, seed):
    *change, finding = PLANTED[bug]
    large = bug == "more shares than threads"
    planting.check_that_it_is_found(
        bug, change, finding, tmp_path, seed, **examination(large),
        fewer=planting.FEWER_ELEMENTWISE, others=OTHER_FAMILIES,
    )  # fmt: skip
