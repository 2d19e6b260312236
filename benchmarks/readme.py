"""Writes benchmarks/README.md from benchmarks/results. Run by ``make format``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.bench import families
from benchmarks.gpu import tables as gpu_tables
from benchmarks.gpu.tables import to_markdown
from lossops.verify.tables import NOTHING

Result = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent / "README.md"

HEAD = """\
# Figures

Written by `python -m benchmarks.readme` from the newest files in [results](results), per machine.
No figure here is typed. Goals that were missed stand beside those that were met.

```
make gpu                                      # a GPU: builds, tests, checks, measures
bash benchmarks/gpu.sh OUT_DIR --help         # the same with another Python, in parts
python -m benchmarks.gpu.finish --store FILE  # keeps a result.json that another machine wrote
python -m benchmarks bench --save                # the CPU
make format                                   # writes this page
```
"""


def text(folder: Path = RESULTS) -> str:
    """The complete document."""
    sections = [HEAD]
    for title, gpu in (("GPU", True), ("CPU", False)):
        found = [_section(*measured, gpu) for measured in newest(folder, gpu)]
        sections += [f"## {title}s\n", *(found or [f"No {title} figures exist yet.\n"])]
    return "\n".join(sections)


def write() -> None:
    README.write_text(text(), encoding="utf-8")


def newest(folder: Path, gpu: bool) -> Iterator[tuple[str, Path, Result]]:
    """The newest real measurement of each machine."""
    for machine in sorted(path for path in folder.glob("*") if path.is_dir()):
        pattern = "gpu-*.json" if gpu else "[0-9]*.json"
        for file in sorted(machine.glob(pattern), reverse=True):
            result = json.loads(file.read_text(encoding="utf-8"))
            if not result.get("dry") and not result.get("quick"):
                yield machine.name, file.relative_to(folder), result
                break


def _section(name: str, file: Path, result: Result, gpu: bool) -> str:
    info, commit = result["info"], result.get("commit") or ""
    if gpu:
        of = result["gpu"]
        memory, driver = f"{of['memory_bytes'] / 2**30:.0f} GiB", of["driver"] or NOTHING
        facts = [f"{of['name']}, {memory}, driver {driver}", f"CUDA {of['torch_cuda']}"]
        facts.append(f"Triton {info['triton'] or NOTHING}")
    else:
        isa = info["native"].get("instruction_set")
        facts = [f"{info['processor']}, {info['cores']} cores, {isa}"]
    at = f" at commit {commit[:12]}" if commit else ""
    changed = " with changes" if commit.endswith("-dirty") else ""
    facts += [
        f"lossops {info['lossops']}{at}{changed}",
        f"torch {info['torch']}",
        f"Python {info['python']}",
        result["date"].replace("T", " ").replace("+00:00", " UTC"),
        f"[all numbers](results/{file.as_posix()})",
    ]
    tables = (gpu_tables if gpu else families).tables(result)
    return "\n".join([f"### {name}\n", "; ".join(facts) + ".\n", *map(to_markdown, tables)])


if __name__ == "__main__":
    write()
