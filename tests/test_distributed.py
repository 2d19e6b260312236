"""Data parallelism and gradient accumulation; programs that are exported."""

from __future__ import annotations

import faulthandler
import os
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from conftest import cpu_only, make
from test_value import pair
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from lossops import functional, nn, specs
from lossops.softmax_specs import ROW_SPECS

PROCESSES, MICRO_BATCHES = 2, 3
LOSSES = {
    "cross_entropy": lambda x, y, n: functional.cross_entropy(x, y, normalizer=n),
    "linear_cross_entropy": lambda x, y, n: functional.linear_cross_entropy(
        x, torch.eye(6, dtype=x.dtype), y, normalizer=n, options=SimpleNamespace(batch_chunk_size=2)
    ),
    "mse_loss": lambda x, y, n: functional.mse_loss(x, x.detach().roll(1, 1), reduction="sum") / n,
}


def _model() -> torch.nn.Module:
    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6))


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows for all processes and micro-batches, of which not all have as many labels that count."""
    torch.manual_seed(8)
    rows = PROCESSES * MICRO_BATCHES * 5
    labels = torch.randint(6, (rows,))
    labels[torch.rand(rows) < torch.linspace(0, 0.9, rows)] = -100
    return torch.randn(rows, 4), labels


def _count(name: str, labels: torch.Tensor) -> int:
    return 6 * len(labels) if name == "mse_loss" else int((labels != -100).sum())


def _train(rank: int, store: str, name: str, folder: str) -> None:
    faulthandler.dump_traceback_later(120, exit=True)  # rather than to wait forever
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=60)
    )
    model = DistributedDataParallel(_model())
    input, labels = _batch()
    # DistributedDataParallel divides by the number of processes.
    normalizer = _count(name, labels) / PROCESSES
    parts = list(zip(input.chunk(6), labels.chunk(6), strict=True))[rank::PROCESSES]
    for i, (x, y) in enumerate(parts):
        model.require_backward_grad_sync = i == len(parts) - 1
        LOSSES[name](model(x), y, normalizer).backward()
    torch.save([p.grad for p in model.parameters()], f"{folder}/{rank}.pt")
    dist.barrier()
    # What is freed now, with the interpreter locked, waits for threads of gloo that wait for it.
    os._exit(0)


@cpu_only
@pytest.mark.parametrize("name", LOSSES)
def test_processes_and_micro_batches_give_the_gradient_of_one_batch(name, tmp_path):
    store = f"file://{tmp_path}/store"
    arguments = (store, name, str(tmp_path))
    torch.multiprocessing.spawn(_train, arguments, nprocs=PROCESSES)
    model = _model()
    input, labels = _batch()
    LOSSES[name](model(input), labels, float(_count(name, labels))).backward()
    for rank in range(PROCESSES):
        grads = torch.load(f"{tmp_path}/{rank}.pt")
        for grad, parameter in zip(grads, model.parameters(), strict=True):
            torch.testing.assert_close(grad, parameter.grad)


SPREAD = {
    "mse_loss": lambda f, x, y: f.mse_loss(x, x.detach() + 1),
    "log_cosh_loss": lambda f, x, y: f.log_cosh_loss(x, x.detach() + 1, reduction="sum"),
    "kl_divergence": lambda f, x, y: f.kl_divergence(x, x.detach() * 2),
    "cross_entropy": lambda f, x, y: f.cross_entropy(x, y),
    "nll_loss": lambda f, x, y: f.nll_loss(x, y),
    "multi_margin_loss": lambda f, x, y: f.multi_margin_loss(x, y),
    "dice_loss": lambda f, x, y: f.dice_loss(x, x.detach().sigmoid()),
}


def _spread(rank: int, store: str, folder: str) -> None:
    faulthandler.dump_traceback_later(120, exit=True)
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=60)
    )
    mesh = init_device_mesh("cpu", (PROCESSES,))
    input, labels = _spread_batch()
    found = {}
    for name, loss in SPREAD.items():
        x, y = (distribute_tensor(t, mesh, [Shard(0)]) for t in (input, labels))
        value = loss(functional, x.requires_grad_(), y)
        value.backward()
        found[name] = value.detach().full_tensor(), x.grad.full_tensor()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # as above


def _spread_batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(9)
    return torch.randn(6, 5), torch.randint(5, (6,))


@cpu_only
def test_tensors_that_are_spread_over_processes(tmp_path):
    torch.multiprocessing.spawn(_spread, (f"file://{tmp_path}/s", str(tmp_path)), nprocs=PROCESSES)
    input, labels = _spread_batch()
    for rank in range(PROCESSES):
        found = torch.load(f"{tmp_path}/{rank}.pt")
        for name, loss in SPREAD.items():
            x = input.clone().requires_grad_()
            value = loss(functional, x, labels)
            value.backward()
            torch.testing.assert_close(found[name], (value.detach(), x.grad))


class _Loss(torch.nn.Module):
    def __init__(self, function, options):
        super().__init__()
        self.function, self.options = function, options

    def forward(self, input, target):
        return self.function(input, target, **self.options)


@pytest.mark.parametrize("spec", specs.SPECS, ids=lambda spec: spec.name)
def test_export_elementwise(spec):
    input, target = pair(spec, 6, 3)
    batch = torch.export.Dim("batch", min=2, max=1000)
    program = torch.export.export(
        _Loss(spec.function, spec.defaults), (input, target), dynamic_shapes=({0: batch},) * 2
    )
    for numbers in ((input, target), pair(spec, 11, 3)):
        found = program.module()(*numbers)
        torch.testing.assert_close(found, spec.function(*numbers, **spec.defaults))


@pytest.mark.parametrize("row", ROW_SPECS, ids=lambda row: row.name)
def test_export_rows(row):
    input, target = make.randn(6, 5), torch.randint(5, (6,), device=make.randn(1).device)
    if row.name == "nll_loss":
        input = input.log_softmax(1)
    batch = torch.export.Dim("batch", min=2, max=1000)
    program = torch.export.export(
        _Loss(row.function, {}), (input, target), dynamic_shapes=({0: batch},) * 2
    )
    for numbers in ((input, target), (input[:4], target[:4])):
        torch.testing.assert_close(program.module()(*numbers), row.function(*numbers))


def test_export_a_model_with_its_loss():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 5)
            self.loss = nn.CrossEntropyLoss(label_smoothing=0.1)

        def forward(self, x, y):
            return self.loss(self.layer(x), y)

    model, x, y = Model(), torch.randn(3, 4), torch.tensor([0, 4, 2])
    program = torch.export.export(model, (x, y))
    torch.testing.assert_close(program.module()(x, y), model(x, y))
