"""Makes arguments of a call wrong, odd or hostile."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .call import FLOATS, Call, Draw, in_memory

DTYPES = (
    *FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    torch.complex64, torch.complex128, torch.float8_e5m2, torch.uint16,
)  # fmt: skip
NAMES = (
    "mse", "kl", "cross_entropy", "focal", "triplet_margin", "tversky", "logits", "probs",
    "labels", "none", "mean", "sum", "sample", "", "x" * 300, "mse\0", "\N{SNOWMAN}",
)  # fmt: skip
INTEGERS = (0, 1, 2, -1, -100, 7, 2**31, 2**63 - 1, -(2**63))
NUMBERS = (0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e300, -1e300, 1e-300, 2.0**63)


def spoil(draw: Draw, call: Call) -> None:
    """Changes one argument."""
    name = draw.of(*call.arguments)
    value = call.arguments[name]
    changed, how = changed_value(draw, call, value)
    call.arguments[name] = changed
    call.changes.append(f"{name}: {how}")


def changed_value(draw: Draw, call: Call, value):
    if isinstance(value, Tensor):
        return changed_tensor(draw, call, value)
    if isinstance(value, bool):
        return not value, "not"
    if isinstance(value, str):
        call.inside = False
        return draw.of(*NAMES), "another name"
    if isinstance(value, int):
        return draw.of(*INTEGERS, value + 1, value - 1), "another integer"
    if isinstance(value, float):
        call.tame = False
        return draw.of(*NUMBERS), "another number"
    if isinstance(value, torch.dtype):
        return draw.of(*DTYPES), "another dtype"
    if isinstance(value, (list, tuple)):
        return changed_list(draw, call, list(value))
    if value is None:
        call.inside = False
        return draw.of(*call.tensors() or [None]), "a tensor of the call"
    return value, "nothing"


def changed_list(draw: Draw, call: Call, values: list):
    how = draw.of("shorter", "longer", "changed", "changed", "empty")
    if how == "shorter" and values:
        values.pop(draw.random.randrange(len(values)))
    elif how == "longer":
        more = values or call.tensors() or [1.0]
        call.inside = False
        values.append(draw.of(*more))
    elif how == "empty":
        values = []
    elif values:
        i = draw.random.randrange(len(values))
        values[i], inner = changed_value(draw, call, values[i])
        how = f"[{i}] {inner}"
    return values, how


def changed_tensor(draw: Draw, call: Call, tensor: Tensor):
    change = draw.of(*TENSOR_CHANGES)
    if tensor.is_cpu and not in_memory(tensor):
        return tensor, "nothing"
    call.inside &= change not in ELSEWHERE
    try:
        changed = change(draw, call, tensor)
    except (RuntimeError, IndexError, ValueError, AssertionError):
        return tensor, "nothing"  # no such tensor can be made
    return (tensor, "nothing") if changed is None else (changed, change.__name__)


def dtype(draw, call, tensor):
    return tensor.to(draw.of(*DTYPES))


def random_dtype_and_contents(draw, call, tensor):
    call.tame = False
    kind = draw.of(*DTYPES)
    room = draw.integers(0, 256, (tensor.numel() * kind.itemsize,)).to(torch.uint8)
    return room.view(kind).view(tensor.shape)


def meta(draw, call, tensor):
    return tensor.to("meta")


def sparse(draw, call, tensor):
    return tensor.to_sparse() if draw.chance(0.5) else tensor.to_sparse_csr()


def flattened(draw, call, tensor):
    return tensor.reshape(-1)


def without_a_dimension(draw, call, tensor):
    return tensor.select(draw.random.randrange(tensor.dim()), 0)


def with_a_dimension(draw, call, tensor):
    return tensor.unsqueeze(draw.random.randint(0, tensor.dim()))


def transposed(draw, call, tensor):
    return tensor.transpose(0, -1)


def shorter(draw, call, tensor):
    dim = draw.random.randrange(tensor.dim())
    return tensor.narrow(dim, 0, tensor.shape[dim] - 1)


def longer(draw, call, tensor):
    return torch.cat([tensor, tensor], draw.random.randrange(tensor.dim()))


def empty(draw, call, tensor):
    return tensor[:0] if tensor.dim() else None


def a_number(draw, call, tensor):
    return tensor.reshape(-1)[0]


def resized_storage(draw, call, tensor):
    if not call.raw:  # functions also call torch's operations, which would crash
        return None
    bytes = tensor.untyped_storage().nbytes()
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(draw.of(0, bytes // 2, max(bytes - 1, 0)))
    return tensor


def requires_grad(draw, call, tensor):
    leaf = tensor.detach().clone().requires_grad_()
    return leaf if draw.chance(0.5) else leaf * 1


def expanded(draw, call, tensor):
    return draw.expanded(tensor)


def overlapping(draw, call, tensor):
    strides = [draw.of(0, 1, stride, max(stride - 1, 0)) for stride in tensor.stride()]
    return tensor.as_strided(tensor.shape, strides)


def odd_strides(draw, call, tensor):
    """Odd strides in dimensions of size 0 or 1, where they have no effect."""
    strides = [
        draw.of(0, 5, 2**40, 2**60) if size <= 1 else stride
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    ]
    return tensor.as_strided(tensor.shape, strides)


def other_layout(draw, call, tensor):
    return draw.laid_out(tensor, dense=0.0)


def another(draw, call, tensor):
    """Passes an argument twice."""
    return draw.of(*call.tensors())


def part_of_another(draw, call, tensor):
    """Memory shared with another argument."""
    other = draw.of(*call.tensors())
    if not other.is_cpu or other.layout is not torch.strided:
        return None
    offset = other.storage_offset() + draw.of(0, 0, 1, 2)
    if other.itemsize != tensor.itemsize:
        return None
    other = other.detach().view(tensor.dtype)
    return other.as_strided(tensor.shape, tensor.stride(), offset)


def negative(draw, call, tensor):
    return torch._neg_view(tensor)


def conjugate(draw, call, tensor):
    return torch.complex(tensor, tensor).conj().imag


def wild_numbers(draw, call, tensor):
    if not tensor.is_floating_point():
        return None
    call.tame = False
    wild = torch.tensor(NUMBERS, dtype=torch.float64)[draw.integers(0, len(NUMBERS), tensor.shape)]
    return torch.where(draw.uniform(tensor.shape) < 0.3, wild.to(tensor.dtype), tensor)


def other_labels(draw, call, tensor):
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        return None
    wild = torch.tensor(INTEGERS)[draw.integers(0, len(INTEGERS), tensor.shape)]
    return torch.where(draw.uniform(tensor.shape) < 0.3, wild, tensor.long()).to(tensor.dtype)


def subclass(draw, call, tensor):
    return tensor.as_subclass(Subclass)


def inference(draw, call, tensor):
    with torch.inference_mode():
        return tensor.clone()


def nine_dimensions(draw, call, tensor):
    return tensor.reshape(*[1] * 9, *tensor.shape)


def many_rows_and_none(draw, call, tensor):
    call.tame = False  # torch's own operations reject them
    return tensor.new_empty((2**40, 0, 2**40)[: draw.of(2, 3)])


class Subclass(Tensor):
    pass


# Changes that may leave the domain of the loss.
ELSEWHERE = (dtype, another, part_of_another, overlapping, negative, conjugate)
TENSOR_CHANGES = (
    dtype, dtype, random_dtype_and_contents, meta, sparse, flattened, without_a_dimension,
    with_a_dimension, transposed, shorter, longer, empty, a_number, resized_storage, requires_grad,
    expanded, overlapping, odd_strides, other_layout, another, part_of_another, negative,
    conjugate, wild_numbers, other_labels, subclass, inference, nine_dimensions,
    many_rows_and_none,
)  # fmt: skip
