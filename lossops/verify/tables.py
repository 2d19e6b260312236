"""Tables that can be shown as aligned text, as a rich table on a terminal, or as HTML."""

from __future__ import annotations

import html
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

GOOD, BAD = "good", "bad"
NOTHING = "\N{EN DASH}"  # shown if there is no number


@dataclass(frozen=True)
class Cell:
    """A text that may be marked as good or bad."""

    text: str
    mood: str = ""


@dataclass
class Table:
    """Rows of cells. The first ``labels`` columns contain words, the others numbers."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str | Cell]] = field(default_factory=list)
    note: str = ""
    labels: int = 1

    def add(self, *cells: str | Cell) -> None:
        if len(cells) != len(self.columns):
            raise ValueError(f"{self.title}: {len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(cells)


def _cell(cell: str | Cell) -> Cell:
    return cell if isinstance(cell, Cell) else Cell(cell)


def verdict(passed: bool, yes: str = "pass", no: str = "FAIL") -> Cell:
    return Cell(yes, GOOD) if passed else Cell(no, BAD)


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """Formats a number with a readable length."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return str(value)
    if value and (abs(value) >= 1e5 or abs(value) < 0.5 * 10**-digits):
        return f"{value:.1e}{unit}"
    return f"{value:.{digits}f}{unit}"


def to_text(table: Table) -> str:
    """Formats a table as plain text, for files and pipes."""
    cells = [[_cell(c).text for c in row] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(table.columns, *cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        padded = [
            text.ljust(width) if i < table.labels else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    lines = [table.title, "", line(table.columns), rule, *map(line, cells)]
    return "\n".join([*lines, *(["", table.note] if table.note else []), ""])


def to_html(table: Table) -> str:
    def row(cells: Sequence[str | Cell], tag: str) -> str:
        parts = []
        for i, cell in enumerate(map(_cell, cells)):
            classes = " ".join(filter(None, ["" if i < table.labels else "number", cell.mood]))
            attribute = f' class="{classes}"' if classes else ""
            parts.append(f"<{tag}{attribute}>{html.escape(cell.text)}</{tag}>")
        return f"<tr>{''.join(parts)}</tr>"

    body = "\n".join(row(cells, "td") for cells in table.rows)
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return (
        f'<figure class="table"><figcaption>{html.escape(table.title)}</figcaption>'
        f'<div class="scroll"><table>\n<thead>{row(table.columns, "th")}</thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>{note}</figure>"
    )


def show(table: Table) -> None:
    """Prints a table: in colour on a terminal if rich is installed, otherwise as plain text."""
    if not sys.stdout.isatty():
        print(to_text(table))
        return
    try:
        import rich
        from rich.table import Table as RichTable
        from rich.text import Text
    except ImportError:
        print(to_text(table))
        return
    drawn = RichTable(title=table.title, title_justify="left", caption_justify="left")
    drawn.caption = table.note or None
    for i, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if i < table.labels else "right")
    styles = {GOOD: "green", BAD: "bold red"}
    for cells in table.rows:
        drawn.add_row(*(Text(c.text, styles.get(c.mood, "")) for c in map(_cell, cells)))
    rich.print(drawn)
    print()
