"""Keeps what compiling has told, beside the build: kernels are compiled again when they change."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, as_completed
from pathlib import Path
from typing import Any

import lossops
from lossops.report.progress import Advance

CHECKOUT = Path(lossops.__file__).parents[1]


Progress = Callable[[str, int], contextlib.AbstractContextManager[Advance]]


@contextlib.contextmanager
def silence(label: str, total: int) -> Iterator[Advance]:
    """Progress that nobody watches."""
    yield lambda what: None


class Cache:
    """Results by the name of what was compiled, for as long as what they depend on stays.

    Without a checkout to write in, nothing is kept.
    """

    def __init__(self, engine: str, *texts: str, files: Iterable[Path]):
        self.engine = engine
        self.texts, self.files = texts, sorted(files)  # all that the results depend on
        self.digest = self._digest()
        writable = (CHECKOUT / "csrc").is_dir() and os.access(CHECKOUT, os.W_OK)
        self.folder = CHECKOUT / "build" / "kernels" / engine if writable else None

    def _digest(self) -> str:
        hashed = hashlib.sha256()
        for text in self.texts:
            hashed.update(text.encode() + b"\0")
        for file in self.files:
            hashed.update(str(file).encode() + b"\0" + file.read_bytes() + b"\0")
        return hashed.hexdigest()

    def results(
        self,
        tasks: Mapping[str, tuple],
        work: Callable[..., Any],
        executor: Callable[[int], Executor],
        progress: Progress = silence,
    ) -> list[Any]:
        """``work(*task)`` for each of the tasks, by an executor of so many workers where new.

        One process works at a time; others wait, and find what it has left.
        """
        with self._locked():
            found = {name: self._load(name) for name in tasks}
            absent = [name for name, result in found.items() if result is None]
            if absent:
                workers = min(len(absent), os.cpu_count() or 1)
                label = f"compiling {self.engine} kernels"
                with executor(workers) as pool, progress(label, len(absent)) as advance:
                    futures = {pool.submit(work, *tasks[name]): name for name in absent}
                    for future in as_completed(futures):
                        name = futures[future]
                        found[name] = future.result()
                        self._store(name, found[name])
                        advance(name)
        return list(found.values())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self.folder is None:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _load(self, name: str) -> Any | None:
        path = self.folder and self.folder / f"{name}.json"
        if path is None or not path.exists():
            return None
        kept = json.loads(path.read_text(encoding="utf-8"))
        return kept["result"] if kept["digest"] == self.digest else None

    def _store(self, name: str, result: Any) -> None:
        if self.folder is None or self._digest() != self.digest:  # edited meanwhile
            return
        path = self.folder / f"{name}.json"
        unfinished = path.with_suffix(".tmp")  # an interruption leaves the old file or the new one
        unfinished.write_text(
            json.dumps({"digest": self.digest, "result": result}), encoding="utf-8"
        )
        unfinished.replace(path)
