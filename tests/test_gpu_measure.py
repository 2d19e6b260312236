"""What ``make gpu`` measures, without a GPU and with stand-ins for other libraries: the contenders,
their results, the clock, the goals and the tables."""

from __future__ import annotations

import itertools
import sys
from unittest.mock import MagicMock

import pytest
import torch
import torch.nn.functional as torch_functional
from conftest import expect_ops

import lossops
from benchmarks.bench.cases import PICTURES, Elements, Rows
from benchmarks.gpu import checks, clock, contenders, goals, measure, part, tables, visits
from lossops.specs.elementwise import SPECS
from lossops.specs.softmax import ROW_SPECS, Sample
from lossops.verify.tables import NOTHING, Table, to_text

SINGLE, HALF = torch.float32, torch.bfloat16
PAIR = Sample(target="logits")
ELEMENTS, LABELS = Elements("mse_loss", (256,)), Rows("cross_entropy", (6, 40))
WHATS = (visits.STEP, visits.SCALED, visits.FORWARD)
VISITS = [visits.Visit(case, SINGLE, WHATS) for case in (ELEMENTS, LABELS)]
each_family = pytest.mark.parametrize("visit", VISITS, ids=lambda visit: visit.case.loss)


@pytest.fixture
def session(tmp_path) -> measure.Session:
    task = part.Task(tmp_path / "rows", 100.0, dry=True)
    return measure.Session(task, visits.DRY, clock.WallClock())


def emitted(session) -> dict:
    """The rows of one visit, by what was measured."""
    return {row["what"]: row for row in part.read_rows(session.task.rows)}


# What is measured


def test_what_the_goals_speak_of_is_measured():
    found = list(visits.row_visits(dry=False))
    cases = {(v.case.loss, v.case.shape, v.dtype) for v in found}
    vocabularies = [(4096, 4096), (4096, 32_000), (2048, 128_256), (1024, 262_144)]
    assert {("cross_entropy", shape, HALF) for shape in vocabularies} <= cases
    assert {(f"{name}_divergence", (4096, 32_000), HALF) for name in ("kl", "js")} <= cases
    assert {("cross_entropy", shape, SINGLE) for shape in (PICTURES, (4096, 32_000))} <= cases
    for visit in found:
        assert visit.whats == (visits.STEP, visits.FORWARD)
        passes = (2, 1) if visit.case.loss == "cross_entropy" else (3, 2)
        assert tuple(visit.passes(what) for what in visit.whats) == passes
        assert visit.case.sample == visit.case.spec.samples[0]
    losses = {"cross_entropy", "kl_divergence", "js_divergence"}
    assert {v.case.loss for v in found if v.compiled} == losses
    dry = [(v.case.loss, v.case.shape, v.dtype) for v in visits.row_visits(dry=True)]
    assert len(set(dry)) == len(dry) == len(found)
    assert all(visit.case.count < 2000 for visit in visits.row_visits(dry=True))


def test_the_most_telling_comes_first():
    plan = list(visits.visits(visits.GPU, dry=False))
    first = plan[: 2 * len(SPECS)]
    assert {(v.case.loss, v.dtype) for v in first} == {
        (spec.name, dtype) for spec in SPECS for dtype in visits.DTYPES
    }
    assert all(v.case.count == 1 << 26 and v.whats[0] == visits.STEP and v.compiled for v in first)
    assert [first[0].passes(what) for what in WHATS] == [3, 5, 2]
    assert all(v.whats == (visits.GRAPH,) for v in plan[-4 * len(SPECS) :])
    assert {v.case.count for v in plan} == {1 << 10, 1 << 16, 1 << 26, 1 << 28}
    assert sum(v.compiled for v in visits.visits(visits.DRY, dry=True)) == 1


@pytest.mark.parametrize("dry", [False, True])
def test_both_families_take_turns(dry):
    sizes = visits.DRY if dry else visits.GPU
    plan, over_rows = visits.plan(sizes, dry), list(visits.row_visits(dry))
    assert [v for v in plan if not v.checked] == list(visits.visits(sizes, dry))
    assert [v for v in plan if v.checked] == over_rows
    # They alternate with the first elementwise visits, never two in a row.
    places = [i for i, v in enumerate(plan[: 2 * len(SPECS) + len(over_rows)]) if v.checked]
    assert len(places) == len(over_rows)
    assert all(after - before > 1 for before, after in itertools.pairwise(places))


def run(tmp_path, monkeypatch, plan, seconds=100.0) -> list[dict]:
    """The part, with another plan."""
    monkeypatch.setattr(visits, "plan", lambda sizes, dry: plan)
    task = part.Task(tmp_path / "rows", seconds, dry=True)
    measure.measure(task)
    return part.read_rows(task.rows)


def test_failures_of_ours_fail_the_part(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "run_visit", lambda s, v: s.failures.append("native: broken"))
    with pytest.raises(part.FailedError, match="native: broken"):
        run(tmp_path, monkeypatch, VISITS)


def test_what_no_time_was_left_for_is_named(tmp_path, monkeypatch):
    with pytest.raises(part.OutOfTimeError, match="2 measurements"):
        run(tmp_path, monkeypatch, VISITS, measure.LAST_SECONDS - 1)
    (row,) = part.rows_of(part.read_rows(tmp_path / "rows"), "left out")
    assert row["visits"] == list(map(str, VISITS))


def test_what_does_not_fit_into_memory_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "free_bytes", lambda device: 14 * 4 * 256)
    rows = run(tmp_path, monkeypatch, [*VISITS, visits.Visit(Elements("mse_loss", (257,)), SINGLE)])
    omitted = part.rows_of(rows, "omitted")
    assert len(omitted) == 2  # the first visit fits
    assert all("may be needed" in row["reason"] for row in omitted)


@each_family
@pytest.mark.parametrize("late", [False, True])
def test_losses_are_compiled_in_time(session, monkeypatch, visit, late):
    asked = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda loss, dynamic: asked.append(dynamic) or loss)
    session.task.start -= 70 if late else 0
    measure.run_visit(session, visits.Visit(visit.case, SINGLE, compiled=True))
    found = emitted(session)
    assert ("compile" in found[visits.STEP]["contenders"]) != late
    assert "compile" not in found[visits.FORWARD]["contenders"]
    assert asked == ([] if late else [False])
    why = "no time was left to compile" if late else None
    assert found[visits.STEP]["absent"].get("compile") == why


@pytest.mark.parametrize("case", [ELEMENTS, LABELS, Rows("kl_divergence", (6, 40), PAIR)])
def test_calls_do_what_they_say(case):
    problem, grad_output = case.problem(SINGLE, "cpu"), torch.tensor(measure.GRAD_OUTPUT)
    leaf = problem.input.detach().requires_grad_()
    case.in_torch(leaf, *problem.others).backward()
    for what, scale in ((visits.STEP, 1.0), (visits.SCALED, measure.GRAD_OUTPUT)):
        call = measure.call_of(what, case.ours, problem, grad_output)
        for _ in range(2):  # gradients are new, not accumulated
            call()
            torch.testing.assert_close(problem.input.grad, scale * leaf.grad)
    problem.forget()
    measure.call_of(visits.FORWARD, case.ours, problem, grad_output)()
    assert problem.input.grad is None


@pytest.mark.parametrize("case", [ELEMENTS, LABELS, Rows("kl_divergence", (6, 40), PAIR)])
@pytest.mark.parametrize("what", WHATS)
def test_the_copy_moves_as_many_bytes(case, what):
    visit, problem = visits.Visit(case, HALF), case.problem(HALF, "cpu")
    moved = visit.passes(what) * problem.bytes
    found = measure.yardsticks(what, problem, moved)
    copied = found[measure.COPY].call()
    assert 2 * copied.numel() * copied.itemsize == moved
    assert (measure.ADD in found) == (what == visits.STEP and case is not LABELS)


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
        (Rows("kl_divergence", (6, 40), PAIR), PEERS[:1]),
        (Rows("js_divergence", (6, 40), PAIR), PEERS[:1]),
        (Rows("cross_entropy", (2, 21, 4, 4)), None),
        (Rows("cross_entropy", (6, 40), Sample({"label_smoothing": 0.1})), None),
        (ELEMENTS, ()),
    ],
    ids=lambda value: f"{value.loss} {value.words()}" if hasattr(value, "loss") else "",
)
def test_other_libraries_are_measured_where_they_do_the_same(
    installed, session, case, having, dtype
):
    measure.run_visit(session, visits.Visit(case, dtype))
    for row in emitted(session).values():
        assert set(row["contenders"]) == {"native", "eager", *(having or ())}
        assert not row["errors"]
        assert all(numbers["of_copy"] > 0 for numbers in row["contenders"].values())
        why = "takes nothing but rows of scores, without options"
        assert {n: row["absent"].get(n) for n in PEERS} == dict.fromkeys(
            PEERS, why if having is None else None
        )
    assert not session.failures


def test_other_libraries_that_are_not_there_are_named(session):
    measure.run_visit(session, VISITS[1])
    for row in emitted(session).values():
        assert all("No module named" in row["absent"][name] for name in PEERS)


def test_peers_are_an_entry_in_a_table(session, monkeypatch):
    def broken():
        raise ImportError("built for another torch")

    both = (
        contenders.Peer("json", "pytest", {"mse_loss": lambda: torch_functional.mse_loss}),
        contenders.Peer("no_such_library", "nothing", {"mse_loss": broken}),
    )
    monkeypatch.setattr(contenders, "PEERS", both)
    measure.run_visit(session, VISITS[0])
    row = emitted(session)[visits.STEP]
    assert row["contenders"]["json"]["ms"] > 0
    assert "another torch" in row["absent"]["no_such_library"]
    found = contenders.peers(["mse_loss", "l1_loss"])
    assert [peer["found"] for peer in found] == [True, False]
    assert found[0]["has"] == ["mse_loss"]
    assert found[0]["version"] == pytest.__version__
    assert found[1]["why_not"] == "not installed"


def test_who_overwrites_the_scores_harms_nobody(installed, session, monkeypatch):
    """Nor does it harm itself: each of its calls finds the scores, which are restored before the
    clock starts."""
    made, states = [], []

    class Seen(checks.Own):
        def __init__(self, problem):
            super().__init__(problem)
            made.append((self, problem))

    class Clock(clock.WallClock):
        def cold(self, call):
            (own, problem) = made[-1]
            before = torch.equal(own.input, problem.input)
            call()
            states.append((before, torch.equal(own.input, problem.input)))
            if own.input.grad is not None:
                # The gradient uses the memory of the scores, as in training, and no copy is timed.
                assert own.input.grad.data_ptr() == own.input.data_ptr()
            return 1.0

    monkeypatch.setattr(checks, "Own", Seen)
    session.clock = Clock()
    measure.run_visit(session, visits.Visit(LABELS, SINGLE))
    from liger_kernel.transformers.functional import seen

    scores = LABELS.problem(SINGLE, "cpu").input.detach()
    torch.testing.assert_close(made[0][1].input.detach(), scores, rtol=0, atol=0)
    # One check; and for a step and a forward, three warm-up calls and the timed ones.
    assert len(seen) == 1 + 2 * (3 + visits.DRY.rounds)
    for found in seen:
        torch.testing.assert_close(found, scores, rtol=0, atol=0)
    assert states.count((True, False)) == 2 * visits.DRY.rounds  # its own calls


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
def test_wrong_results_are_not_measured(session, monkeypatch, name, what):
    loss, words = WRONG[what]
    found, absent = contenders.contenders(LABELS, "cpu", compiled=False)
    found[name] = contenders.Contender(name, loss)
    monkeypatch.setattr(measure, "contenders", lambda *_: (found, absent))
    measure.run_visit(session, VISITS[1])
    measured = emitted(session)
    assert set(measured) == set(WHATS)
    for row in measured.values():
        assert name not in row["contenders"]
        assert "eager" in row["contenders"]
        assert words in row["absent"][name]
    assert len(session.failures) == (name == "native")
    assert all(words in failure for failure in session.failures)


def test_a_contender_that_fails_is_left_out_and_ours_is_a_failure(session, monkeypatch):
    found, absent = contenders.contenders(ELEMENTS, "cpu", compiled=False)
    found |= {name: contenders.Contender(name, _refuses) for name in ("native", "peer")}
    monkeypatch.setattr(measure, "contenders", lambda *_: (found, absent))
    measure.run_visit(session, VISITS[0])
    for row in emitted(session).values():
        assert set(row["contenders"]) == {"eager"}
        assert row["errors"]["native"] == row["errors"]["peer"] == "ValueError: no such kernel"
    assert session.failures == [f"native {what}: ValueError: no such kernel" for what in WHATS]


@pytest.mark.parametrize("spec", ROW_SPECS, ids=lambda spec: spec.name)
def test_torchs_own_rounding_is_not_wrong(spec):
    case = Rows(spec.name, (16, 4000), spec.samples[0])
    problem = case.problem(HALF, "cpu")
    expected = checks.of_torch(case, problem)
    for contender in contenders.contenders(case, "cpu", compiled=False)[0].values():
        assert not checks.wrong(contender, problem, expected)


@pytest.mark.parametrize(
    "case",
    [
        *(Rows(spec.name, (6, 10), sample) for spec in ROW_SPECS for sample in spec.samples),
        *(Elements(spec.name, (64,)) for spec in SPECS),
    ],
    ids=lambda case: f"{case.loss} {case.words()}",
)
def test_contenders_get_their_options_and_defaults(case):
    """Without them, a loss would differ from the one it is compared with."""
    problem = case.problem(torch.float64, "cpu")
    if isinstance(case, Rows):
        problem.input.data = case.sample.inputs((6, 10), torch.float64, torch.Generator())
    found, _ = contenders.contenders(case, "cpu", compiled=False)
    assert list(found) == ["native", "eager"]
    values = []
    for contender in found.values():
        with contender.within(), torch.no_grad():
            values.append(contender.loss(problem.input, problem.target, **problem.options))
    torch.testing.assert_close(*values)


def test_a_contender_of_ours_runs_on_its_backend():
    for name in ("native", "reference"):
        x = torch.randn(8, requires_grad=True)
        contender = contenders.Contender(name, lossops.functional.mse_loss)
        ours = name in contenders.OURS
        with contender.within() if ours else lossops.backend(name), expect_ops() as names:
            contender.loss(x, torch.zeros(8)).backward()
        assert any(op.startswith("lossops::") for op in names) == (name == "native")


def test_torch_computes_what_a_loss_needs_only():
    """torch's contender must not do more work than its users would."""
    scores = torch.randn(3, 5)
    softmax, log_softmax = "aten::_softmax", "aten::_log_softmax"
    needed = {"kl_divergence": {log_softmax}, "soft_cross_entropy": {log_softmax}}
    for spec in ROW_SPECS:
        if not spec.takes_forms:
            continue
        with expect_ops() as names:
            spec.torch_call(Sample(target="probs"))(scores, scores.exp())
        assert {softmax, log_softmax} & set(names) == needed.get(spec.name, {softmax})


# The clock


def test_flush_is_larger_than_the_cache():
    gib = 1 << 30
    assert clock.flush_bytes(60 << 20, 130 * gib) == gib
    assert clock.flush_bytes(400 << 20, 130 * gib) == 1600 << 20
    assert clock.flush_bytes(60 << 20, 4 * gib) == gib // 2  # leaves room for the measurement
    assert clock.flush_bytes(60 << 20, 100 << 20) == 120 << 20
    assert clock.flush_bytes(0, 0) > 0


def test_contenders_take_turns():
    order, ticks = [], iter(range(100))

    def tick(call):
        call()
        return next(ticks)

    timed = {name: clock.Timed(lambda name=name: order.append(name)) for name in "abc"}
    times = clock.interleaved(timed, 3, tick)
    assert "".join(order) == "abcbcacab"
    assert times == {"a": [0, 5, 7], "b": [1, 3, 8], "c": [2, 4, 6]}


def test_blocks_are_as_long_as_asked_for():
    class Counted:
        counts = []

        def block(self, call, count):
            self.counts.append(count)
            return 0.5 if call == "slow" else 0.01

    both = {name: clock.Timed(name) for name in ("slow", "quick")}
    times = clock.block_times(both, 2, Counted(), block_ms=10)
    assert Counted.counts == [10, 10, 20, 20, 20, 20]
    assert times == {"slow": [0.5] * 2, "quick": [0.01] * 2}


def test_median_and_quartiles():
    found = clock.summary([5.0, 1.0, 2.0, 3.0, 4.0])
    assert found == {"ms": 3.0, "p25": 2.0, "p75": 4.0}


@pytest.fixture
def cuda(monkeypatch) -> MagicMock:
    """Stands for the part of torch.cuda that the clock and the capture use. Records the calls."""
    cuda = MagicMock()
    cuda.Event.return_value.elapsed_time.return_value = 6.0
    cuda.get_device_properties.return_value.L2_cache_size = 1000
    cuda.mem_get_info.return_value = (16_000, 32_000)
    for name in (
        "CUDAGraph", "Event", "Stream", "current_stream", "get_device_properties", "graph",
        "mem_get_info", "stream", "synchronize",
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))  # raises if there is none
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device, **kwargs: empty(*size, **kwargs))
    return cuda


def said(cuda: MagicMock) -> list[str]:
    """The calls since the last time."""
    names = [name for name, *_ in cuda.mock_calls]
    cuda.mock_calls.clear()
    return names


def test_cuda_clock_times_the_call_alone(cuda):
    timer = clock.CudaClock()
    assert timer.flushed.numel() == 2000
    timer.flushed.fill_(1)
    said(cuda)
    events = ["Event", "Event", "Event().record"]
    after = ["Event().record", "Event().synchronize", "Event().elapsed_time"]
    assert timer.cold(cuda.call) == 6.0
    assert not timer.flushed.any()
    assert said(cuda) == [*events, "call", *after]
    assert cuda.Event.call_args.kwargs == {"enable_timing": True}
    assert timer.block(cuda.call, 3) == 2.0
    assert said(cuda) == ["synchronize", *events, "call", "call", "call", *after]


def test_capture_runs_on_another_stream_first(cuda):
    replay = measure.captured(cuda.step)
    assert said(cuda) == [
        "Stream", "current_stream", "Stream().wait_stream", "stream", "stream().__enter__",
        "step", "step", "step", "stream().__exit__", "current_stream",
        "current_stream().wait_stream", "CUDAGraph", "graph", "graph().__enter__", "step",
        "graph().__exit__",
    ]  # fmt: skip
    replay()
    assert said(cuda) == ["CUDAGraph().replay"]


# Goals and tables


def result_row(case=LABELS, dtype="bfloat16", what="step", cold=True, **ms) -> dict:
    visit = visits.Visit(case, getattr(torch, dtype))
    copy = ms.pop("copy", 0.9)
    yard = {"ms": copy, "gb_per_s": 1000 / copy}
    numbers = {
        name: {"ms": time, "gb_per_s": 1000 / time, "of_copy": copy / time}
        for name, time in ms.items()
    }
    row = {"kind": f"{case.prefix}time", "what": what, "device": "cuda", "absent": {}, "errors": {}}
    row |= {"bytes": 1, "cold": cold, "contenders": numbers, "yardsticks": {"copy": yard}}
    return row | visit.facts


LARGE = Elements("mse_loss", (1 << 26,))
VOCABULARY = Rows("cross_entropy", (4096, 32_000))
SHARE = "share of the device copy's bandwidth"
# A case, times, and the goals that are met and missed.
GOALS = [
    (LARGE, {"compile": 1.6, "copy": 0.92}, "1 1"),
    (LARGE, {"compile": 1.6, "copy": 0.91}, "0 1"),
    (LARGE, {"compile": 1.59, "copy": 0.92}, "1 0"),
    (LARGE, {"copy": 0.92}, "1"),
    (VOCABULARY, {"copy": 0.85, "quack": 1.0, "liger_kernel": 1.5}, "1 1 1"),
    (VOCABULARY, {"copy": 0.84, "quack": 1.0, "liger_kernel": 1.5}, "0 1 1"),
    (VOCABULARY, {"quack": 0.99, "liger_kernel": 1.5}, "1 0 1"),
    (VOCABULARY, {"quack": 1.0, "liger_kernel": 1.49}, "1 1 0"),
    (VOCABULARY, {"liger_kernel": 1.5}, "1 1"),
    *(
        (Rows(loss, (4096, 32_000), PAIR), ms, met)
        for loss in ("kl_divergence", "js_divergence")
        for ms, met in (
            ({"copy": 0.85, "liger_kernel": 3.0}, "1 1"),
            ({"copy": 0.84, "liger_kernel": 3.0}, "0 1"),
            ({"liger_kernel": 2.99}, "1 0"),
        )
    ),
]


@pytest.mark.parametrize("backend", contenders.OURS)
@pytest.mark.parametrize(("case", "ms", "met"), GOALS)
def test_goals_are_judged(case, ms, met, backend):
    outcomes = goals.outcomes([result_row(case, **{backend: 1.0}, **ms)])
    assert len(outcomes) == 14
    found = [goal for goal in outcomes if goal["met"] is not None]
    assert [goal["met"] for goal in found] == [word == "1" for word in met.split()]
    assert all(goal["target"].endswith(f", {backend}") for goal in found)
    for goal in found:
        assert bool(goal["missed"]) != goal["met"]
        assert all(f"{case.loss} bfloat16 {case.words()} " in words for words in goal["missed"])
    text = to_text(tables.goals(outcomes))
    assert text.count("not measured") == 14 - len(found)


@pytest.mark.parametrize(
    "row",
    [
        result_row(Elements("mse_loss", ((1 << 26) - 1,)), native=1.0),
        result_row(LARGE, what="forward", native=1.0),
        result_row(VOCABULARY, "float32", native=1.0),
        result_row(Rows("cross_entropy", (4096, 4095)), native=1.0),
        result_row(Rows("cross_entropy", (8, 5000, 16, 16)), native=1.0),
        result_row(VOCABULARY, what="forward", native=1.0),
        result_row(Rows("total_variation", (4096, 32_000), PAIR), native=1.0),
    ],
    ids=["few", "forward", "float32", "few classes", "pictures", "forward of rows", "other loss"],
)
def test_goals_speak_of_some_steps_only(row):
    assert all(goal["met"] is None for goal in goals.outcomes([row]))


def made(*measured: dict) -> dict[str, Table]:
    record = {"status": "passed", "seconds": 9.0, "reason": "", "rows": measured, "dry": False}
    return {table.title: table for table in tables.tables({"parts": {"measure": record}})}


@pytest.mark.parametrize(("case", "over"), [(LARGE, "elements"), (VOCABULARY, "rows of class")])
def test_tables_of_times(case, over):
    ms = {"native": 1.0, "eager": 4.0, "compile": 2.5, "liger_kernel": 3.0, "quack": 1.0}
    measured = [result_row(case, what=what, **ms) for what in ("step", "forward")]
    measured[0]["errors"] = {"triton": "ValueError: broken"}
    found = {title: table for title, table in made(*measured).items() if over in title}
    steps, forwards, speeds = found.values()
    row = dict(zip(steps.columns, steps.rows[0], strict=True))
    assert (row["case"], row["dtype"]) == (case.words(), "bfloat16")
    assert (row["native"], row["triton"], row["liger_kernel"]) == ("1.000", "error", "3.000")
    assert (row["eager / native"], row["quack / native"], row["copy"]) == ("4.00", "1.00", "0.900")
    row = dict(zip(speeds.columns, speeds.rows[0], strict=True))
    assert (row["step, native"], row["step, quack"]) == ("1000 (0.90)", "1000 (0.90)")
    assert (row["step, triton"], row["forward, copy"]) == (NOTHING, "1111")
    assert len(forwards.rows) == len(steps.rows) == 1
    assert "triton" not in forwards.columns
    assert "2 measurements" in to_text(made(*measured)["What was run"])
    assert not any("over" in title for title in made())


def test_tables_of_short_calls_and_memory():
    short = [result_row(LARGE, what=what, cold=False, native=0.002) for what in WHATS[::-1]]
    memory = result_row(LARGE, native=1.0) | {"kind": "memory", "gradients": {"native": 1.5}}
    found = made(*short, memory)
    (calls,) = (table for title, table in found.items() if "µs" in title)
    assert [row[-2:] for row in calls.rows] == [(what, "2.0") for what in WHATS]
    (held,) = (table for title, table in found.items() if "memory" in title)
    assert held.rows == [("mse_loss", "2^26", "bfloat16", "1.50")]


def test_why_somebody_has_no_number_is_told():
    row = result_row(native=1.0)
    row["absent"] = {
        "quack": "wrong: its value is 50.0% off torch's",
        "liger_kernel": "ModuleNotFoundError: No module named 'liger_kernel'",
        "compile": "not compiled for this size",
    }
    table = made(row, row)["Not measured"]
    where = "cross_entropy 6 × 40 bfloat16"
    assert table.rows == [("quack", "wrong: its value is 50.0% off torch's", where, "1")]


def test_tables_as_markdown():
    table = Table("Title", ("word", "number"), note="Why.")
    table.add("a|b", "1.5")
    table.add("c", NOTHING)
    assert tables.to_markdown(table) == (
        f"**Title**\n\n| word | number |\n|---|---:|\n| a\\|b | 1.5 |\n| c | {NOTHING} |\n\nWhy.\n"
    )
