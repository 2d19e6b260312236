"""Where and with what something was measured."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import lossops


def stamp() -> dict[str, Any]:
    """Date, versions and machine, for a file of results."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {"date": now.isoformat(timespec="seconds"), "info": lossops.info()}


def name() -> str:
    """A folder name for this machine: its processor, cores and GPU."""
    info = lossops.info()
    words = f"{info['processor']} {info['cores']} cores {' '.join(info['gpus'][:1])}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def save(result: dict[str, Any], folder: Path) -> Path:
    """Writes a result to ``folder/<machine>/<date>.json``."""
    date = re.sub(r"[^0-9T]", "", result["date"].partition("+")[0]).replace("T", "-")
    path = folder / name() / f"{date}.json"
    write(result, path)
    return path


def write(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
