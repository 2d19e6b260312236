"""A cache of compiler results. A kernel is compiled again when a file that it depends on changes.

Results for the compilers that have a folder in ``benchmarks/compiled`` are part of the repository.
Others are stored with the build, as are all results under LOSSOPS_TEST_ALL=1.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import lossops
from lossops.verify.progress import Advance

CHECKOUT = Path(lossops.__file__).parents[1]


Progress = Callable[[str, int], contextlib.AbstractContextManager[Advance]]


def silence(label: str, total: int) -> contextlib.AbstractContextManager[Advance]:
    """Progress that is not displayed."""
    return contextlib.nullcontext(lambda what: None)


def included(source: Path, folder: Path) -> set[Path]:
    """A C++ source and all files of a folder that it includes."""
    found, new = set(), {source}
    while new:
        path = new.pop()
        found.add(path)
        names = re.findall(r'^\s*#\s*include "([^"]+)"', path.read_text(encoding="utf-8"), re.M)
        new |= {folder / name for name in names if (folder / name).is_file()} - found
    return found


def imported(module: str, part: str) -> set[Path]:
    """The files of a lossops module, and of its direct and indirect imports whose names contain
    ``part``."""
    root, found, new = Path(lossops.__file__).parents[1], {}, {module}
    while new:
        name = new.pop()
        path = root.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if not path.is_file():  # a name defined in a module
            found[name] = None
            continue
        found[name] = path
        for of, names in re.findall(
            r"^ *from (lossops\.\S+) import \(?([^)\n]*)", path.read_text(), re.M
        ):
            new |= {of, *(f"{of}.{one.strip()}" for one in names.split(",") if one.strip())}
        new = {name for name in new if part in name} - found.keys()
    return {path for path in found.values() if path}


def code(path: Path) -> str:
    """The code in a C++ or Python file, without comments, docstrings and layout."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return python_code(ast.parse(text))
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
    return re.sub(r"\s+", " ", text).strip()


def python_code(tree: ast.AST) -> str:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)  # whatever the version of Python


def digest(texts: Iterable[str], files: Iterable[Path]) -> str:
    """A digest of texts and of the code in files, independent of their paths."""
    contents = sorted(hashlib.sha256(code(path).encode()).hexdigest() for path in set(files))
    return hashlib.sha256("\0".join([*texts, *contents]).encode()).hexdigest()[:32]


class Task(NamedTuple):
    arguments: tuple
    files: Iterable[Path]  # everything that the result depends on


class Cache:
    """Results by task name, valid as long as the files they depend on are unchanged.

    Without a writable checkout, nothing is stored.
    """

    def __init__(self, compiler: str, *texts: str):
        self.compiler, self.texts = compiler, (compiler, *texts)
        writable = (CHECKOUT / "csrc").is_dir() and os.access(CHECKOUT, os.W_OK)
        self.folder = CHECKOUT / "benchmarks" / "compiled" / compiler
        if not self.folder.is_dir() or os.environ.get("LOSSOPS_TEST_ALL") == "1":
            self.folder = CHECKOUT / "build" / "kernels" / compiler if writable else None

    def results(
        self,
        tasks: Mapping[str, Task],
        work: Callable[..., Any],
        executor: Callable[[int], Executor],
        progress: Progress = silence,
    ) -> list[Any]:
        """``work(*arguments)`` for each task. Tasks without a stored result run in
        ``executor(workers)``.

        One process works at a time. The others wait, and then find its results.
        """
        with self._locked():
            found = {name: self._load(name, task) for name, task in tasks.items()}
            missing = [name for name in found if found[name] is None]
            digests = {name: digest(self.texts, tasks[name].files) for name in missing}
            if digests:
                workers = min(len(digests), os.cpu_count() or 1)
                label = f"compiling kernels with {self.compiler}"
                with executor(workers) as pool, progress(label, len(digests)) as advance:
                    futures = {pool.submit(work, *tasks[n].arguments): n for n in digests}
                    for future in as_completed(futures):
                        name = futures[future]
                        found[name] = future.result()
                        self._store(name, tasks[name], digests[name], found[name])
                        advance(name)
        return list(found.values())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self.folder is None:
            yield
            return
        lock = CHECKOUT / "build" / f"{self.compiler}.lock"
        lock.parent.mkdir(exist_ok=True)
        with open(lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _path(self, name: str) -> Path | None:
        return self.folder and self.folder / f"{name}.json"

    def _load(self, name: str, task: Task) -> Any | None:
        path = self._path(name)
        if path is None or not path.exists():
            return None
        kept = json.loads(path.read_text(encoding="utf-8"))
        return kept["result"] if kept["digest"] == digest(self.texts, task.files) else None

    def _store(self, name: str, task: Task, before: str, result: Any) -> None:
        path = self._path(name)
        if path is None or digest(self.texts, task.files) != before:  # edited in the meantime
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")  # an interruption leaves the old file or the new one
        text = json.dumps({"digest": before, "result": result}).replace("}, {", "},\n{")
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(path)
