"""Combines the outcomes of all parts into one result, prints it, and stores it if it is from a GPU.

``python -m benchmarks.gpu.finish OUT_DIR [--keep]``. To store a result from another machine:
``python -m benchmarks.gpu.finish --store RESULT_JSON``, in a checkout of the measured sources.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import readme
from benchmarks.gpu import machine as gpu_machine
from benchmarks.gpu.goals import outcomes
from benchmarks.gpu.part import Row, rows_of
from benchmarks.gpu.run import PARTS, digest
from benchmarks.gpu.tables import summary, tables
from lossops.verify import machine
from lossops.verify.tables import to_text

RESULT = "result.json"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", action="store_true", help="in benchmarks/results, too")
    parser.add_argument("--store", action="store_true", help="FOLDER is the result of a run")
    given = parser.parse_args(arguments)
    if given.store:
        result = json.loads(given.folder.read_text(encoding="utf-8"))
        path = store(result)
        print(f"kept {path}" if path else "not kept: a dry run, or nothing was measured")
        return 0 if path else 1
    result = combine(given.folder)
    machine.write(result, given.folder / RESULT)
    title = "A dry run, on the CPU: nothing here is a measurement.\n\n" if result["dry"] else ""
    full = title + "\n".join(map(to_text, tables(result)))
    (given.folder / "tables.txt").write_text(full, encoding="utf-8")
    print("\n" + title + "\n".join(map(to_text, summary(result))))
    print(f"all tables: {given.folder / 'tables.txt'}")
    path = store(result) if given.keep else None
    if path:
        print(f"kept: {path}")
    return 0


def combine(folder: Path) -> Row:
    """Combines the latest run of each part with date, versions and machine."""
    records = {}
    for part in PARTS:
        path = folder / f"{part.name}.json"
        if path.exists():
            records[part.name] = json.loads(path.read_text(encoding="utf-8"))
    last = max(records.values(), key=lambda record: record["date"])
    same = ("sources", "dry", "python")
    alike = [name for name in records if all(records[name][key] == last[key] for key in same)]
    records = {name: records[name] for name in alike}
    return machine.stamp() | {
        "dry": last["dry"],
        "sources": last["sources"],
        "gpu": gpu_machine.gpu(),
        "seconds": round(sum(record["seconds"] for record in records.values()), 1),
        "goals": outcomes(records.get("measure", {}).get("rows", [])),
        "parts": records,
    }


def store(result: Row, folder: Path = readme.RESULTS) -> Path | None:
    """Stores a result and updates the document. Returns None if it is not a GPU result.

    A machine without a repository does not know the commit. If this checkout has the sources that
    were measured, its commit is used.
    """
    rows = result["parts"].get("measure", {}).get("rows", [])
    if result["dry"] or not result["gpu"] or not rows_of(rows, "time"):
        return None
    if result["commit"] is None and result["sources"] == digest():
        result = result | {"commit": machine.commit()}
    name = machine.folder_name(result["gpu"]["name"])
    path = folder / name / f"gpu-{machine.file_date(result['date'])}.json"
    machine.write(result, path)
    if folder == readme.RESULTS:
        readme.write()
    return path


if __name__ == "__main__":
    sys.exit(main())
