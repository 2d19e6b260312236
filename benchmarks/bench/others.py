"""Speed and memory of the losses without kernels of their own: the cost of a call for each, and
linear_cross_entropy compared with its matrix products alone and with torch.

Run as a module, it is the worker process, like :mod:`benchmarks.bench.vectors`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as torch_functional

import lossops
from benchmarks.bench.elementwise import _in_process
from benchmarks.bench.steps import COMPILE, EAGER, LOSSOPS
from benchmarks.bench.tables import _ratio, calls
from benchmarks.bench.targets import Target, ratio
from lossops.specs.others import OTHERS, Other
from lossops.verify.machine import devices
from lossops.verify.measure import (
    Step,
    clock_for,
    interleaved,
    interleaved_blocks,
    one_thread,
    peak_bytes,
)
from lossops.verify.tables import Table, number

Row = dict[str, Any]
PARTS = ("step", "tiny", "memory")
OF_ONE = {"step", "memory"}  # only LINEAR has these parts
LINEAR = "linear_cross_entropy"
ROWS, FEATURES, CLASSES = 4096, 1024, 32_000
TINY = (16, 10)
PRODUCTS, CHUNKED = "products", "chunked"

TARGETS = (
    Target("linear_cross_entropy over its three matrix products", "linear_step",
           ratio("ms", LOSSOPS, PRODUCTS), at_most=1.15),
    Target("linear_cross_entropy faster than torch.compile", "linear_step",
           ratio("ms", COMPILE, LOSSOPS), at_least=1.0,
           reason="Compiled code holds all logits, and so reads the weight once where chunks read "
           "it, and read and write its gradient, eight times."),
    Target("losses without kernels, 16 rows of 10, over torch's own time", "others_tiny",
           ratio("us", LOSSOPS, EAGER), at_most=1.25,
           reason="The checks of a call are in Python."),
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
    """Measures the losses. Returns one row per result."""
    wanted, parts, rows = list(wanted), set(parts), []
    for device in devices() if pieces(wanted, parts) else ():
        work = [(part, name) for part in PARTS if part in parts for name in _losses(part, wanted)]
        task = {"work": work, "device": device, "quick": quick}
        for row in _in_process(task, "benchmarks.bench.others"):
            rows.append(row)
            advance(f"{row['kind'].partition('_')[2]} {row['loss']} {row['case']}")
    return rows


def pieces(wanted: Iterable[Other], parts: Iterable[str] = PARTS) -> int:
    """How many times ``bench`` calls ``advance``."""
    wanted = list(wanted)
    return len(devices()) * sum(len(_losses(part, wanted)) for part in set(PARTS) & set(parts))


def _losses(part: str, wanted: Iterable[Other]) -> list[str]:
    """The names of the losses that have a part."""
    return [o.name for o in wanted if o.name == LINEAR or part not in OF_ONE]


class Steps:
    """Training steps of a linear layer and its loss, in float32."""

    def __init__(self, rows: int, features: int, classes: int, device: str):
        make: dict[str, Any] = {
            "device": device, "generator": torch.Generator(device).manual_seed(0),
        }  # fmt: skip
        self.x = torch.randn(rows, features, **make).requires_grad_()
        self.weight = (torch.randn(classes, features, **make) / features**0.5).requires_grad_()
        self.labels = torch.randint(classes, (rows,), **make)
        self.of_logits = torch.full((rows, classes), 1e-4, device=device)  # their gradient

    def products(self) -> None:
        """Computes the logits, and the gradients with respect to both factors."""
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
            COMPILE: self.train(torch.compile(_in_two_steps, dynamic=False)),
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
    """Yields the results of a task as they become available."""
    device, linear = task["device"], None
    for part, name in task["work"]:
        row = {"loss": name, "device": device, "memory": "default"}
        if part == "tiny":
            case = "{} × {}".format(*TINY)
            times = _tiny(name, device, 3 if task["quick"] else 9)
            yield row | {"kind": "others_tiny", "case": case, "us": times}
            continue
        sizes = (2048, 16, 500) if task["quick"] else (ROWS, FEATURES, CLASSES)
        linear = linear or Steps(*sizes, device)
        row |= {"kind": f"linear_{part}", "case": "{} × {} to {}".format(*sizes)}
        if part == "step":
            clock = clock_for(device, False, linear.weight.nbytes)
            yield row | {"ms": interleaved(linear.contenders(), 3, clock)}
        else:
            yield row | {"logits": _memory(linear, device)}


def _tiny(name: str, device: str, rounds: int) -> dict[str, float]:
    """Times of a training step in float32."""
    (other,) = (other for other in OTHERS if other.name == name)
    steps = {}
    for contender, module in ((LOSSOPS, lossops.functional), (EAGER, torch_functional)):
        if hasattr(module, name):
            generator = torch.Generator().manual_seed(0)
            tensors, loss = other.case(getattr(module, name), generator, *TINY)
            tensors = [tensor.to(device, torch.float32).requires_grad_() for tensor in tensors]
            steps[contender] = _trained(loss, tensors)
    with one_thread():
        return interleaved_blocks(steps, 2 * rounds, 4, clock_for(device, False, 0))


def _trained(loss: Callable[..., torch.Tensor], tensors: list[torch.Tensor]) -> Step:
    def step() -> None:
        for tensor in tensors:
            tensor.grad = None
        loss(*tensors).backward()

    return step


def _memory(steps: Steps, device: str) -> dict[str, float]:
    gradients = steps.x.nbytes + steps.weight.nbytes
    held = {}
    for name, step in steps.contenders().items():
        if name != PRODUCTS:
            step()  # compiles
            steps.x.grad = steps.weight.grad = None
            held[name] = (peak_bytes(step, device) - gradients) / steps.of_logits.nbytes
    return held


def tables(rows: Iterable[Row]) -> list[Table]:
    """Tables of all measurements."""
    rows, made = list(rows), []
    for device in dict.fromkeys(row["device"] for row in rows):
        here = [row for row in rows if row["device"] == device]
        held = {r["case"]: r["logits"] for r in here if r["kind"] == "linear_memory"}
        made += [
            _of_linear(row, held.get(row["case"], {}))
            for row in here
            if row["kind"] == "linear_step"
        ]
        if tiny := [row for row in here if row["kind"] == "others_tiny"]:
            where = f"{tiny[0]['case']} of losses without kernels on {device}"
            made.append(calls(f"A step over {where}: what a call costs", tiny))
    return made


def _of_linear(row: Row, held: dict[str, float]) -> Table:
    table = Table(
        f"linear_cross_entropy on {row['device']}: {row['case']}, float32",
        ("", "a step, ms", "over its products", "memory beyond inputs and gradients, logits"),
        note="products: the three matrix products alone. eager: cross_entropy of linear; compile: "
        "the same compiled. chunked: torch's linear_cross_entropy with its default options.",
    )
    for name, ms in row["ms"].items():
        relative = number(_ratio(row["ms"], name, PRODUCTS))
        table.add(name, number(ms, 0), relative, number(held.get(name), 3))
    return table


if __name__ == "__main__":
    for result in run(json.load(sys.stdin)):
        print(json.dumps(result), flush=True)
