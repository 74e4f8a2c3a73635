"""Which winner meets which loser: those of nearest length, so that length is no cue."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def pair(winners: Sequence[int], losers: Sequence[int]) -> list[tuple[int, int]]:
    """(place of a winner, place of a loser) of every pair, from their lengths in tokens.

    First each of the smaller side meets one of the larger, the nearest in length still free; then the rest of the larger side the
    nearest of the smaller, none of which gets more than its share. So all are in a pair, and nobody dominates. No pairs where one side
    is empty.
    """
    if not winners or not losers:
        return []
    near = sorted((abs(won - lost), i, j) for i, won in enumerate(winners) for j, lost in enumerate(losers))
    winners_are_fewer = len(winners) <= len(losers)
    most = math.ceil(max(len(winners), len(losers)) / min(len(winners), len(losers)))
    pairs: list[tuple[int, int]] = []
    met: Counter[int] = Counter()  # of the smaller side
    placed: set[int] = set()  # of the larger side
    for limit in (1, most):
        for _, i, j in near:
            small, large = (i, j) if winners_are_fewer else (j, i)
            if large not in placed and met[small] < limit:
                pairs.append((i, j))
                met[small] += 1
                placed.add(large)
    return sorted(pairs)
