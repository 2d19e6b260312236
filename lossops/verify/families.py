"""Verification of all loss families together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lossops.verify import elementwise as verify
from lossops.verify import others as others_verify
from lossops.verify import softmax as softmax_verify
from lossops.verify import vectors as vectors_verify
from lossops.verify.tables import Table

# Key of a family's results -> its module. The results of the first family are at the top level.
_FAMILIES = {
    "": verify,
    "rows": softmax_verify,
    "vectors": vectors_verify,
    "others": others_verify,
}
Families = Sequence[Sequence[Any]]


def pieces(families: Families) -> int:
    """How many times ``verify_families`` calls ``advance``."""
    return sum(len(m.targets(f)) for m, f in zip(_FAMILIES.values(), families, strict=True))


def verify_families(
    families: Families, advance: Callable[[str], None], full: bool = False, seed: int = 0
) -> dict[str, Any]:
    """Verifies elementwise losses, losses over rows of class scores, losses over vectors, and the
    others."""
    found = {
        name: module.verify(family, advance, full, seed)
        for (name, module), family in zip(_FAMILIES.items(), families, strict=True)
    }
    passed = all(result["passed"] for result in found.values())
    return found.pop("") | found | {"passed": passed}


def _parts(result: dict[str, Any]):
    return [(module, result[name] if name else result) for name, module in _FAMILIES.items()]


def tables(result: dict[str, Any]) -> list[Table]:
    """The results as readable tables."""
    return [table for module, part in _parts(result) for table in module.tables(part)]


def failures(result: dict[str, Any]) -> list[str]:
    """Describes each failure in one line."""
    return [line for module, part in _parts(result) for line in module.failures(part)]


def rows(result: dict[str, Any], what: str) -> list[dict[str, Any]]:
    """The rows of ``numbers`` or ``checks`` of all families."""
    return [row for _, part in _parts(result) for row in part[what]]
