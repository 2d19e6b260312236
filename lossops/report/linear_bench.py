"""How fast and how small: linear_cross_entropy beside its matrix products alone, and torch.

Run as a module, it is the process to measure in, as :mod:`lossops.report.vectors_bench` is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as torch_functional

import lossops
from lossops.report.bench import _in_process
from lossops.report.bench_tables import _ratio
from lossops.report.measure import Step, clock_for, interleaved, peak_bytes
from lossops.report.others_verify import OTHERS, Other
from lossops.report.steps import EAGER, LOSSOPS
from lossops.report.tables import Table, number
from lossops.report.targets import Target, ratio
from lossops.report.verify import devices

Row = dict[str, Any]
PARTS = ("step", "memory")
NAME = "linear_cross_entropy"
ROWS, FEATURES, CLASSES = 4096, 1024, 32_000
PRODUCTS, CHUNKED = "products", "chunked"

TARGETS = (
    Target("linear_cross_entropy over its three matrix products", "linear_step",
           ratio("ms", LOSSOPS, PRODUCTS), at_most=1.15),
    Target("linear_cross_entropy: peak memory beyond inputs and gradients, in logits",
           "linear_memory", lambda row: row["logits"][LOSSOPS], at_most=0.15,
           devices=("cpu", "cuda")),
)  # fmt: skip


def bench(
    wanted: Iterable[Other] = OTHERS,
    advance: Callable[[str], None] = lambda what: None,
    quick: bool = False,
    parts: Iterable[str] = PARTS,
) -> list[Row]:
    """Measures the one loss among those without kernels that is a computation of its own."""
    chosen, rows = [part for part in PARTS if part in set(parts)], []
    for device in devices() if pieces(wanted, chosen) else ():
        task = {"parts": chosen, "device": device, "quick": quick}
        for row in _in_process(task, "lossops.report.linear_bench"):
            rows.append(row)
            advance(f"{row['kind'].removeprefix('linear_')} {NAME} {row['case']}")
    return rows


def pieces(wanted: Iterable[Other], parts: Iterable[str] = PARTS) -> int:
    """How often ``bench`` advances."""
    asked = any(other.name == NAME for other in wanted)
    return len(devices()) * len(set(PARTS) & set(parts)) if asked else 0


class Steps:
    """The steps of a linear layer and its loss, in float32."""

    def __init__(self, rows: int, features: int, classes: int, device: str):
        make: dict[str, Any] = {
            "device": device, "generator": torch.Generator(device).manual_seed(0),
        }  # fmt: skip
        self.x = torch.randn(rows, features, **make).requires_grad_()
        self.weight = (torch.randn(classes, features, **make) / features**0.5).requires_grad_()
        self.labels = torch.randint(classes, (rows,), **make)
        self.of_logits = torch.full((rows, classes), 1e-4, device=device)  # a gradient by them

    def products(self) -> None:
        """The logits, and the gradients by both factors."""
        with torch.no_grad():
            torch_functional.linear(self.x, self.weight)
            self.x.grad = self.of_logits @ self.weight
            self.weight.grad = self.of_logits.T @ self.x

    def train(self, loss: Callable[..., torch.Tensor]) -> Step:
        def step() -> None:
            self.x.grad = self.weight.grad = None
            loss(self.x, self.weight, self.labels).backward()

        return step

    def contenders(self) -> dict[str, Step]:
        steps = {
            PRODUCTS: self.products,
            LOSSOPS: self.train(lossops.functional.linear_cross_entropy),
            EAGER: self.train(_in_two_steps),
        }
        if hasattr(torch.nn, "LinearCrossEntropyOptions"):
            steps[CHUNKED] = self.train(_chunked)
        return steps


def _in_two_steps(x, weight, labels) -> torch.Tensor:
    return torch_functional.cross_entropy(torch_functional.linear(x, weight), labels)


def _chunked(x, weight, labels) -> torch.Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return torch_functional.linear_cross_entropy(x, weight, labels, options=options)


def run(task: dict[str, Any]) -> Iterator[Row]:
    """The results of a task, as they come."""
    sizes = (2048, 16, 500) if task["quick"] else (ROWS, FEATURES, CLASSES)
    steps = Steps(*sizes, task["device"])
    row = {
        "loss": NAME, "case": "{} × {} to {}".format(*sizes), "device": task["device"],
        "memory": "default",
    }  # fmt: skip
    if "step" in task["parts"]:
        clock = clock_for(task["device"], False, steps.weight.nbytes)
        yield row | {"kind": "linear_step", "ms": interleaved(steps.contenders(), 3, clock)}
    if "memory" in task["parts"]:
        gradients = steps.x.nbytes + steps.weight.nbytes
        held = {}
        for name, step in steps.contenders().items():
            if name != PRODUCTS:
                steps.x.grad = steps.weight.grad = None
                peak = peak_bytes(step, task["device"])
                held[name] = (peak - gradients) / steps.of_logits.nbytes
        yield row | {"kind": "linear_memory", "logits": held}


def tables(rows: Iterable[Row]) -> list[Table]:
    """All that were measured."""
    rows, made = list(rows), []
    for row in rows:
        if row["kind"] != "linear_step":
            continue
        ms, names = row["ms"], list(row["ms"])
        held = next(
            (r["logits"] for r in rows
             if r["kind"] == "linear_memory" and r["device"] == row["device"]), {},
        )  # fmt: skip
        table = Table(
            f"linear_cross_entropy on {row['device']}: {row['case']}, float32",
            ("", "a step, ms", "over its products", "memory beyond inputs and gradients, logits"),
            note="products: the three matrix products alone. eager: cross_entropy of linear. "
            "chunked: torch's linear_cross_entropy with its default options.",
        )
        for name in names:
            table.add(
                name, number(ms[name], 0), number(_ratio(ms, name, PRODUCTS)),
                number(held.get(name), 3),
            )  # fmt: skip
        made.append(table)
    return made


if __name__ == "__main__":
    for result in run(json.load(sys.stdin)):
        print(json.dumps(result), flush=True)
