"""The calls of losses over rows of vectors, as the autograd Function runs them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lossops.core.fused import OnePass
from lossops.core.unfused import composed
from lossops.vectors.ops import VectorsArguments
from lossops.vectors.reference import FORMULAS

MOST_VECTORS = 3


@dataclass(eq=False)
class VectorsCall(OnePass):
    """A loss over rows of three vectors (or fewer, and None), which all have the shape
    (rows, length) and the same dtype; then the label and the row_weight."""

    Arguments = VectorsArguments
    family, node = "vectors", "fused_vectors"
    moving = MOST_VECTORS
    recomputes_halves = False

    def op_tensors(self, tensors: tuple) -> tuple:
        vectors = [vector for vector in tensors[:MOST_VECTORS] if vector is not None]
        return vectors, *tensors[MOST_VECTORS:]

    def formula(self, *tensors: Tensor | None) -> tuple[Tensor]:
        vectors, label, row_weight = self.op_tensors(tensors)
        loss, params, reduction = self.arguments
        formula = formula_of(loss, params, label, row_weight)
        return (composed(loss, formula, tuple(vectors), reduction).to(self.out_dtype),)


def formula_of(loss, params, label, row_weight):
    def formula(*vectors):
        rows = FORMULAS[loss](vectors, label, *params)
        return rows if row_weight is None else rows * row_weight

    return formula
