"""What the raw ops refuse, and what they leave alone, on every engine: they are reachable from
exported programs, and kernels believe what they are told about memory. Calls are those of the
fuzzer in ``fuzz``, which also runs here."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import cpu_only
from fuzz.call import FLOATS, Draw, tensors_of
from fuzz.judge import all_of, on_meta, steps
from fuzz.raw import arguments_of
from raw_ops import FLOAT32, Case
from raw_softmax import Case as RowsCase
from torch import Tensor

from lossops.core.library import DECLARED

REFUSALS = (RuntimeError, NotImplementedError, TypeError, ValueError)
NO_NUMBERS = (torch.int64, torch.int16, torch.uint8, torch.bool, torch.complex64)
IN_PLACE = [name for name in DECLARED if name.endswith("_")]
each_op = pytest.mark.parametrize("op", DECLARED)
each_in_place = pytest.mark.parametrize("op", IN_PLACE)

pytestmark = pytest.mark.filterwarnings("ignore")


class Valid:
    """A valid call of an op, to be spoiled."""

    def __init__(self, backend, op, **wanted):
        self.backend, self.op = backend, op
        draw = Draw(str(random.getrandbits(60)))
        while True:
            self.arguments = arguments_of(op, draw)
            given = all(self.arguments.get(k) == v for k, v in wanted.items())
            if given and all(t.numel() for t in tensors_of(list(self.arguments.values()))):
                break

    def __call__(self, **changes):
        arguments = [self.placed(v) for v in (self.arguments | changes).values()]
        return getattr(self.backend.ops, self.op)(*arguments)

    def placed(self, value):
        if isinstance(value, list):
            return [self.placed(element) for element in value]
        if isinstance(value, Tensor) and value.device.type != "meta":
            return value.to(self.backend.device)
        return value

    def each_tensor(self):
        """Of each tensor, its name and how to call with another in its place."""
        for name, value in self.arguments.items():
            if isinstance(value, Tensor):
                yield name, value, lambda other, name=name: self(**{name: other})
            elif isinstance(value, list):
                for i, element in enumerate(value):
                    if isinstance(element, Tensor):
                        yield (
                            name,
                            element,
                            lambda other, name=name, i=i: self(
                                **{
                                    name: [
                                        *self.arguments[name][:i],
                                        other,
                                        *self.arguments[name][i + 1 :],
                                    ]
                                }
                            ),
                        )


def is_label(valid, name):
    takes_labels = valid.arguments.get("target_form") == "labels" and name == "target"
    return takes_labels or (name == "label" and not valid.arguments["label"].is_floating_point())


@each_op
def test_other_dtypes_are_refused(backend, op):
    for _ in range(3):
        valid = Valid(backend, op)
        valid()
        for name, tensor, call in valid.each_tensor():
            for dtype in (*FLOATS, torch.int16) if is_label(valid, name) else NO_NUMBERS:
                with pytest.raises(REFUSALS):
                    call(torch.ones(tensor.shape, dtype=dtype))
        if "out_dtype" in valid.arguments:
            for dtype in (*NO_NUMBERS, torch.float8_e5m2):
                with pytest.raises(REFUSALS):
                    valid(out_dtype=dtype)


@each_op
def test_other_devices_layouts_and_missing_memory_are_refused(backend, op):
    valid = Valid(backend, op)
    for name, tensor, call in valid.each_tensor():
        one_of_many = len(tensors_of(list(valid.arguments.values()))) > 1
        if one_of_many:
            with pytest.raises(REFUSALS):
                call(tensor.to("meta"))
        if tensor.dim() and not op.startswith("vectors"):
            with pytest.raises(REFUSALS):
                call(tensor.contiguous().to_sparse())
        # The CUDA kernels on the CPU are called twice, with a copy of what is written.
        copied = name == next(iter(valid.arguments)) and not has_autograd_kernels(backend)
        if backend.device.type == "cpu" and not (op in IN_PLACE and copied):
            for size in (0, tensor.untyped_storage().nbytes() - 1):
                hollow = tensor.clone(memory_format=torch.contiguous_format)
                hollow.untyped_storage().resize_(min(size, hollow.untyped_storage().nbytes() - 1))
                with pytest.raises(RuntimeError, match="memory"):
                    call(hollow)


@each_op
def test_other_shapes_are_refused(backend, op):
    for _ in range(5):
        valid = Valid(backend, op)
        for name, tensor, call in valid.each_tensor():
            if op == "elementwise_rescale_" and name == "grads":
                continue
            with pytest.raises(REFUSALS):
                call(tensor.unsqueeze(-1).expand(*tensor.shape, 977).contiguous())


@each_op
def test_lists_and_masks_of_other_lengths_are_refused(backend, op):
    for _ in range(5):
        valid = Valid(backend, op)
        for name, value in valid.arguments.items():
            if not isinstance(value, list) or op == "elementwise_rescale_":
                continue
            others = [[*value, *(value[-1:] or [torch.ones(3)])]]
            others += [value[:-1]] if value else []
            for other in others:
                with pytest.raises(REFUSALS):
                    valid(**{name: other})


@each_in_place
def test_what_shares_memory_with_itself_is_not_written_to(backend, op):
    while True:
        valid = Valid(backend, op)
        _, tensor, call = next(valid.each_tensor())
        if tensor.dim() and tensor.numel() > 1 and max(tensor.shape) < 99:
            break
    dim = max(range(tensor.dim()), key=lambda d: tensor.shape[d])
    expanded = tensor.narrow(dim, 0, 1).clone().expand(tensor.shape)
    windows = (
        torch.ones(2 * tensor.numel()).to(tensor.dtype).as_strided(tensor.shape, [1] * tensor.dim())
    )
    for shared in (expanded, windows) if sum(n > 1 for n in tensor.shape) > 1 else (expanded,):
        with pytest.raises(RuntimeError, match="refer to a single memory location"):
            call(shared)


def test_what_is_read_is_not_written_to(backend):
    x, y = torch.randn(2, 4, 5, device=backend.device).unbind(0)
    labels = torch.zeros(4, dtype=torch.int64, device=backend.device)
    two = torch.tensor(2.0, device=backend.device)
    room = torch.randn(4, 10, device=backend.device)
    rows = ("cross_entropy", 1, "logits", "labels", [1.0, 0, 0, 0, 0, 0], -100, False, "sum", 0)
    call = (None, None, "mse", [], "sum", 0)
    ops = backend.ops
    shares = "refer to a single memory location"
    with pytest.raises(RuntimeError, match=shares):
        ops.elementwise_backward_([x], two, x, y, *call, [True, False, False])
    with pytest.raises(RuntimeError, match=shares):
        ops.elementwise_backward_(
            [room[:, :5], room[:, 2:7]], two, x, y, *call, [True, True, False]
        )
    with pytest.raises(RuntimeError, match=shares):
        ops.elementwise_rescale_([room[:, :5]], room[0, 0])
    with pytest.raises(RuntimeError, match=shares):
        ops.elementwise_rescale_([room, room[1]], two)
    with pytest.raises(RuntimeError, match=shares):
        ops.softmax_backward_([x], two, x, labels, None, None, *rows, [True, False])
    with pytest.raises(RuntimeError, match=shares):
        ops.softmax_forward_(room[:, :5], labels, room[0, :5], None, *rows, FLOAT32, [False] * 3)
    # Beside each other in memory, they are apart.
    expected, *_ = ops.elementwise_backward(two, x, y, *call, [True, True, False])
    ops.elementwise_backward_([room[:, ::2], room[:, 1::2]], two, x, y, *call, [True, True, False])
    assert torch.equal(room[:, ::2], expected)
    left, right = room.chunk(2, 1)
    probs = right.softmax(1)
    right.copy_(probs)
    soft = ("cross_entropy", 1, "logits", "probs", *rows[4:])
    _, *_, grad, _ = ops.softmax_forward(
        left, probs, None, None, *soft, FLOAT32, [False] * 3 + [True, False]
    )
    ops.softmax_forward_(left, right, None, None, *soft, FLOAT32, [False] * 3)
    assert torch.equal(left, grad)
    assert torch.equal(right, probs)


def has_autograd_kernels(backend):
    """Those of the library; the CUDA kernels executed on the CPU have a namespace of their own."""
    return "cuda_on_cpu" not in type(backend.ops).__module__


@each_in_place
def test_writing_is_counted(backend, op):
    """A graph that saved the old values raises, as after torch's own in-place ops."""
    if not has_autograd_kernels(backend):
        return
    valid = Valid(backend, op)
    written = valid.placed(next(iter(valid.arguments.values())))
    versions = [t._version for t in tensors_of(written)]
    valid(**{next(iter(valid.arguments)): written})
    assert all(t._version == v + 1 for t, v in zip(tensors_of(written), versions, strict=True))


@each_in_place
def test_what_is_differentiated_is_not_written_to(backend, op):
    if not has_autograd_kernels(backend):
        return
    valid = Valid(backend, op)
    written = next(iter(valid.arguments))
    for name, tensor, call in valid.each_tensor():
        if not tensor.is_floating_point():
            continue
        leaf = valid.placed(tensor).detach().clone().requires_grad_()
        before = leaf.detach().clone()
        match = "a leaf Variable that requires grad" if name == written else "requires grad"
        with pytest.raises(RuntimeError, match=match):
            call(leaf)
        with pytest.raises(RuntimeError, match="requires grad"):
            call(leaf * 1)
        assert torch.equal(leaf.detach(), before)
        with torch.no_grad():
            call(leaf)


@cpu_only
@each_op
def test_without_data_the_same_is_promised(op):
    """Over more dimensions than a problem of the kernels has, too."""
    draw = Draw(str(random.getrandbits(60)))
    for _ in range(60):
        arguments = arguments_of(op, draw)
        promised = getattr(torch.ops.lossops, op)(*map(on_meta, arguments.values()))
        found = getattr(torch.ops.lossops, op)(*arguments.values())
        for real, fake in zip(all_of(found), all_of(promised), strict=True):
            assert (real is None) == (fake is None)
            if real is not None:
                assert (real.shape, real.dtype) == (fake.shape, fake.dtype)
                assert steps(real) == steps(fake)


@cpu_only
@each_op
def test_without_data_the_same_is_refused(op):
    for _ in range(5):
        given = arguments_of(op, Draw(str(random.getrandbits(60))))
        arguments = {name: on_meta(value) for name, value in given.items()}
        call = getattr(torch.ops.lossops, op)
        call(*arguments.values())
        for name, value in arguments.items():
            if isinstance(value, Tensor):
                other = torch.empty(value.shape, dtype=torch.complex64, device="meta")
            elif isinstance(value, list):
                other = [*value, *(value[-1:] or [torch.ones(3, device="meta")])]
                if op == "elementwise_rescale_":
                    continue
            elif isinstance(value, str):
                other = "another"
            elif isinstance(value, torch.dtype):
                other = torch.int32
            elif name in ("dim", "keep_dims"):
                other = 99
            else:
                continue
            with pytest.raises(REFUSALS):
                call(*(arguments | {name: other}).values())


def test_nine_dimensions_of_any_layout(backend):
    z = torch.randn(2, 1, 2, 1, 2, 1, 2, 1, 3, device=backend.device).permute(*range(8, -1, -1))
    for reduction in ("none", "mean"):
        case = Case(backend, z.shape, (FLOAT32, FLOAT32), "huber", reduction)
        case.operands = [z, torch.zeros_like(z), None]
        case.tangents = [torch.randn_like(z), None, None]
        case.check()
        value = case.forward([False] * 3)[0] if reduction == "none" else case.backward()[0]
        assert value.stride() == torch.empty_like(z).stride()
        grads = [torch.empty_like(z) for _ in range(2)]
        if reduction == "mean":
            case.backward_(grads)
            assert torch.equal(grads[0], case.backward()[0])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_normalizer_of_any_layout(backend, reduction):
    kept = (3, 4)
    for normalizer in (
        torch.rand(4, 3).add(0.5).t(), torch.rand(1, 4).add(0.5).expand(kept),
        torch.rand(6, 4)[::2] + 0.5, torch.rand(()).add(0.5).expand(kept), torch.rand(2)[1] + 0.5,
    ):  # fmt: skip
        given = normalizer.to(backend.device)
        case = Case(
            backend, (*kept, 20), (FLOAT32, FLOAT32), "mse", reduction, 2, normalizer=normalizer
        )
        case.check()
        rows = RowsCase(backend, kept, 9, reduction=reduction, keep_dims=2, normalizer=given)
        rows.check()


@cpu_only
def test_the_fuzzer_finds_nothing():
    command = [sys.executable, "-m", "tests.fuzz", "--calls", "4000", "--failures", "5"]
    root = Path(__file__).parent.parent
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
