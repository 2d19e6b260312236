"""Judges the outcome of a call."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import re
import sys
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

import lossops
from lossops.specs import elementwise as specs

from . import truth
from .call import FLOATS, LABELS, Call, Draw, in_memory, tensors_of

libc = ctypes.CDLL(None, use_errno=True)

# Exceptions that a call may raise, and texts that no message may contain.
ALLOWED = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError)
FORBIDDEN = (
    "INTERNAL ASSERT", "std::", "basic_string", "vector::", "_M_range", "map::at", "bad_alloc",
    "Unknown C++ exception", "report a bug", "RecursionError",
)  # fmt: skip
# Errors that depend on memory contents, which tensors without data do not raise.
OF_MEMORY = (
    "out of bounds", "out of range", "memory", "requires grad", "inference tensor", "Inplace",
    "in-place", "negation inputs", "resolve_neg",
)  # fmt: skip
# Messages of torch's dispatcher, about calls that do not reach an op, and of sizes that overflow
# before the shapes of several tensors are compared.
OF_TORCH = (
    "to a fixed-size array|tensor does not have a device|undefined tensor|no tensor argument|"
    "too many numbers in the shape"
)
TOLERANCE = {
    torch.float64: 1e-8, torch.float32: 2e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2,
}  # fmt: skip


INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
EVERYWHERE = {row.kernel for row in specs.REGRESSION} | {
    "triplet_margin", "triplet_margin_l1", "multi_margin", "multi_margin_squared",
    "multilabel_margin",
}  # fmt: skip


class FoundError(Exception):
    """A fault that the fuzzer found."""


def judge(draw: Draw, call: Call) -> bool:
    """Whether a call is accepted. Raises a FoundError if something is wrong with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = {name: copied(value) for name, value in call.arguments.items()}
        memory = Memory(call)
        outputs, error = made(call)
        memory.check(call, error is None)
        if call.raw and draw.chance(0.25):
            compare_without_data(call, arguments, outputs, error)
        if error is not None:
            return False
        on_cpu = all(tensor.is_cpu for tensor in call.tensors())
        if on_cpu and draw.chance(0.5):
            compare_runs(call, arguments, outputs)
        if on_cpu and call.tame and (call.inside or takes_any_numbers(call)):
            check_numbers(call, arguments, outputs)
        return True


def made(call: Call, arguments=None):
    """The outcome of a call: its results, or the exception."""
    try:
        with uninitialized_memory_is_nan():
            return call(arguments), None
    except ALLOWED as error:
        for word in FORBIDDEN:
            if word in str(error):
                raise FoundError(f"{type(error).__name__} with {word!r}: {error}") from error
        return None, error
    except Exception as error:
        raise FoundError(f"raises {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def uninitialized_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def copied(value, place=lambda memory, itemsize: memory.clone()):
    """A copy in separate memory with the same layout."""
    if isinstance(value, (list, tuple)):
        return [copied(element, place) for element in value]
    if not isinstance(value, Tensor) or not in_memory(value):
        return value
    with torch.no_grad():
        storage = place(Memory.bytes_of(value), value.itemsize).untyped_storage()
        copy = torch.empty(0, dtype=value.dtype).set_(
            storage, value.storage_offset(), value.shape, value.stride()
        )
    if value.is_neg():
        copy = torch._neg_view(copy)
    return copy.requires_grad_(value.requires_grad)


def before_a_fence(bytes: Tensor, itemsize: int) -> Tensor:
    """A copy that ends at the end of mapped memory, so that a read beyond it is a segmentation
    fault. It begins at a multiple of the element size, and so may end a few bytes earlier."""
    count = bytes.numel()
    if count == 0 or sys.platform != "linux":
        return bytes.clone()
    room = -(-count // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, room + mmap.PAGESIZE)
    fence = ctypes.addressof(ctypes.c_char.from_buffer(pages)) + room
    if libc.mprotect(ctypes.c_void_p(fence), mmap.PAGESIZE, 0):
        raise OSError("mprotect failed")
    offset = (room - count) // itemsize * itemsize
    return torch.frombuffer(pages, dtype=torch.uint8, offset=offset, count=count).copy_(bytes)


class Memory:
    """A snapshot of all memory of a call's arguments."""

    def __init__(self, call: Call):
        self.before = {}
        for tensor in call.tensors():
            if in_memory(tensor):
                bytes = self.bytes_of(tensor)
                self.before[bytes.data_ptr()] = (bytes, bytes.clone())
        self.versions = [t._version for t in self.written(call) if not t.is_inference()]

    @staticmethod
    def bytes_of(tensor: Tensor) -> Tensor:
        storage = tensor.detach().untyped_storage()
        return torch.empty(0, dtype=torch.uint8).set_(storage)

    @staticmethod
    def written(call: Call) -> list[Tensor]:
        in_place = call.raw and call.name.endswith("_")
        return tensors_of(next(iter(call.arguments.values()))) if in_place else []

    def check(self, call: Call, accepted: bool) -> None:
        changed = {key: now != was for key, (now, was) in self.before.items()}
        if accepted:
            written = self.written(call)
            for tensor in filter(in_memory, written):
                # Marks the bytes that may change, in a copy of the memory.
                twin = torch.zeros_like(self.bytes_of(tensor))
                room = torch.empty(0, dtype=tensor.dtype).set_(
                    twin.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
                )
                room.view(INTEGERS[tensor.itemsize]).fill_(-1)
                key = self.bytes_of(tensor).data_ptr()
                if key in changed:
                    changed[key] &= twin == 0
            for was, tensor in zip(self.versions, written, strict=False):
                if tensor._version == was:
                    raise FoundError("wrote to a tensor and did not count its version up")
        if any(difference.any() for difference in changed.values()):
            what = "wrote where it should not" if accepted else "was refused, and wrote"
            raise FoundError(what)


def compare_runs(call: Call, arguments: dict, outputs) -> None:
    """Checks that the same call gives the same results, whatever newly allocated memory
    contains."""
    again = {name: copied(value, before_a_fence) for name, value in arguments.items()}
    found = call(again)
    pairs = zip(tensors_of(outputs), tensors_of(found), strict=True)
    written = zip(Memory.written(call), tensors_of(next(iter(again.values()))), strict=False)
    for first, second in [*pairs, *written]:
        if not torch.equal(bits_of(first), bits_of(second)):
            raise FoundError("gives something else when it is called again")


def bits_of(tensor: Tensor) -> Tensor:
    if tensor.numel() == 0:
        return torch.empty(0)
    dense = tensor.detach().clone(memory_format=torch.contiguous_format)
    return dense.reshape(-1).view(torch.uint8)


def compare_without_data(call: Call, arguments: dict, outputs, error) -> None:
    """Checks that tensors without data are accepted and rejected alike, and give the same
    metadata."""
    if any(not t.is_cpu or t.layout is not torch.strided for t in call.tensors()):
        return
    if error is not None and any(word in str(error) for word in OF_MEMORY):
        return
    if any(tensors_of(v) for k, v in arguments.items() if k == "params"):
        return  # torch reads their values
    fakes, fake_error = made(call, {name: on_meta(value) for name, value in arguments.items()})
    if (error is None) != (fake_error is None):
        raise FoundError(f"on the CPU: {error or 'accepted'}\non meta: {fake_error or 'accepted'}")
    # With several changes, the first one that is found may be another. Python escapes "\0".
    alike = str(error) == str(fake_error) or "\\x" in str(fake_error)
    if len(call.changes) == 1 and not alike and not re.search(OF_TORCH, str(error)):
        raise FoundError(f"on the CPU: {error}\non meta: {fake_error}")
    for real, fake in zip(all_of(outputs), all_of(fakes), strict=True):
        if (real is None) != (fake is None) or (
            real is not None
            and (real.shape, real.dtype, steps(real)) != (fake.shape, fake.dtype, steps(fake))
        ):
            raise FoundError("gives tensors of another kind than it promises")


def all_of(outputs) -> list:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def steps(tensor: Tensor) -> list[int]:
    """The strides of dimensions larger than 1."""
    if tensor.numel() == 0:
        return []
    return [s for s, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def on_meta(value):
    if isinstance(value, (list, tuple)):
        return [on_meta(element) for element in value]
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def check_numbers(call: Call, arguments: dict, outputs) -> None:
    if call.raw:
        found = truth.results(call.name, arguments, outputs, call.arguments)
    else:
        found = by_reference(call, arguments, outputs)
    for result in found:
        if (result.got is None) != (result.expected is None):
            raise FoundError(f"{result.name} is there or not, against the mask")
        if result.got is not None:
            compare(result, coarsest(arguments))


def takes_any_numbers(call: Call) -> bool:
    """Whether a loss is defined everywhere. Otherwise its results are not compared."""
    if not call.raw:
        return False
    given = call.arguments
    if "form" in given:
        if given["loss"] == "focal" and not given["params"][4:5] >= [0]:  # gamma
            return False
        return given["form"] == "logits" and given["target_form"] in ("labels", "logits")
    loss = given.get("loss", "mse" if "rescale" in call.name else "")
    return loss in EVERYWHERE


def by_reference(call: Call, arguments: dict, outputs) -> Iterator[truth.Result]:
    """The expected results of a public function in float64, from the formulas."""
    arguments = {name: in_float64(value) for name, value in arguments.items()}
    try:
        with lossops.backend("reference"):
            expected = call(arguments)
    except ALLOWED:
        if all(t.dtype in (*FLOATS, *LABELS) for t in tensors_of(list(arguments.values()))):
            raise
        return
    for i, (got, truth_) in enumerate(zip(outputs, expected, strict=True)):
        yield truth.Result(f"result {i}", got, truth_, math.inf)


def in_float64(value):
    if isinstance(value, (list, tuple)):
        return [in_float64(element) for element in value]
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.detach().double().requires_grad_(value.requires_grad)


def coarsest(arguments: dict) -> float:
    """The tolerance for results computed from these arguments."""
    if arguments.get("dtype", torch.float64) != torch.float64:  # of the products of a layer
        return TOLERANCE[torch.float32]
    wide = any(t.dtype == torch.float64 for t in tensors_of(list(arguments.values())))
    narrow = any(
        t.is_floating_point() and t.dtype != torch.float64
        for t in tensors_of(list(arguments.values()))
    )
    return TOLERANCE[torch.float64 if wide and not narrow else torch.float32]


def compare(result: truth.Result, tolerance: float) -> None:
    got, expected = result.got.detach(), result.expected.detach()
    if got.shape != expected.shape:
        raise FoundError(
            f"{result.name} has the shape {tuple(got.shape)}, not {tuple(expected.shape)}"
        )
    if got.numel() == 0:
        return
    tolerance = max(tolerance, TOLERANCE.get(got.dtype, 0.5))
    rounded, found = expected.to(got.dtype).double(), got.double()
    largest = rounded.abs().nan_to_num(0, 0, 0).amax()
    scale = torch.as_tensor(result.scale, dtype=torch.float64).nan_to_num(0, 1.0, 0)
    bound = tolerance * (rounded.abs() + largest + scale + 1e-2)
    same = (found == rounded) | ~(rounded.isfinite() | found.isfinite())
    near = (found - rounded).abs() <= bound
    wrong = ~(same | near)
    if wrong.any():
        i = int(wrong.reshape(-1).nonzero()[0])
        raise FoundError(
            f"{result.name}: {found.reshape(-1)[i].item()} should be "
            f"{rounded.reshape(-1)[i].item()}, at {i} of {got.numel()}"
        )
