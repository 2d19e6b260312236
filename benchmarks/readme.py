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
NO_GPU = "No GPU figures exist yet.\n"


def text(folder: Path = RESULTS) -> str:
    """The complete document."""
    gpus = [_gpu_section(name, file, result) for name, file, result in newest(folder, gpu=True)]
    cpus = [_cpu_section(name, file, result) for name, file, result in newest(folder, gpu=False)]
    sections = [HEAD, "## GPUs\n", *(gpus or [NO_GPU])]
    sections += ["## CPUs\n", *(cpus or ["No CPU figures exist yet.\n"])]
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


def _gpu_section(name: str, file: Path, result: Result) -> str:
    gpu = result["gpu"]
    facts = [
        f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, driver {gpu['driver'] or NOTHING}",
        f"CUDA {gpu['torch_cuda']}",
        f"Triton {result['info']['triton'] or NOTHING}",
    ]
    tables = [to_markdown(table) for table in gpu_tables.tables(result)]
    return "\n".join([f"### {name}\n", _origin(file, result, facts), *tables])


def _origin(file: Path, result: Result, facts: list[str]) -> str:
    info = result["info"]
    commit = result.get("commit")
    facts = [
        *facts,
        f"lossops {info['lossops']}" + (f" at commit {commit[:12]}" if commit else ""),
        f"torch {info['torch']}",
        f"Python {info['python']}",
        result["date"].replace("T", " ").replace("+00:00", " UTC"),
        f"[all numbers](results/{file.as_posix()})",
    ]
    if commit and commit.endswith("-dirty"):
        facts[facts.index(f"lossops {info['lossops']} at commit {commit[:12]}")] += " with changes"
    return "; ".join(facts) + ".\n"


def _cpu_section(name: str, file: Path, result: Result) -> str:
    info = result["info"]
    facts = [f"{info['processor']}, {info['cores']} cores, {info['native'].get('instruction_set')}"]
    tables = [to_markdown(table) for table in families.tables(result)]
    return "\n".join([f"### {name}\n", _origin(file, result, facts), *tables])


if __name__ == "__main__":
    write()
