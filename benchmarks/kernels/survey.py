"""Compiles every kernel, and checks the promises of the library about the compiled code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.kernels import cuda as kernels_cuda
from benchmarks.kernels import triton as kernels_triton
from benchmarks.kernels import vectors as kernels_vectors
from benchmarks.kernels.cache import Progress, silence
from benchmarks.kernels.occupancy import ARCHITECTURES
from benchmarks.kernels.rows import CompileError, Row
from lossops.specs.elementwise import SPECS, Spec
from lossops.specs.softmax import RowSpec
from lossops.specs.vectors import VectorSpec

ENGINES = {"cuda": kernels_cuda, "triton": kernels_triton}


@dataclass(frozen=True)
class MainPath:
    """The tensors that a kernel reads and writes, one letter each: x for the input's dtype, y for
    the target's."""

    reads: str
    writes: str
    unroll: int = 1  # vectors of each operand that a thread has in flight

    def vectors(self, operands: str, dtypes: Sequence[str]) -> int:
        """The number of 16-byte accesses to some operands. A vector of the narrowest dtype is one
        access, and the same number of elements of a wider dtype are several."""
        sizes = dict(zip("xy", map(_bytes, dtypes), strict=False))
        return self.unroll * sum(sizes[one] for one in operands) // min(sizes.values())


# The main paths: no kernel may spill registers, and these must also use 16-byte accesses for all
# tensors.
MAIN_PATHS = {
    ("cuda", "dense", "value"): MainPath("xy", "y", unroll=2),
    ("cuda", "dense", "step"): MainPath("xy", "x", unroll=2),
    ("cuda", "dense", "backward"): MainPath("xyy", "x"),
    ("cuda", "rescale", ""): MainPath("x", "x"),
    **{
        ("cuda", "rows_warp", f"plain_labels {n} vectors"): MainPath("x", "x", unroll=n)
        for n in (1, 4, 8)
    },
    **{
        ("cuda", "rows_warp", f"{pair} {n} vectors"): MainPath("xx", "xx", unroll=n)
        for pair in ("two_logits", "log_probs_and_probs", "logits_and_probs")
        for n in (1, 4)
    },
    ("cuda", "rows_block", "plain_labels"): MainPath("xxxx", "x"),
    **{
        ("cuda", "rows_block", pair): MainPath("xxxx", "xx")
        for pair in ("two_logits", "log_probs_and_probs", "logits_and_probs")
    },
    ("cuda", "vector_rows", ""): MainPath("xx", "x"),  # each vector twice; a single vector once
    ("triton", "elementwise", "value"): MainPath("xy", ""),
    ("triton", "elementwise", "step"): MainPath("xy", "x"),
    ("triton", "elementwise", "backward"): MainPath("xyy", "x"),
    ("triton", "elementwise", "double backward"): MainPath("xyxy", "xy"),
    ("triton", "elementwise", "weighted backward"): MainPath("xyx", "x"),
    ("triton", "elementwise", "weighted double"): MainPath("xyxxyx", "xyx"),
    ("triton", "rescale", ""): MainPath("x", "x"),
    ("triton", "label_loss", "value"): MainPath("x", ""),
    ("triton", "label_loss", "step"): MainPath("x", "x"),
    ("triton", "label_loss", "backward"): MainPath("x", "x"),
    ("triton", "label_loss", "step of images"): MainPath("x", "x"),
    ("triton", "label_loss", "step of soft targets"): MainPath("xx", "x"),
    ("triton", "label_loss", "long step"): MainPath("xx", "x"),  # reads twice
    ("triton", "divergence", "value"): MainPath("xy", ""),
    ("triton", "divergence", "step"): MainPath("xy", "x"),
    ("triton", "divergence", "backward"): MainPath("xy", "x"),
    ("triton", "divergence", "step of images"): MainPath("xy", "x"),
    ("triton", "divergence", "long step"): MainPath("xyxyxy", "x"),  # reads three times
    ("triton", "vectors", "value"): MainPath("x", ""),
    ("triton", "vectors", "step"): MainPath("x", "x"),
    ("triton", "vectors", "long step"): MainPath("xx", "x"),
    ("triton", "pairs", "value"): MainPath("x", ""),
    ("triton", "pairs", "step"): MainPath("xx", "x"),  # for the classes, and for the labels
}


# The derivative of these with respect to the input does not depend on it, so the compiler drops the
# load.
_SLOPE_WITHOUT_INPUT = {spec.kernel for spec in SPECS if spec.slope_without_input}


def _bytes(dtype: str) -> int:
    return {"float64": 8, "float32": 4}.get(dtype, 2)


def survey(
    architectures: Sequence[str] = ARCHITECTURES,
    wanted: Sequence[Spec] = SPECS,
    over_rows: Sequence[str] = kernels_triton.OVER_ROWS,
    progress: Progress = silence,
) -> dict[str, Any]:
    """Compiles all kernels of elementwise losses and of losses over rows, unless they are stored.

    Returns:
        ``compilers`` by engine; ``missing``: why an engine has none; ``kernels``: a row for each
        kernel and architecture; ``problems``: sentences.
    """
    result = {"compilers": {}, "missing": {}, "kernels": [], "problems": []}
    losses = {"", *(spec.kernel for spec in wanted), *over_rows}
    for name, engine in ENGINES.items():
        if reason := engine.missing():
            result["missing"][name] = reason
            continue
        result["compilers"][name] = engine.compiler()
        try:
            found = engine.survey(architectures, wanted, over_rows, progress)
        except CompileError as error:
            result["problems"].append(str(error))
            continue
        for unit in found:
            result["kernels"] += [row for row in unit["rows"] if row["loss"] in losses]
            result["problems"] += unit["warnings"]
    result["problems"] += problems(result["kernels"])
    return result


def of_rows(wanted: Iterable[RowSpec]) -> list[str]:
    """The kernels of some losses over rows, without duplicates."""
    names = [row.kernel for row in wanted]
    names += ["reverse_kl"] if "kl" in names else []
    return list(dict.fromkeys(names))


def of_vectors(wanted: Iterable[VectorSpec]) -> list[str]:
    """The kernels of some losses over rows of vectors."""
    return [name for spec in wanted for name in kernels_vectors.OF_LOSSES[spec.name]]


def problems(rows: Iterable[Row]) -> list[str]:
    """The problems of some kernels, one sentence each."""
    found = []
    for row in rows:
        where = f"{row['engine']} kernel {row['name']} on sm_{row['architecture']}"
        spilled, loaded = row["spill_stores"], row["spill_loads"]
        if spilled or loaded:
            found.append(f"{where} spills registers: {spilled} bytes stored, {loaded} loaded")
        elif row["stack"] or row["local"]:
            local = f"{row['stack']} bytes of stack, {row['local']} accesses"
            found.append(f"{where} uses local memory: {local}")
        path = MAIN_PATHS.get((row["engine"], row["template"], row["pass"]))
        if path is None:
            continue
        reads = path.reads
        if row["pass"] == "backward" and row["loss"] in _SLOPE_WITHOUT_INPUT:
            reads = reads.replace("x", "")
        for what, operands in (("loads", reads), ("stores", path.writes)):
            here, wanted = vectors(row[what]), path.vectors(operands, row["dtypes"])
            if here < wanted:
                found.append(f"{where} has {here} {what} of 16 bytes, and needs {wanted}")
    return found


def vectors(accesses: dict[str, int]) -> int:
    """The number of 16-byte units moved by accesses of at least 16 bytes."""
    return sum(count * (int(width) // 16) for width, count in accesses.items())
