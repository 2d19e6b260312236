"""Samples the cross products of test parameters, such that every pair of values is tested
together."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence


def pairwise(cases: Sequence[Mapping[str, Hashable]], chance: random.Random) -> list[int]:
    """The indices of a selection of cases that contains every pair of values that occurs in any
    case.

    A case maps the names of parameters to values. The selection is greedy, in random order.
    """
    pairs = [
        set(itertools.combinations(sorted(case.items(), key=lambda item: item[0]), 2))
        for case in cases
    ]
    left = set().union(*pairs)
    order = list(range(len(cases)))
    chance.shuffle(order)
    chosen = []
    most = max(map(len, pairs), default=0)
    for fewest in range(most, 0, -1):  # take cases with at least this many new pairs
        for i in order:
            new = pairs[i] & left
            if len(new) >= fewest:
                chosen.append(i)
                left -= new
        order = [i for i in order if pairs[i] & left]
    return sorted(chosen)


def sample(items: Sequence, seed: str, whole: frozenset[str]) -> list:
    """The items to run. Items of the same test with different parameters are sampled pairwise,
    separately for each value of the parameters in ``whole``."""
    groups = defaultdict(list)
    for item in items:
        of = getattr(item, "callspec", None)
        if of is None:
            groups[item.nodeid].append(item)
            continue
        apart = tuple(of.params[name] for name in sorted(whole & of.params.keys()))
        groups[item.nodeid.partition("[")[0], apart].append(item)
    kept = set()
    for name, group in groups.items():
        chosen = range(len(group))
        if hasattr(group[0], "callspec"):
            cases = [
                {k: _hashable(v) for k, v in item.callspec.params.items() if k not in whole}
                for item in group
            ]
            if len(cases[0]) > 2:
                _refuse_to_skip(group[0])
                chosen = pairwise(cases, random.Random(f"{seed}{name}"))
        kept |= {id(group[i]) for i in chosen}
    return [item for item in items if id(item) in kept]


def _refuse_to_skip(item) -> None:
    """A case that skips itself may be the only one in the sample with a pair of values. Such cases
    should not be parameters in the first place."""
    code = getattr(getattr(item, "function", None), "__code__", None)
    if code is not None and {"skip", "importorskip"} & {*code.co_names}:
        raise ValueError(f"{item.nodeid}: a test of sampled parameters may not skip some of them")


def _hashable(value) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value
