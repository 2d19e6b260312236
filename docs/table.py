"""Writes the README's table of losses from lossops.specs. Run by ``make format``."""

from __future__ import annotations

from pathlib import Path

from lossops import specs

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- losses: written by docs/table.py -->\n", "<!-- end of losses -->\n"


def table() -> str:
    """One row per loss."""
    rows = [
        "| loss | formula, x = input, y = target, d = x - y | module | in torch |",
        "|---|---|---|---|",
    ]
    for row in specs.SPECS:
        formula = row.formula.replace("|", "\\|")
        name = row.public_name
        if row.called:
            name += "(" + ", ".join(f"{k}={v}" for k, v in row.defaults.items()) + ")"
        in_torch = "yes" if row.torch_function else "no"
        rows.append(f"| `{name}` | {formula} | `{row.module.__name__}` | {in_torch} |")
    return "\n".join(rows) + "\n"


def with_table(text: str) -> str:
    """A document with what stands between the marks replaced by today's table."""
    before, rest = text.split(START)
    return before + START + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
