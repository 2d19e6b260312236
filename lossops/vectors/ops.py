"""The raw ops of the losses over rows of vectors: schemas, contract and fake results.

``vectors`` are one to three tensors of the same dtype and of the shape (rows, length). ``label``
and ``row_weight``, which multiplies the loss of a row, are single numbers or have one number per
row, except that lists of labels have the shape of the vectors. A mean is over the rows. x, y and z
are the vectors of a row; ``params`` are in brackets:

"cosine_embedding" (margin)
    With c = x·y / sqrt((x·x + 1e-12) (y·y + 1e-12)): 1 - c for a label of 1, max(0, c - margin) for
    a label of -1, and 0 for others.
"triplet_margin", "triplet_margin_l1" (margin, swap, epsilon)
    max(0, |x - y + epsilon| - |x - z + epsilon| + margin), with Euclidean norms or L1 norms. If
    ``swap`` is not 0, the second norm is replaced by |y - z + epsilon| where that is smaller.
"multi_margin", "multi_margin_squared" (margin)
    sum_(c != label) max(0, margin - x_label + x_c)^p / length, where p is 1 or 2. Labels are
    indices. A label out of range raises a RuntimeError on the CPU; on a GPU the loss of its row is
    NaN, and the gradients of that loss are 0.
"tversky_of_logits", "tversky" (alpha, beta, s)
    1 - (TP + s) / (TP + alpha FP + beta FN + s), where p is sigmoid(x), or x itself, and
    TP = sum p y, FP = sum p (1 - y), FN = sum (1 - p) y.
"multilabel_margin" ()
    sum_y sum_c max(0, 1 - x_y + x_c) / length, over the labels y of the row and all other indices
    c. The labels are the numbers before the first negative one. An index out of range is handled as
    in "multi_margin". Numbers after the end of a list are checked on the CPU only, where they must
    be -1 or an index.

``vectors_forward``
    Returns the loss, and the gradients by the vectors that ``output_mask`` requests for
    ``grad_output == 1`` (only if the loss is a single number).
``vectors_backward``
    Returns the gradients for ``grad_output``, which has the shape of the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lossops.core.contract import (
    KERNEL_DTYPES,
    LABEL_DTYPES,
    check_dtype,
    check_gradients_come,
    check_mask,
    check_number_or,
    check_reduction,
    check_shape,
    check_tensors,
    require,
)
from lossops.core.library import Params, declare, in_schema


class VectorsArguments(NamedTuple):
    """The arguments that the ops share, other than tensors."""

    loss: str
    params: Params
    reduction: str  # "none", "mean" or "sum"

    @property
    def gives_a_number(self) -> bool:
        return self.reduction != "none"


_VECTORS_READ = (
    f"Tensor[] vectors, Tensor? label, Tensor? row_weight, {in_schema(VectorsArguments)}"
)


class VectorSignature(NamedTuple):
    """The arguments that a loss over rows of vectors takes."""

    vectors: int  # number of vectors per row
    params: int
    label: str = ""  # per row: a "number", an "index", or a "list" of indices


VECTOR_SIGNATURES = {
    "cosine_embedding": VectorSignature(2, 1, "number"),
    "triplet_margin": VectorSignature(3, 3),
    "triplet_margin_l1": VectorSignature(3, 3),
    "multi_margin": VectorSignature(1, 1, "index"),
    "multi_margin_squared": VectorSignature(1, 1, "index"),
    "tversky_of_logits": VectorSignature(2, 3),
    "tversky": VectorSignature(2, 3),
    "multilabel_margin": VectorSignature(1, 0, "list"),
}


def _check_vectors(vectors, label, row_weight, call: VectorsArguments) -> None:
    loss, params, reduction = call
    takes = VECTOR_SIGNATURES.get(loss)
    require(takes is not None, lambda: f"unknown vector loss {loss!r}")
    require(
        len(vectors) == takes.vectors and len(params) == takes.params,
        lambda: (
            f"loss {loss!r} takes {takes.vectors} vectors and {takes.params} parameters, "
            f"got {len(vectors)} and {len(params)}"
        ),
    )
    require(
        (label is not None) == bool(takes.label),
        lambda: f"loss {loss!r} takes {'a' if takes.label else 'no'} label",
    )
    check_reduction(reduction)
    first = vectors[0]
    require(
        first.dim() == 2,
        lambda: f"vectors should have the shape (rows, length), got {tuple(first.shape)}",
    )
    for vector in vectors:
        check_tensors(first.device, vector=vector)
        check_shape("a vector", vector, first.shape, "the others")
        require(
            vector.dtype == first.dtype,
            lambda: f"vectors should have one dtype, got {[v.dtype for v in vectors]}",
        )
    dtypes = LABEL_DTYPES if takes.label in ("index", "list") else KERNEL_DTYPES
    check_tensors(first.device, dtypes, label=label)
    check_tensors(first.device, row_weight=row_weight)
    if takes.label == "list":
        check_shape("label", label, first.shape, "the vectors")
    else:
        check_number_or("label", label, first.shape[:1], "the rows")
    check_number_or("row_weight", row_weight, first.shape[:1], "the rows")


def _of_vectors(vectors, mask) -> Callable[[], tuple]:
    check_mask(mask, (*vectors, None, None)[:3])
    first = vectors[0]
    return lambda: tuple(first.new_empty(first.shape) if wanted else None for wanted in mask)


def _vectors_forward(vectors, label, row_weight, call, out_dtype, output_mask):
    _check_vectors(vectors, label, row_weight, call)
    check_dtype("out_dtype", out_dtype)
    check_gradients_come(output_mask, call.gives_a_number)
    shape = vectors[0].shape[:1] if call.reduction == "none" else ()
    grads = _of_vectors(vectors, output_mask)
    return lambda: (vectors[0].new_empty(shape, dtype=out_dtype), *grads())


def _vectors_backward(grad_output, vectors, label, row_weight, call, output_mask):
    _check_vectors(vectors, label, row_weight, call)
    check_tensors(vectors[0].device, grad_output=grad_output)
    rows = vectors[0].shape[:1] if call.reduction == "none" else ()
    check_number_or("grad_output", grad_output, rows, "the loss")
    return _of_vectors(vectors, output_mask)


declare(
    "vectors_forward",
    _vectors_forward,
    f"({_VECTORS_READ}, ScalarType out_dtype, bool[3] output_mask) "
    "-> (Tensor, Tensor?, Tensor?, Tensor?)",
    VectorsArguments,
)
declare(
    "vectors_backward",
    _vectors_backward,
    f"(Tensor grad_output, {_VECTORS_READ}, bool[3] output_mask) -> (Tensor, Tensor, Tensor)",
    VectorsArguments,
)
