"""Measurements of losses over rows of class scores by ``make gpu``, with stand-ins for other
libraries: what is measured, what it is compared with, and that results are attributed correctly."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
import torch.nn.functional as torch_functional

from benchmarks.bench.softmax_steps import Case, Rows
from benchmarks.gpu import clock, contenders, goals, measure, part, row_tables, rows, tables, visits
from lossops.specs.elementwise import SPECS
from lossops.specs.softmax import ROW_SPECS, Sample
from lossops.verify.tables import NOTHING, to_text

SINGLE, HALF = torch.float32, torch.bfloat16
PAIR = Sample(target="logits")
LABELS = Case("cross_entropy", (6, 40))
VISIT = visits.RowVisit(LABELS, SINGLE)


def session(tmp_path, seconds=100.0) -> measure.Session:
    task = part.Task(tmp_path / "rows", seconds, dry=True)
    return measure.Session(task, visits.DRY, clock.WallClock())


def emitted(tmp_path) -> dict:
    """The rows of one visit, by what was measured."""
    return {row["what"]: row for row in part.read_rows(tmp_path / "rows")}


# What is measured


def test_what_the_goals_speak_of_is_measured():
    found = {(v.case.loss, v.case.shape, v.dtype) for v in visits.row_visits(dry=False)}
    vocabularies = [(4096, 4096), (4096, 32_000), (2048, 128_256), (1024, 262_144)]
    assert {("cross_entropy", shape, HALF) for shape in vocabularies} <= found
    assert {(f"{name}_divergence", (4096, 32_000), HALF) for name in ("kl", "js")} <= found
    assert ("cross_entropy", (8, 21, 512, 512), SINGLE) in found
    assert ("cross_entropy", (4096, 32_000), SINGLE) in found
    for visit in visits.row_visits(dry=False):
        assert visit.whats == (visits.STEP, visits.FORWARD)
        divergence = visit.case.loss != "cross_entropy"
        assert (visit.passes(visits.STEP), visit.passes(visits.FORWARD)) == (
            (3, 2) if divergence else (2, 1)
        )
        assert visit.case.sample == visit.case.spec.samples[0]
    compiled = {v.case.loss for v in visits.row_visits(dry=False) if v.compiled}
    assert compiled == {"cross_entropy", "kl_divergence", "js_divergence"}


@pytest.mark.parametrize("dry", [False, True])
def test_both_families_take_turns(dry):
    sizes = visits.DRY if dry else visits.GPU
    plan = visits.plan(sizes, dry)
    over_rows = list(visits.row_visits(dry))
    assert [v for v in plan if isinstance(v, visits.Visit)] == list(visits.visits(sizes, dry))
    assert [v for v in plan if isinstance(v, visits.RowVisit)] == over_rows
    # They alternate with the first elementwise visits, never two in a row.
    first = plan[: 2 * len(SPECS) + len(over_rows)]
    places = [i for i, v in enumerate(first) if isinstance(v, visits.RowVisit)]
    assert len(places) == len(over_rows)
    assert all(after - before > 1 for before, after in itertools.pairwise(places))


def test_dry_shapes_are_tiny_and_differ():
    found = [(v.case.loss, v.case.shape, v.dtype) for v in visits.row_visits(dry=True)]
    assert len(set(found)) == len(found)
    assert all(visit.count < 2000 for visit in visits.row_visits(dry=True))


def test_rows_that_do_not_fit_into_memory_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "free_bytes", lambda device: VISIT.held * 4 * 240 - 1)
    with pytest.raises(part.SkippedError, match="may be needed"):
        measure.run_visit(session(tmp_path), VISIT)


# The contenders

PEER_FILES = {
    "liger_kernel/__init__.py": "",
    "liger_kernel/transformers/__init__.py": """
import torch

class LigerKLDIVLoss(torch.nn.KLDivLoss):
    pass

class LigerJSD(torch.nn.Module):
    def forward(self, log_q, log_p, shift_labels=None):
        q, p = log_q.float().exp(), log_p.float().exp()
        log_m = (0.5 * (p + q)).log()
        return 0.5 * (p * (log_p - log_m) + q * (log_q - log_m)).sum() / len(log_q)
""",
    "liger_kernel/transformers/functional.py": """
import torch

seen = []

class Overwriting(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target):
        seen.append(input.detach().clone())
        value = torch.nn.functional.cross_entropy(input.detach(), target)
        gradient = input.detach().float().softmax(1)
        gradient[torch.arange(len(target)), target] -= 1
        input.data.copy_(gradient / len(target))
        ctx.save_for_backward(input.detach())
        return value

    @staticmethod
    def backward(ctx, grad_output):
        return ctx.saved_tensors[0], None

def liger_cross_entropy(input, target, weight=None):
    return Overwriting.apply(input, target)
""",
    "quack/__init__.py": "",
    "quack/cross_entropy.py": """
import torch

def cross_entropy(x, target, lse_partial=None, weight=None, ignore_index=-100, reduction="none"):
    return torch.nn.functional.cross_entropy(x, target, reduction=reduction)
""",
}
PEERS = ("liger_kernel", "quack")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The other libraries, with the names of their modules, functions and arguments."""

    def forget():
        for name in [n for n in sys.modules if n.split(".")[0] in PEERS]:
            del sys.modules[name]

    for name, text in PEER_FILES.items():
        path = tmp_path / "packages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    forget()
    monkeypatch.syspath_prepend(tmp_path / "packages")
    yield
    forget()


@pytest.mark.parametrize("dtype", [SINGLE, HALF])
@pytest.mark.parametrize(
    ("case", "having"),
    [
        (LABELS, PEERS),
        (Case("kl_divergence", (6, 40), PAIR), PEERS[:1]),
        (Case("js_divergence", (6, 40), PAIR), PEERS[:1]),
    ],
    ids=lambda value: value.loss if isinstance(value, Case) else "",
)
def test_other_libraries_are_measured(installed, tmp_path, case, having, dtype):
    measure.run_visit(session(tmp_path), visits.RowVisit(case, dtype))
    for row in emitted(tmp_path).values():
        assert set(row["contenders"]) == {"native", "eager", *having}
        assert not row["errors"]
        assert not set(row["absent"]) & set(having)
        assert all(numbers["of_copy"] > 0 for numbers in row["contenders"].values())


def test_other_libraries_that_are_not_there_are_named(tmp_path):
    measure.run_visit(session(tmp_path), VISIT)
    for row in emitted(tmp_path).values():
        assert all("No module named" in row["absent"][name] for name in PEERS)


@pytest.mark.parametrize(
    "case",
    [
        Case("cross_entropy", (2, 21, 4, 4)),
        Case("cross_entropy", (6, 40), Sample({"label_smoothing": 0.1})),
    ],
    ids=["pictures", "options"],
)
def test_other_libraries_are_compared_where_they_do_the_same(installed, tmp_path, case):
    measure.run_visit(session(tmp_path), visits.RowVisit(case, SINGLE))
    for row in emitted(tmp_path).values():
        assert set(row["contenders"]) == {"native", "eager"}
        assert all("nothing but rows" in row["absent"][name] for name in PEERS)


def test_who_overwrites_the_scores_harms_nobody(installed, tmp_path, monkeypatch):
    """Nor does it harm itself: each of its calls finds the scores."""
    made = []
    monkeypatch.setattr(visits, "Rows", lambda *given: made.append(Rows(*given)) or made[0])
    measure.run_visit(session(tmp_path), VISIT)
    from liger_kernel.transformers.functional import seen

    (tensors,) = made
    torch.testing.assert_close(tensors.input, Rows(LABELS, SINGLE, "cpu").input, rtol=0, atol=0)
    # One check; and for a step and a forward, three warm-up calls and the timed ones.
    assert len(seen) == 1 + 2 * (3 + visits.DRY.rounds)
    for scores in seen:
        torch.testing.assert_close(scores, tensors.input.detach(), rtol=0, atol=0)


def test_scores_are_restored_before_the_clock_starts(installed, monkeypatch):
    made, states = [], []

    class Seen(rows.Own):
        def __init__(self, tensors):
            super().__init__(tensors)
            made.append(self)

    monkeypatch.setattr(rows, "Own", Seen)
    tensors = Rows(LABELS, SINGLE, "cpu")
    found, _ = contenders.row_contenders(LABELS, {}, "cpu", compiled=False)
    timed = {
        name: measure.timed_call(visits.STEP, each, tensors, torch.tensor(1.0))
        for name, each in found.items()
    }
    (own,) = made  # one contender has its own copy

    def tick(call):
        states.append(torch.equal(own.input, tensors.input))
        call()
        states.append(torch.equal(own.input, tensors.input))
        # The gradient uses the memory of the scores, as in training, and no copy is timed.
        assert own.input.grad.data_ptr() == own.input.data_ptr()
        return 1.0

    clock.interleaved({"liger_kernel": timed["liger_kernel"]}, 2, tick)
    assert states == [True, False] * 2


# Wrong results are not measured


def _negative(input, target):
    class Negative(torch.autograd.Function):
        @staticmethod
        def forward(ctx, input):
            return input.clone()

        @staticmethod
        def backward(ctx, gradient):
            return -gradient

    return torch_functional.cross_entropy(Negative.apply(input), target)


def _refuses(input, target):
    raise ValueError("no such kernel")


WRONG = {
    "sum": (lambda x, y: torch_functional.cross_entropy(x, y, reduction="sum"), "its value is"),
    "rows": (lambda x, y: torch_functional.cross_entropy(x, y, reduction="none"), "scalar"),
    "nan": (lambda x, y: torch_functional.cross_entropy(x, y) * float("nan"), "nan% off"),
    "value": (lambda x, y: torch_functional.cross_entropy(x, y) + 1, "its value is"),
    "gradient": (_negative, "its gradient is 200.0% off"),
    "detached": (lambda x, y: torch_functional.cross_entropy(x.detach(), y), "does not require"),
    "labels alone": (
        lambda x, y: (
            torch_functional.cross_entropy(x, y).detach()
            + (x.detach() - x).gather(1, y[:, None]).mean()
        ),
        "its gradient is",
    ),
    "error": (_refuses, "ValueError: no such kernel"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("name", ["native", "quack"])
def test_wrong_results_are_not_measured(tmp_path, monkeypatch, name, what):
    loss, words = WRONG[what]
    found, absent = contenders.row_contenders(LABELS, {}, "cpu", compiled=False)
    found[name] = contenders.Contender(name, loss)
    monkeypatch.setattr(measure, "row_contenders", lambda *_: (found, absent))
    both = session(tmp_path)
    measure.run_visit(both, VISIT)
    measured = emitted(tmp_path)
    assert set(measured) == {visits.STEP, visits.FORWARD}
    for row in measured.values():
        assert name not in row["contenders"]
        assert "eager" in row["contenders"]
        assert words in row["absent"][name]
    assert len(both.failures) == (name == "native")
    assert all(words in failure for failure in both.failures)


@pytest.mark.parametrize("visit", [visits.RowVisit(Case(row.name, (16, 4000), row.samples[0]), HALF)
                                   for row in ROW_SPECS], ids=lambda v: v.case.loss)  # fmt: skip
def test_torchs_own_rounding_is_not_wrong(visit):
    tensors = visit.tensors("cpu")
    found, _ = contenders.row_contenders(visit.case, tensors.options, "cpu", compiled=False)
    expected = rows.of_torch(visit.case, tensors)
    for contender in found.values():
        assert not rows.wrong(contender, tensors, expected)


# Contenders receive the options of the case


@pytest.mark.parametrize("spec", ROW_SPECS, ids=lambda spec: spec.name)
def test_contenders_over_rows_get_their_options(spec):
    for sample in spec.samples:
        case = Case(spec.name, (6, 10), sample)
        tensors = Rows(case, torch.float64, "cpu")
        tensors.input.data = sample.inputs((6, 10), torch.float64, torch.Generator())
        found, _ = contenders.row_contenders(case, tensors.options, "cpu", compiled=False)
        x, y = tensors.input.detach(), tensors.target
        expected = spec.torch_call(sample)(x, y, **tensors.options)
        for contender in found.values():
            with contender.within():
                torch.testing.assert_close(contender.loss(x, y), expected)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_contenders_get_the_defaults(spec):
    """Without them, a loss would differ from the one it is compared with."""
    tensors = measure.Tensors(spec, 64, torch.float64, "cpu")
    found, _ = contenders.contenders(spec, "cpu", compiled=False)
    values = {}
    for name, contender in found.items():
        with contender.within(), torch.no_grad():
            values[name] = contender.loss(tensors.input, tensors.target)
    assert {"native", "eager"} <= set(values)
    torch.testing.assert_close(values["native"], values["eager"])


@pytest.mark.parametrize("late", [False, True])
def test_losses_over_rows_are_compiled_in_time(tmp_path, monkeypatch, late):
    asked = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda loss, dynamic: asked.append(dynamic) or loss)
    short = session(tmp_path)
    short.task.start -= 70 if late else 0
    measure.run_visit(short, visits.RowVisit(LABELS, SINGLE, compiled=True))
    step = emitted(tmp_path)[visits.STEP]
    assert ("compile" in step["contenders"]) != late
    assert asked == ([] if late else [False])
    assert step["absent"].get("compile") == ("no time was left to compile" if late else None)


# Goals and tables


def result_row(loss="cross_entropy", shape=(4096, 32_000), dtype="bfloat16", what="step", **ms):
    ms = {"native": 1.0, "eager": 4.0, "liger_kernel": 3.0, "quack": 1.0} | ms
    copy = ms.pop("copy", 0.9)
    numbers = {
        name: {"ms": time, "gb_per_s": 1000 / time, "of_copy": copy / time}
        for name, time in ms.items()
    }
    case = Case(loss, shape, Sample() if loss == "cross_entropy" else PAIR)
    return {
        "kind": visits.ROWS, "what": what, "loss": loss, "dtype": dtype, "shape": list(shape),
        "case": case.words(), "count": 1 << 27, "absent": {}, "errors": {}, "bytes": 1,
        "cold": True, "contenders": numbers,
        "yardsticks": {"copy": {"ms": copy, "gb_per_s": 1000 / copy}},
    }  # fmt: skip


CROSS_ENTROPY = ["cross entropy's step: " + words for words in (
    "share of the device copy's bandwidth", "times as fast as quack's", "times faster than Liger's"
)]  # fmt: skip
DIVERGENCES = ["divergences' step: " + words for words in (
    "share of the device copy's bandwidth", "times faster than Liger's"
)]  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "ms", "texts", "met"),
    [
        ("cross_entropy", {"copy": 0.85, "liger_kernel": 1.5}, CROSS_ENTROPY, [1, 1, 1]),
        ("cross_entropy", {"copy": 0.84}, CROSS_ENTROPY, [0, 1, 1]),
        ("cross_entropy", {"quack": 0.99}, CROSS_ENTROPY, [1, 0, 1]),
        ("cross_entropy", {"liger_kernel": 1.49}, CROSS_ENTROPY, [1, 1, 0]),
        ("kl_divergence", {"copy": 0.85, "liger_kernel": 3.0}, DIVERGENCES, [1, 1]),
        ("kl_divergence", {"copy": 0.84}, DIVERGENCES, [0, 1]),
        ("js_divergence", {"liger_kernel": 2.99}, DIVERGENCES, [1, 0]),
    ],
)  # fmt: skip
def test_goals_of_rows_are_judged(loss, ms, texts, met):
    found = [goal for goal in goals.outcomes([result_row(loss, **ms)]) if goal["measured"]]
    assert [goal["goal"] for goal in found] == texts
    assert [goal["met"] for goal in found] == [bool(each) for each in met]
    assert all(goal["backend"] == "native" for goal in found)
    target = "" if loss == "cross_entropy" else ", target logits"
    assert all(goal["where"] == f"{loss} bfloat16 4096 × 32000{target}" for goal in found)


@pytest.mark.parametrize(
    "row",
    [
        result_row(dtype="float32"),
        result_row(shape=(4096, 4095)),
        result_row(shape=(8, 5000, 16, 16)),
        result_row(what="forward"),
        result_row("total_variation"),
    ],
    ids=["float32", "few classes", "pictures", "forward", "another loss"],
)
def test_goals_of_rows_speak_of_some_steps_only(row):
    assert not any(goal["measured"] for goal in goals.outcomes([row]))


def test_goals_need_who_they_compare_with():
    row = result_row()
    del row["contenders"]["quack"]
    found = [goal for goal in goals.outcomes([row]) if "quack" in goal["goal"]]
    assert [goal["met"] for goal in found] == [None, None]
    assert any(goal["met"] for goal in goals.outcomes([row]))


def made(measured: list[dict]) -> dict:
    record = {"status": "passed", "seconds": 9.0, "reason": "", "rows": measured, "dry": False}
    return {table.title: table for table in tables.tables({"parts": {"measure": record}})}


def test_tables_of_rows():
    measured = [result_row(what=what, compile=2.5) for what in ("step", "forward")]
    measured[0]["errors"] = {"triton": "ValueError: broken"}
    found = made(measured)
    (steps,) = (t for title, t in found.items() if "training step: forward" in title)
    row = dict(zip(steps.columns, steps.rows[0], strict=True))
    assert (row["case"], row["dtype"]) == ("4096 × 32000", "bfloat16")
    assert (row["native"], row["triton"], row["liger_kernel"]) == ("1.000", "error", "3.000")
    assert (row["eager / native"], row["quack / native"]) == ("4.00", "1.00")
    (speeds,) = (t for title, t in found.items() if "achieved bandwidth" in title)
    row = dict(zip(speeds.columns, speeds.rows[0], strict=True))
    assert (row["native"], row["quack"]) == ("1000 (0.90)", "1000 (0.90)")
    assert (row["triton"], row["copy"]) == (NOTHING, "1111")
    (forwards,) = (t for title, t in found.items() if "forward alone" in title)
    assert len(forwards.rows) == len(steps.rows) == 1
    assert "2 measurements" in to_text(found["What was run"])
    assert not any("class scores" in title for title in made([]))


def test_why_somebody_has_no_number_is_told():
    row = result_row()
    row["absent"] = {
        "quack": "wrong: its value is 50.0% off torch's",
        "liger_kernel": "ModuleNotFoundError: No module named 'liger_kernel'",
        "compile": "not compiled for this size",
    }
    table = row_tables.tables([row, row])[-1]
    (cells,) = table.rows
    assert (cells[0], cells[-1]) == ("quack", "wrong: its value is 50.0% off torch's")
