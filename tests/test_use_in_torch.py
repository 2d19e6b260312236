"""lossops patched into torch: its lifetime, and who handles calls."""

from __future__ import annotations

import asyncio
import inspect
import threading

import pytest
import torch
import torch.nn.functional as torch_functional
from conftest import DEVICE, make
from test_exam import ENTRIES, Call
from torch.overrides import TorchFunctionMode

import lossops
from lossops import functional, patching

pytestmark = pytest.mark.filterwarnings("ignore")

OWN = {name: getattr(torch_functional, name) for name in dir(torch_functional)}
LOSSES = sorted(name for name in functional.__all__ if name in OWN)
each_loss = pytest.mark.parametrize("name", LOSSES)


@pytest.fixture(autouse=True)
def torch_is_left_as_it_was():
    yield
    now = {name: getattr(torch_functional, name) for name in dir(torch_functional)}
    patching._open = 0
    for name, function in OWN.items():
        setattr(torch_functional, name, function)
    assert now == OWN


def is_used() -> bool:
    used = {getattr(torch_functional, name) is getattr(functional, name) for name in LOSSES}
    assert len(used) == 1
    return used.pop()


def test_torch_runs_lossops_in_the_block():
    x, y = make.randn(5), make.randn(5)
    with lossops.use_in_torch():
        assert is_used()
        # torch.nn's modules look up the functions by name. lossops itself still calls torch's
        # originals.
        loss = torch.nn.MSELoss(reduction="sample")(x, y)
        torch.testing.assert_close(loss, (x - y).square())
        assert torch.nn.L1Loss()(torch.tensor([1j]), torch.tensor([0j])) == 1
        log_probs = make.randn(6, 2, 4).log_softmax(2)
        torch.nn.CTCLoss()(log_probs, torch.ones(2, 2, dtype=torch.long), [6, 6], [2, 2])
        with lossops.use_in_torch():
            pass
        assert is_used()
    assert not is_used()
    with pytest.raises(ZeroDivisionError), lossops.use_in_torch():
        raise ZeroDivisionError
    assert not is_used()


def test_blocks_of_threads_overlap():
    entered, left = threading.Event(), threading.Event()
    second_is_open = threading.Event()
    seen = []

    def first():
        with lossops.use_in_torch():
            entered.set()
            second_is_open.wait(10)
        left.set()

    def second():
        entered.wait(10)
        with lossops.use_in_torch():
            second_is_open.set()
            left.wait(10)
            seen.append(is_used())

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True]
    assert not is_used()


def test_blocks_of_tasks_overlap():
    async def both():
        entered, second_is_open, left = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def first():
            with lossops.use_in_torch():
                entered.set()
                await second_is_open.wait()
            left.set()

        async def second():
            await entered.wait()
            with lossops.use_in_torch():
                second_is_open.set()
                await left.wait()
                assert is_used()

        await asyncio.gather(first(), second())

    asyncio.run(both())
    assert not is_used()


def test_blocks_of_generators_overlap():
    def steps():
        with lossops.use_in_torch():
            yield

    one, other = steps(), steps()
    next(one), next(other)
    one.close()
    assert is_used()
    with pytest.raises(ZeroDivisionError):
        other.throw(ZeroDivisionError)
    assert not is_used()


def test_for_ever_outlives_a_block():
    with lossops.use_in_torch():
        lossops.use_in_torch_always()
    assert is_used()
    with lossops.use_in_torch():
        pass
    assert is_used()
    patching._leave()


# ---------------------------------------------------------------------------------------------
# Who handles calls.


class Mode(TorchFunctionMode):
    def __init__(self, name):
        super().__init__()
        self.name, self.seen = name, []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ == self.name:
            self.seen.append((func, args, kwargs))
        return func(*args, **(kwargs or {}))


class Handled(torch.Tensor):
    seen: list = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append((func, args, kwargs))
        return super().__torch_function__(func, types, args, kwargs or {})


def sample_of(name: str):
    """One of torch's samples of a loss that has rows to average. Returns it with that reduction,
    which torch does not have, and with the expected result."""
    op = ENTRIES[name]
    for sample in op.sample_inputs(DEVICE.type, torch.float32, requires_grad=False):
        sample.kwargs["reduction"] = "sample"
        try:
            return sample, Call(sample)(getattr(functional, name))
        except ValueError:
            continue
    raise AssertionError(name)


def same(one, other) -> bool:
    return one is other or (not isinstance(one, torch.Tensor) and one == other)


def assert_shown_as_torchs(seen, torchs) -> None:
    """The same function, and the same arguments in the same places."""
    (func, args, kwargs), (right, right_args, right_kwargs) = seen, torchs
    assert func is right
    assert len(args) == len(right_args)
    assert all(map(same, args, right_args))
    if func is OWN["l1_loss"]:  # torch does not pass its weight on
        assert kwargs.pop("weight") is None
    assert kwargs.keys() == right_kwargs.keys()
    assert all(same(kwargs[name], right_kwargs[name]) for name in kwargs)


def torchs_call(name: str, call: Call):
    """The call that a mode sees from torch's own function, which rejects the reduction
    afterwards."""
    with Mode(name) as mode, pytest.raises((ValueError, RuntimeError)):
        call(OWN[name])
    return mode.seen[0]


@each_loss
def test_modes_see_torchs_functions(name):
    sample, expected = sample_of(name)
    call = Call(sample)
    right = torchs_call(name, call)
    with lossops.use_in_torch(), Mode(name) as outer, Mode(name) as inner:
        found = call(getattr(torch_functional, name))
    torch.testing.assert_close(found, expected)
    for mode in (inner, outer):
        assert len(mode.seen) == 1
        assert_shown_as_torchs(mode.seen[0], right)
    assert not torch.overrides._get_current_function_mode_stack()


@each_loss
def test_subclasses_see_torchs_functions(name):
    sample, expected = sample_of(name)
    sample.input = sample.input.as_subclass(Handled)
    call = Call(sample)
    right = torchs_call(name, call)
    with lossops.use_in_torch():
        for modes in ((), (Mode(name),), (Mode(name), Mode(name))):
            Handled.seen = []
            for mode in modes:
                mode.__enter__()
            found = call(getattr(torch_functional, name))
            for mode in reversed(modes):
                mode.__exit__(None, None, None)
            assert isinstance(found, Handled)
            torch.testing.assert_close(found.as_subclass(torch.Tensor), expected)
            for seen in (Handled.seen, *(mode.seen for mode in modes)):
                calls = [each for each in seen if each[0].__name__ == name]
                assert len(calls) == 1
                assert_shown_as_torchs(calls[0], right)


def test_other_calls_of_handlers_are_not_ours():
    """And losses inside a handler are replaced in the block, too."""

    class Two(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is OWN["mse_loss"]:
                assert is_used()
                plain = [t.as_subclass(torch.Tensor) for t in args]
                return torch_functional.huber_loss(*plain, reduction="sample") + cls.seen(*args)
            return super().__torch_function__(func, types, args, kwargs or {})

        @staticmethod
        def seen(x, y):
            return (x + y).sum()

    x, y = make.randn(5), make.randn(5)
    with lossops.use_in_torch():
        found = torch_functional.mse_loss(x.as_subclass(Two), y)
    expected = torch_functional.huber_loss(x, y, reduction="none") + (x + y).sum()
    torch.testing.assert_close(found.as_subclass(torch.Tensor), expected)


@pytest.mark.parametrize("name", functional.__all__)
def test_handlers_see_our_functions_by_our_names(name):
    """Follows torch's style: required arguments by position, options by name."""
    function = getattr(functional, name)
    parameters = inspect.signature(function).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty]
    options = {p.name: p.default for p in parameters if p.default is not p.empty}
    for place in range(len(required)):

        class Answer(torch.Tensor):
            @classmethod
            def __torch_function__(cls, func, types, args=(), kwargs=None):
                return func, len(args), kwargs

        arguments = [make.ones(2)] * len(required)
        arguments[place] = arguments[place].as_subclass(Answer)
        assert function(*arguments) == (function, len(required), options)


def test_options_that_torch_lacks_are_ours():
    x, y, w = make.randn(5), make.randn(5), make.rand(5)
    with lossops.use_in_torch(), Mode("smooth_l1_loss") as mode:
        found = torch_functional.smooth_l1_loss(x, y, weight=w)
    assert mode.seen[0][0] is functional.smooth_l1_loss
    torch.testing.assert_close(found, functional.smooth_l1_loss(x, y, weight=w))
