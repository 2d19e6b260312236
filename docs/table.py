"""Writes the README's table of losses from lossops.specs. Run by ``make format``."""

from __future__ import annotations

from pathlib import Path

from lossops import specs

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- losses: written by docs/table.py -->\n", "<!-- end of losses -->\n"


def table() -> str:
    """One row per loss."""
    rows = ["| loss | formula, d = input - target | module | in torch |", "|---|---|---|---|"]
    for row in specs.SPECS:
        formula = row.formula.replace("|", "\\|")
        in_torch = "yes" if row.torch_function else "no"
        rows.append(f"| `{row.name}` | {formula} | `{row.module.__name__}` | {in_torch} |")
    return "\n".join(rows) + "\n"


def with_table(text: str) -> str:
    """A document with what stands between the marks replaced by today's table."""
    before, rest = text.split(START)
    return before + START + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
