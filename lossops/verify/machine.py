"""Identification of the machine and software of a measurement, and files for results."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import lossops

ROOT = Path(lossops.__file__).resolve().parent.parent
# Measurements write these files. Without the exclusion, the next commit stamp would be "-dirty".
_WRITTEN = (":(exclude)benchmarks/results", ":(exclude)benchmarks/README.md")


def stamp() -> dict[str, Any]:
    """The date, commit, versions and machine, for a file of results."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "date": now.isoformat(timespec="seconds"),
        "commit": commit(),
        "info": lossops.info(),
    }


def commit(root: Path = ROOT) -> str | None:
    """The commit of a checkout, with "-dirty" if its files differ. None if ``root`` is not the top
    of a checkout."""
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return None  # for example, installed inside the checkout of another project
    head = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", ".", *_WRITTEN)
    if head is None or changes is None:
        return None
    return f"{head}-dirty" if changes else head


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):  # git is missing or hangs
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def devices() -> list[str]:
    """The devices to verify and to measure on."""
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def name() -> str:
    """The folder name of this machine: its processor, cores and GPU."""
    info = lossops.info()
    return folder_name(f"{info['processor']} {info['cores']} cores {' '.join(info['gpus'][:1])}")


def folder_name(words: str) -> str:
    """Converts words to a folder name, for example NVIDIA H200 to nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def file_date(date: str) -> str:
    """The date of a stamp as part of a file name. Such names sort by time."""
    return re.sub(r"[^0-9T]", "", date.partition("+")[0]).replace("T", "-")


def save(result: dict[str, Any], folder: Path) -> Path:
    """Writes a result to ``folder/<machine>/<date>.json``."""
    path = folder / name() / f"{file_date(result['date'])}.json"
    write(result, path)
    return path


def write(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
