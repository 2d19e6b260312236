"""Writes benchmarks/README.md from benchmarks/results. Run by ``make format``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.bench import tables as bench_tables
from benchmarks.bench.tables import ratio
from benchmarks.gpu import tables as gpu_tables
from benchmarks.gpu.tables import to_markdown
from lossops.verify.tables import NOTHING, Table, number

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
    native = info["native"]
    facts = [f"{info['processor']}, {info['cores']} cores, {native.get('instruction_set')}"]
    rows = result["bench"]
    others = [row for row in rows if "_" in row["kind"]]  # not elementwise
    goals = [outcome for outcome in result["targets"] if outcome["device"] == "cpu"]
    tables = [*_cpu_table(rows), *bench_tables.tables(others), bench_tables.goals(goals)]
    return "\n".join([f"### {name}\n", _origin(file, result, facts), *map(to_markdown, tables)])


def _cpu_table(rows: list[Result]) -> Iterator[Table]:
    """One row per loss, with the most important number of each kind of measurement."""
    rows = [row for row in rows if row.get("device") == "cpu"]
    found = {(row["kind"], row["loss"], _variant(row)): row for row in rows}
    steps = [row for row in rows if row["kind"] == "step"]
    if not steps:
        return
    table = Table(
        f"float32, {steps[0]['count']:,} elements: a training step, memory kept warm "
        "(in brackets as the allocator comes)",
        (
            "loss", "over torch.add", "eager / lossops", "compile / lossops", "bfloat16 / float32",
            "16 elements, lossops / eager", "peak memory, gradients",
            "largest error of the value, ulp", "of the gradient",
        ),
        note="torch.add(input, target) into fresh memory moves the same bytes as a step. Peak "
        "memory is what a step holds beyond its inputs. Errors are those in float32, in units in "
        "the last place, with torch's in brackets; 0.5 is perfect rounding.",
    )  # fmt: skip
    for loss in dict.fromkeys(row["loss"] for row in steps):
        warm, fresh = (
            found.get(("step", loss, memory), {}).get("ms", {}) for memory in ("warm", "default")
        )
        half = found.get(("half", loss, "warm")) or found.get(("half", loss, "default"), {})
        tiny, memory = found.get(("tiny", loss, ""), {}), found.get(("memory", loss, "mean"), {})
        table.add(
            f"`{loss}`",
            *(
                f"{number(ratio(warm, *names))} ({number(ratio(fresh, *names))})"
                for names in (("lossops", "floor"), ("eager", "lossops"), ("compile", "lossops"))
            ),
            number(ratio(half.get("ms", {}), "bfloat16", "float32")),
            number(ratio(tiny.get("us", {}), "lossops", "eager")),
            number(memory.get("gradients", {}).get("lossops")),
            *(_errors(found.get(("accuracy", loss, "float32")), w) for w in ("value", "gradient")),
        )
    yield table


def _variant(row: Result) -> str:
    """What distinguishes rows of the same kind and loss."""
    names = {"step": "memory", "half": "memory", "memory": "reduction", "accuracy": "dtype"}
    return row.get(names.get(row["kind"], ""), "")


def _errors(row: Result | None, what: str) -> str:
    if row is None:
        return NOTHING
    theirs = row["torch"] and row["torch"][what]
    return f"{number(row['lossops'][what])} ({number(theirs)})"


if __name__ == "__main__":
    write()
