"""Winners meet losers of nearest length: by hand, and what holds of all pairings."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.targets.window import pair

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("winners", "losers", "pairs"),
    [
        ([], [3], []),
        ([3], [], []),
        ([7], [1, 20], [(0, 0), (0, 1)]),
        ([7, 30], [8], [(0, 0), (1, 0)]),
        ([10, 50], [49, 12], [(0, 1), (1, 0)]),
        ([10, 20, 30], [29, 11, 21], [(0, 1), (1, 2), (2, 0)]),
        # 5 meets 5, 100 the nearest that is left, 7; the loser of 6 then goes to the nearer winner, whose share is 2
        ([5, 100], [5, 6, 7], [(0, 0), (0, 1), (1, 2)]),
        ([5, 100], [5, 6, 7, 8], [(0, 0), (0, 1), (1, 2), (1, 3)]),
        ([4, 4], [4, 4], [(0, 0), (1, 1)]),
    ],
)
def test_by_hand(winners: list[int], losers: list[int], pairs: list[tuple[int, int]]) -> None:
    assert pair(winners, losers) == pairs


@given(LENGTHS, LENGTHS)
def test_everybody_is_in_a_pair_and_nobody_dominates(winners: list[int], losers: list[int]) -> None:
    found = pair(winners, losers)
    assert len(found) == len(set(found)) == max(len(winners), len(losers))
    for side, count in ((0, len(winners)), (1, len(losers))):
        met = Counter(one[side] for one in found)
        assert set(met) == set(range(count))
        assert max(met.values()) <= math.ceil(len(found) / count)


@given(LENGTHS, LENGTHS)
def test_the_roles_can_be_swapped(winners: list[int], losers: list[int]) -> None:
    def gaps(one: list[int], other: list[int]) -> list[int]:
        return sorted(abs(one[i] - other[j]) for i, j in pair(one, other))

    if len({abs(won - lost) for won in winners for lost in losers}) == len(winners) * len(losers):
        assert gaps(winners, losers) == gaps(losers, winners)


@given(st.integers(1, 5).flatmap(lambda n: st.tuples(*[st.lists(st.integers(1, 60), min_size=n, max_size=n)] * 2)))
def test_one_to_one_against_brute_force(lengths: tuple[list[int], list[int]]) -> None:
    """No two that are not paired are nearer to each other than both are to those they have met; of all pairings, where no two distances
    are equal, the one whose sorted distances come first."""
    winners, losers = lengths
    found = pair(winners, losers)
    mine = {i: abs(winners[i] - losers[j]) for i, j in found}
    theirs = {j: abs(winners[i] - losers[j]) for i, j in found}
    distances = [abs(won - lost) for won in winners for lost in losers]
    assert all(abs(winners[i] - losers[j]) >= min(mine[i], theirs[j]) for i in mine for j in theirs)
    if len(set(distances)) == len(distances):
        everything = [sorted(abs(won - lost) for won, lost in zip(winners, order, strict=True)) for order in permutations(losers)]
        assert sorted(mine.values()) == min(everything)
