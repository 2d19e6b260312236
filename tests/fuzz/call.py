"""A call with its arguments, and the generator of random ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LABELS = (torch.int64, torch.int32, torch.uint8)


@dataclass
class Call:
    """A function, and its arguments by name in order."""

    name: str
    function: Callable
    arguments: dict[str, Any]
    raw: bool = True
    # Whether the values keep rounding errors small, so that results can be compared.
    tame: bool = True
    inside: bool = True  # of the domain of the loss
    changes: list[str] = field(default_factory=list)  # the changes to a valid call

    def __call__(self, arguments: dict[str, Any] | None = None):
        arguments = self.arguments if arguments is None else arguments
        if self.raw:
            return self.function(*arguments.values())
        positional = [value for key, value in arguments.items() if key.isdigit()]
        named = {key: value for key, value in arguments.items() if not key.isdigit()}
        return self.function(*positional, **named)

    def __str__(self) -> str:
        lines = [f"  {name} = {described(value)}" for name, value in self.arguments.items()]
        changes = f"  # {'; '.join(self.changes)}" if self.changes else ""
        return "\n".join([f"{self.name}{changes}", *lines])

    def tensors(self) -> list[Tensor]:
        return [tensor for value in self.arguments.values() for tensor in tensors_of(value)]


def tensors_of(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for element in value for tensor in tensors_of(element)]
    return []


def in_memory(tensor: Tensor) -> bool:
    """Whether the values can be read: torch's own operations crash if there is no memory."""
    return tensor.is_cpu and tensor.layout is torch.strided and lies_inside(tensor)


def lies_inside(tensor: Tensor) -> bool:
    if tensor.numel() == 0:
        return True
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((size - 1) * stride for size, stride in steps)
    return (last + 1) * tensor.itemsize <= tensor.untyped_storage().nbytes()


def described(value) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(described, value))}]"
    if not isinstance(value, Tensor):
        return repr(value)
    text = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if value.layout is not torch.strided:
        return f"{text} {value.layout}"
    text += f" strides {list(value.stride())} at {value.storage_offset()} on {value.device.type}"
    if value.requires_grad:
        text += " requires_grad"
    return (
        f"{text} = {value.tolist()}"
        if 0 < value.numel() <= 4 and in_memory(value) and value.dtype in (*FLOATS, *LABELS)
        else text
    )


class Draw:
    """Random choices that depend only on the seed."""

    def __init__(self, seed: str):
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(60))

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def of(self, *choices):
        return self.random.choice(choices)

    def normal(self, shape) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, shape, low: float = 0.0, high: float = 1.0) -> Tensor:
        numbers = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return low + (high - low) * numbers

    def integers(self, low: int, high: int, shape) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def size(self, most: int = 40) -> int:
        return self.of(1, 2, 3, self.random.randint(1, most), self.random.randint(1, most))

    def shape(self, least: int = 0) -> tuple[int, ...]:
        if self.chance(0.03):  # more dimensions than the kernels support
            return tuple(self.of(1, 1, 2) for _ in range(self.random.randint(9, 11)))
        dims = max(least, self.of(0, 1, 1, 2, 2, 2, 3, 4))
        most = {0: 1, 1: 300, 2: 40, 3: 12, 4: 5}.get(dims, 3)
        shape = [self.size(most) for _ in range(dims)]
        if dims and self.chance(0.04):
            shape[self.random.randrange(dims)] = 0
        return tuple(shape)

    def laid_out(self, tensor: Tensor, dense: float = 0.6) -> Tensor:
        """The same values in a different memory layout."""
        if tensor.dim() == 0 or self.chance(dense):
            return tensor
        how = self.of("permuted", "gaps", "offset", "wide")
        if how == "permuted":
            order = self.random.sample(range(tensor.dim()), tensor.dim())
            inverse = [order.index(d) for d in range(tensor.dim())]
            return tensor.permute(order).contiguous().permute(inverse)
        if how == "offset":
            room = tensor.new_zeros(tensor.numel() + 3)
            return room[3:].view(tensor.shape).copy_(tensor)
        dim = self.random.randrange(tensor.dim())
        shape = list(tensor.shape)
        shape[dim] = 2 * shape[dim] + 1
        room = tensor.new_zeros(shape)
        step = 2 if how == "gaps" else 1
        part = room.narrow(dim, 1, shape[dim] - 1)[
            (slice(None),) * dim + (slice(None, None, step),)
        ]
        return part.narrow(dim, 0, tensor.shape[dim]).copy_(tensor)

    def expanded(self, tensor: Tensor) -> Tensor:
        """The same shape, with one slice of a dimension expanded."""
        if tensor.dim() == 0 or 0 in tensor.shape:
            return tensor
        dim = self.random.randrange(tensor.dim())
        return tensor.narrow(dim, 0, 1).expand(tensor.shape)

    def operand(self, tensor: Tensor) -> Tensor:
        """A tensor to be read, in any layout."""
        return self.expanded(tensor) if self.chance(0.07) else self.laid_out(tensor)
