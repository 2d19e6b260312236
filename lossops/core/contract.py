"""Checks that raw ops apply to all their tensors, regardless of the caller.

Raw ops are reachable from exported programs and compiled graphs, and kernels trust what they are
told about memory.

This module is for kernels written in Python; its C++ counterpart is ``csrc/ops/contract.h``. The
``ops`` module of each family defines the additional requirements of its ops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

KERNEL_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LABEL_DTYPES = (torch.int64, torch.int32, torch.uint8)


# ---- Checks of one argument.


def require(condition, message: Callable[[], str]) -> None:
    """Raises a RuntimeError unless ``condition`` holds. A condition on sizes that are not known yet
    is checked later."""
    if condition is True:
        return
    torch._check(condition, message)


def check_shape(name: str, tensor: Tensor, shape: Sequence[int], of: str) -> None:
    def message() -> str:
        return f"{name} should have the shape of {of}, {tuple(shape)}, got {tuple(tensor.shape)}"

    require(tensor.dim() == len(shape), message)
    for size, wanted in zip(tensor.shape, shape, strict=True):
        require(size == wanted, message)


def check_number_or(name: str, tensor: Tensor | None, shape: Sequence[int], of: str) -> None:
    if tensor is not None and tensor.dim() > 0:
        check_shape(name, tensor, shape, of)


def check_tensors(device: torch.device, dtypes=KERNEL_DTYPES, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        check_dtype(name, tensor.dtype, dtypes)
        if tensor.layout is not torch.strided:
            raise NotImplementedError(
                f"{name} should be a dense tensor, got layout {tensor.layout}"
            )
        require(
            tensor.device == device,
            lambda name=name, got=tensor.device: (
                f"{name} should be on {device} like the others, got {got}"
            ),
        )


def check_dtype(name: str, dtype: torch.dtype, dtypes=KERNEL_DTYPES) -> None:
    if dtype not in dtypes:
        wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise NotImplementedError(f"lossops kernels take {wanted}, got {name} of {dtype}")


def check_reduction(reduction: str) -> None:
    require(
        reduction in ("none", "mean", "sum"),
        lambda: f"reduction should be none, mean or sum, got {reduction!r}",
    )


def check_between(name: str, value: int, highest: int) -> None:
    require(0 <= value <= highest, lambda: f"{name} should be between 0 and {highest}, got {value}")


def check_single(grad_output: Tensor) -> None:
    require(
        grad_output.numel() == 1,
        lambda: f"grad_output should be a single number, got shape {tuple(grad_output.shape)}",
    )


def check_mask(mask: Sequence[bool], tensors: Sequence[Tensor | None]) -> None:
    """Checks that gradients are requested only of floating-point tensors that are present."""
    require(
        len(mask) == len(tensors),
        lambda: f"output_mask should have {len(tensors)} entries, got {len(mask)}",
    )
    wanted = [tensor for tensor, yes in zip(tensors, mask, strict=True) if yes]
    require(
        all(tensor is not None and tensor.is_floating_point() for tensor in wanted),
        lambda: "output_mask asks for the gradient of a tensor that there is not, or of labels",
    )


def check_gradients_come(mask: Sequence[bool], gives_a_number: bool) -> None:
    """Checks that gradients are requested of a forward pass only if the loss is a single number."""
    require(
        not any(mask) or gives_a_number,
        lambda: "gradients come only where the loss is a single number",
    )


def check_gradients(grads: Sequence[Tensor], mask, tensors) -> None:
    """Checks the gradients that an op overwrites: their number matches the mask, and each has the
    shape and device of its tensor."""
    check_mask(mask, tensors)
    wanted = [tensor for tensor, yes in zip(tensors, mask, strict=True) if yes]
    require(
        len(grads) == len(wanted),
        lambda: f"output_mask asks for {len(wanted)} gradients, got {len(grads)}",
    )
    for grad, tensor in zip(grads, wanted, strict=True):
        check_tensors(tensor.device, gradient=grad)
        check_shape("a gradient", grad, tensor.shape, "input")


# ---- Checks of memory, for tensors that have storage.


def _steps(tensor: Tensor) -> list[tuple[int, int]]:
    """The stride in bytes and the size of each dimension larger than 1."""
    dims = zip(tensor.stride(), tensor.shape, strict=True)
    return [(stride * tensor.itemsize, size) for stride, size in dims if size > 1]


def _lie_apart(steps: list[tuple[int, int]], bytes: int) -> bool:
    """Whether elements of ``bytes`` bytes do not overlap: each dimension steps over everything
    inside it.

    The test is conservative. Rare layouts without overlap fail it, because a walk over the strides
    cannot recognise them.
    """
    for stride, size in sorted(steps):
        if stride < bytes:
            return False
        bytes += (size - 1) * stride
    return True


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether elements of a tensor may share memory, as those of an expanded tensor do."""
    return tensor.numel() > 0 and not _lie_apart(_steps(tensor), tensor.itemsize)


def _extent(tensor: Tensor) -> tuple[int, int]:
    begin = tensor.data_ptr()
    reach = sum((size - 1) * stride for stride, size in _steps(tensor))
    return begin, begin + reach + tensor.itemsize


def _may_overlap(a: Tensor, b: Tensor) -> bool:
    if not (a.numel() and b.numel()):
        return False
    (begin_a, end_a), (begin_b, end_b) = _extent(a), _extent(b)
    if end_a <= begin_b or end_b <= begin_a:
        return False
    # Two parts of one tensor, as from chunk(), are treated as one tensor with an extra dimension.
    sizes = [max(sizes) for sizes in zip(a.shape, b.shape, strict=False)]
    strides = [
        [stride * t.itemsize for stride, size in zip(t.stride(), sizes, strict=False) if size > 1]
        for t in (a, b)
    ]
    if a.dim() != b.dim() or strides[0] != strides[1]:
        return True
    steps = list(zip(strides[0], (size for size in sizes if size > 1), strict=True))
    return not _lie_apart([*steps, (abs(begin_a - begin_b), 2)], max(a.itemsize, b.itemsize))


def check_memory(arguments: Sequence[tuple[str, object, bool]]) -> None:
    """Checks (name, argument, is_written) triples. Each tensor must lie within its storage, with
    aligned elements. A tensor that is written must not overlap itself or any other tensor."""
    tensors = [
        (name, tensor, written)
        for name, value, written in arguments
        for tensor in (value if isinstance(value, (list, tuple)) else (value,))
        if isinstance(tensor, Tensor)
    ]
    for i, (name, tensor, written) in enumerate(tensors):
        if tensor.numel() == 0:
            continue
        needed = sum((size - 1) * stride for stride, size in _steps(tensor)) + tensor.itemsize
        needed += tensor.storage_offset() * tensor.itemsize
        if needed > tensor.untyped_storage().nbytes():
            raise RuntimeError(
                f"{name} should lie within its memory: it needs {needed} bytes, and its storage "
                f"has {tensor.untyped_storage().nbytes()}"
            )
        if tensor.data_ptr() % min(tensor.itemsize, 8):  # a misaligned access ends a CUDA context
            raise RuntimeError(
                f"{name} should lie in memory at a multiple of its element size. Please clone() "
                "the tensor."
            )
        if written and overlaps_itself(tensor):
            raise RuntimeError(
                f"unsupported operation: more than one element of {name}, which is written to, may "
                "refer to a single memory location. Please clone() the tensor before performing "
                "the operation."
            )
        for other_name, other, other_written in tensors[:i]:
            if (written or other_written) and _may_overlap(tensor, other):
                raise RuntimeError(
                    f"unsupported operation: some elements of {name} and of {other_name}, of which "
                    "one is written to, may refer to a single memory location. Please clone() one "
                    "of them before performing the operation."
                )
