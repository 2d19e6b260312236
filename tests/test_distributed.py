"""Data parallelism, gradient accumulation, DTensor, and exported programs."""

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
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.parallel import loss_parallel
from torch.nn.parallel import DistributedDataParallel

from lossops import functional, nn
from lossops.specs import elementwise as specs
from lossops.specs.softmax import ROW_SPECS

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
    """Rows for all processes and micro-batches, which have different numbers of valid labels."""
    torch.manual_seed(8)
    rows = PROCESSES * MICRO_BATCHES * 5
    labels = torch.randint(6, (rows,))
    labels[torch.rand(rows) < torch.linspace(0, 0.9, rows)] = -100
    return torch.randn(rows, 4), labels


def _count(name: str, labels: torch.Tensor) -> int:
    return 6 * len(labels) if name == "mse_loss" else int((labels != -100).sum())


def _train(rank: int, store: str, name: str, folder: str) -> None:
    faulthandler.dump_traceback_later(120, exit=True)  # instead of waiting forever
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
    # Regular cleanup can deadlock: it holds the GIL while it waits for gloo threads that need it.
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


# Functions of scores x, labels y, class weights w and one distribution per row q.
SPREAD = {
    "mse_loss": lambda x, y, w, q, **k: functional.mse_loss(x, q, **k),
    "mse_loss, weighted": lambda x, y, w, q, **k: functional.mse_loss(x, q, weight=q + 1, **k),
    "log_cosh_loss": lambda x, y, w, q, **k: functional.log_cosh_loss(x, q, **k),
    "bce_with_logits": lambda x, y, w, q, **k: functional.binary_cross_entropy_with_logits(
        x, q, pos_weight=w, **k
    ),
    "gaussian_nll_loss": lambda x, y, w, q, **k: functional.gaussian_nll_loss(x, q, q + 0.1, **k),
    "kl_divergence": lambda x, y, w, q, **k: functional.kl_divergence(
        x, q, target_form="probs", **k
    ),
    "js_divergence of labels": lambda x, y, w, q, **k: functional.js_divergence(x, y, **k),
    "cross_entropy": lambda x, y, w, q, **k: functional.cross_entropy(x, y, **k),
    "cross_entropy, all": lambda x, y, w, q, **k: functional.cross_entropy(
        x, y, w, label_smoothing=0.2, z_loss=0.1, softcap=2.0, temperature=1.5, **k
    ),
    "cross_entropy, rows": lambda x, y, w, q, reduction: sum(
        each.square().sum() for each in functional.cross_entropy(
            x, q, w, return_lse=True, return_entropy=True, return_accuracy=True,
            reduction=reduction,
        )
    ),
    "cross_entropy of probabilities": lambda x, y, w, q, **k: functional.cross_entropy(
        x, q, w, label_smoothing=0.2, **k
    ),
    "nll_loss": lambda x, y, w, q, **k: functional.nll_loss(x.log_softmax(1), y, w, **k),
    "soft_cross_entropy": lambda x, y, w, q, **k: functional.soft_cross_entropy(
        x.log_softmax(1), q, input_form="log_probs", target_form="probs", **k
    ),
    "focal_loss": lambda x, y, w, q, **k: functional.focal_loss(x, y, 0.3, **k),
    "multi_margin_loss": lambda x, y, w, q, **k: functional.multi_margin_loss(
        x, y.clamp(0), weight=w, **k
    ),
    "cosine_embedding_loss": lambda x, y, w, q, **k: functional.cosine_embedding_loss(
        x, q, (y > 1) * 2 - 1, **k
    ),
    "triplet_margin_loss": lambda x, y, w, q, **k: functional.triplet_margin_loss(
        x, q, q.square(), **k
    ),
    "dice_loss": lambda x, y, w, q, **k: functional.dice_loss(x, q, **k),
    "linear_cross_entropy": lambda x, y, w, q, **k: functional.linear_cross_entropy(x, q, y, **k),
}  # fmt: skip
PARALLEL = [name for name in SPREAD if "entropy" in name] + ["nll_loss", "focal_loss"]
REDUCTIONS = ("none", "mean", "sum", "sample")


def _spread_batch() -> tuple[torch.Tensor, ...]:
    """A batch whose sizes are not divisible by the number of processes."""
    torch.manual_seed(9)
    y = torch.tensor([0, 4, -100, 2, 2, 4, 1])
    return torch.randn(7, 5), y, torch.rand(5) + 0.1, torch.rand(7, 5)


def _spread_losses(tensors, names=SPREAD):
    """Value and gradient of each loss. For several values, uses the sum of their squares."""
    for name in names:
        for reduction in REDUCTIONS:
            x, *others = tensors
            x = x.detach().requires_grad_()
            if name == "linear_cross_entropy":  # the layer's weight is q, of five classes
                others[2] = others[2][:5]
            loss = SPREAD[name](x, *others, reduction=reduction)
            loss = loss.square().sum() if loss.dim() else loss
            loss.backward()
            yield (name, reduction), (loss.detach(), x.grad)


def _spread(rank: int, store: str, folder: str) -> None:
    faulthandler.dump_traceback_later(180, exit=True)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=60)
    )
    line, table = (init_device_mesh("cpu", shape) for shape in ((PROCESSES,), (1, PROCESSES)))
    found = {}
    for mesh, *placements in (
        (line, Replicate()),
        (line, Shard(0)),
        (line, Shard(1)),
        (table, Shard(0), Shard(1)),
    ):
        rows = [Replicate() if p == Shard(1) else p for p in placements]
        x, y, w, q = _spread_batch()
        tensors = [
            distribute_tensor(x, mesh, placements),
            distribute_tensor(y, mesh, rows),
            distribute_tensor(w, mesh, [Replicate()] * mesh.ndim),
            distribute_tensor(q, mesh, placements),
        ]
        where = str(placements)
        for key, numbers in _spread_losses(tensors):
            found[(where, *key)] = [number.full_tensor() for number in numbers]
        if Shard(1) in placements:
            with loss_parallel():
                for key, numbers in _spread_losses(tensors, PARALLEL):
                    found[("in parallel", where, *key)] = [n.full_tensor() for n in numbers]
            if mesh is line:  # where torch's own losses accept plain labels and weights
                tensors[1:3] = y, w
                for key, numbers in _spread_losses(tensors, PARALLEL[:3]):
                    found[("plain labels", *key)] = [n.full_tensor() for n in numbers]
        # All processes raise, including those without such a row.
        tensors[1] = distribute_tensor(torch.where(y == 1, 5, y), mesh, rows)
        for loss in (functional.cross_entropy, functional.multi_margin_loss):
            with pytest.raises((IndexError, RuntimeError), match="out of"):
                loss(*tensors[:2])
        with pytest.raises(ValueError, match="negative"):
            functional.gaussian_nll_loss(tensors[0], tensors[3], tensors[0])
    x, y = (distribute_tensor(t, line, [p]) for t, p in ((x, Shard(1)), (y, Replicate())))
    with loss_parallel():
        log_probs = x.requires_grad_().log_softmax(1).double()
        with pytest.raises(RuntimeError, match="should come of log_softmax itself"):
            functional.nll_loss(log_probs, y)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # as above


@cpu_only
def test_tensors_that_are_spread_over_processes(tmp_path):
    torch.multiprocessing.spawn(_spread, (f"file://{tmp_path}/s", str(tmp_path)), nprocs=PROCESSES)
    expected = dict(_spread_losses(_spread_batch()))
    for rank in range(PROCESSES):
        found = torch.load(f"{tmp_path}/{rank}.pt")
        assert len(found) == len(REDUCTIONS) * (4 * len(SPREAD) + 2 * len(PARALLEL) + 3)
        for key, numbers in found.items():
            torch.testing.assert_close(
                numbers, list(expected[key[-2:]]), equal_nan=True, msg=lambda m, k=key: f"{k}: {m}"
            )


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
