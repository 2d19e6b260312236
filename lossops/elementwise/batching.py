"""``vmap`` rules of the raw ops: the batch becomes a leading dimension that reductions keep."""

from __future__ import annotations

import torch
from torch import Tensor

from lossops.core import library


class _Batch:
    """Converts the tensors of a vmapped op to the shapes of the batched op."""

    def __init__(self, info, dims_and_tensors, reduction: str, keep_dims: int):
        self.size = info.batch_size
        self.reduces = reduction != "none"
        self.full = [self._front(dim, tensor) for dim, tensor in dims_and_tensors]
        self.keep_dims = keep_dims + 1 if self.reduces else keep_dims
        self._kept_shape = self.full[0].shape[: self.keep_dims]

    def _front(self, dim: int | None, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        if dim is None:
            return tensor.unsqueeze(0).expand(self.size, *tensor.shape)
        return tensor.movedim(dim, 0)

    def kept(self, dim: int | None, tensor: Tensor | None) -> Tensor | None:
        """Batches a tensor that has the shape of the loss or holds a single number."""
        tensor = self._front(dim, tensor)
        if tensor is None or not self.reduces:
            return tensor
        if tensor.dim() < self.keep_dims:
            tensor = tensor.view(self.size, *[1] * (self.keep_dims - 1))
        return tensor.expand(self._kept_shape).contiguous()


def _dims_of(outputs) -> tuple:
    return tuple(None if output is None else 0 for output in outputs)


def _register(namespace: str) -> None:
    ops = getattr(torch.ops, namespace)

    def forward(info, dims, *args):
        loss, params, reduction, keep_dims, out_dtype, mask = args[4:]
        batch = _Batch(info, zip(dims[:3], args[:3], strict=True), reduction, keep_dims)
        if any(mask):
            raise RuntimeError("elementwise_forward gives no gradients under vmap")
        outputs = ops.elementwise_forward(
            *batch.full, batch.kept(dims[3], args[3]), loss, params, reduction, batch.keep_dims,
            out_dtype, mask,
        )  # fmt: skip
        return outputs, _dims_of(outputs)

    def backward(info, dims, *args):
        loss, params, reduction, keep_dims, mask = args[5:]
        batch = _Batch(info, zip(dims[1:4], args[1:4], strict=True), reduction, keep_dims)
        grads = ops.elementwise_backward(
            batch.kept(dims[0], args[0]), *batch.full, batch.kept(dims[4], args[4]),
            loss, params, reduction, batch.keep_dims, mask,
        )  # fmt: skip
        return grads, _dims_of(grads)

    def double_backward(info, dims, *args):
        loss, params, reduction, keep_dims, out_dtype, mask = args[8:]
        tensors = zip((*dims[1:4], *dims[5:8]), (*args[1:4], *args[5:8]), strict=True)
        batch = _Batch(info, tensors, reduction, keep_dims)
        outputs = ops.elementwise_double_backward(
            batch.kept(dims[0], args[0]), *batch.full[:3], batch.kept(dims[4], args[4]),
            *batch.full[3:], loss, params, reduction, batch.keep_dims, out_dtype, mask,
        )  # fmt: skip
        return outputs, _dims_of(outputs)

    for rule in (forward, backward, double_backward):
        torch.library.register_vmap(f"{namespace}::elementwise_{rule.__name__}", rule)


for _namespace in (library.NATIVE, library.TRITON):
    _register(_namespace)
