"""Tests of the sampling of test parameters."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace

import pytest
from sampling import pairwise, sample

DIMENSIONS = {"loss": 7, "dtype": 4, "reduction": 3, "weighted": 2}
CASES = [
    dict(zip(DIMENSIONS, values, strict=True))
    for values in itertools.product(*map(range, DIMENSIONS.values()))
]


def pairs(cases):
    return {pair for case in cases for pair in itertools.combinations(case.items(), 2)}


def items(name="test_a", cases=CASES, place="cpu"):
    return [
        SimpleNamespace(
            nodeid=f"{name}[{place}-{i}]", callspec=SimpleNamespace(params={**case, "place": place})
        )
        for i, case in enumerate(cases)
    ]


def test_every_pair_is_chosen(seed):
    chosen = pairwise(CASES, random.Random(seed))
    assert pairs(CASES[i] for i in chosen) == pairs(CASES)
    assert 28 <= len(chosen) <= 40  # of 168


def test_pairs_that_do_not_occur_are_not_missed(seed):
    some = random.sample(CASES, 50)
    chosen = pairwise(some, random.Random(seed))
    assert pairs(some[i] for i in chosen) == pairs(some)


def test_a_seed_chooses_the_same_and_another_others():
    first, second, third = (sample(items(), seed, frozenset()) for seed in ("1", "1", "2"))
    names = [[item.nodeid for item in chosen] for chosen in (first, second, third)]
    assert names[0] == names[1] != names[2]


def test_each_place_has_every_pair():
    both = items() + items(place="cuda")
    chosen = sample(both, "1", frozenset({"place"}))
    for place in ("cpu", "cuda"):
        of = [item.callspec.params for item in chosen if item.callspec.params["place"] == place]
        of = [{name: params[name] for name in DIMENSIONS} for params in of]
        assert pairs(of) == pairs(CASES)


def test_tests_of_few_parameters_are_all_run():
    plain = [SimpleNamespace(nodeid="test_b"), SimpleNamespace(nodeid="test_c")]
    two = items("test_d", [{"x": x, "y": {}} for x in range(9)])
    assert sample(plain + two, "1", frozenset({"place"})) == plain + two


def test_a_sampled_test_may_not_skip_cases():
    def skips(x, y, z):
        if x == y:
            pytest.skip("nothing to test")

    some = items(cases=CASES[:9])
    for item in some:
        item.function = skips
    with pytest.raises(ValueError, match=r"test_a\[cpu-0\]: .* may not skip"):
        sample(some, "1", frozenset({"place"}))
    few = items(cases=[{"x": x, "y": 1} for x in range(9)])
    for item in few:
        item.function = skips
    assert sample(few, "1", frozenset({"place"})) == few  # all of them run
