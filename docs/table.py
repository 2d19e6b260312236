"""Writes the tables of losses in docs/losses.md from lossops.specs. Run by ``make format``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from lossops.specs import elementwise as specs
from lossops.specs import softmax as softmax_specs
from lossops.specs.vectors import VECTOR_SPECS

PAGE = Path(__file__).with_name("losses.md")


def of_elements() -> str:
    """One row per elementwise loss."""
    rows = []
    for row in specs.SPECS:
        name = row.public_name
        if row.name != row.public_name:
            name += "(" + ", ".join(f"{k}={v}" for k, v in row.defaults.items()) + ")"
        rows.append((name, row.formula, row.module, row.torch_function is not None))
    return _table("x = input, y = target, d = x - y", rows)


def over_rows() -> str:
    """One row per loss over rows of class scores."""
    return _table(
        "z = input, q = softmax(z), p = target, y = its label",
        ((row.name, row.formula, row.module, row.torchs_own) for row in softmax_specs.ROW_SPECS),
    )


def over_vectors() -> str:
    """One row per loss over rows of vectors."""
    return _table(
        "of a row of vectors, y its label",
        ((row.name, row.formula, row.module, row.torchs_own) for row in VECTOR_SPECS),
    )


# By the marks between which they stand.
TABLES: dict[str, Callable[[], str]] = {
    "losses": of_elements,
    "losses over rows": over_rows,
    "losses over vectors": over_vectors,
}


def _table(symbols: str, rows: Iterable[tuple[str, str, type | None, bool]]) -> str:
    """Of names, formulas, modules, and whether torch has them."""
    lines = [f"| loss | formula, {symbols} | module | in torch |", "|---|---|---|---|"]
    for name, formula, module, in_torch in rows:
        formula = formula.replace("|", "\\|")
        module_name = f"`{module.__name__}`" if module else "none"
        lines.append(f"| `{name}` | {formula} | {module_name} | {'yes' if in_torch else 'no'} |")
    return "\n".join(lines) + "\n"


def with_tables(text: str) -> str:
    """A document with what stands between the marks replaced by today's tables."""
    for name, table in TABLES.items():
        start, end = f"<!-- {name}: written by docs/table.py -->\n", f"<!-- end of {name} -->\n"
        before, rest = text.split(start)
        text = before + start + table() + end + rest.split(end)[1]
    return text


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
