"""Progress of long operations, on standard error: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

Advance = Callable[[str], None]


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Advance]:
    """Yields a function to call with a short description after each of the ``total`` pieces."""
    reporter = _bar if sys.stderr.isatty() else _lines
    with reporter(label, total) as advance:
        yield advance


@contextlib.contextmanager
def _lines(label: str, total: int) -> Iterator[Advance]:
    start = time.perf_counter()
    done = 0

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def advance(what: str) -> None:
        nonlocal done
        done += 1
        say(f"  {label}: {done}/{total} {what}")

    say(f"{label} …")
    yield advance
    say(f"{label}: done in {time.perf_counter() - start:.0f} s")


@contextlib.contextmanager
def _bar(label: str, total: int) -> Iterator[Advance]:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
    except ImportError:
        with _lines(label, total) as advance:
            yield advance
        return
    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        "{task.fields[what]}",
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, what="")
        yield lambda what: bar.update(task, advance=1, what=what)
