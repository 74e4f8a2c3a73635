"""The window: which duels an iteration trains on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparring.data.records import Duel, Example, Reply, TokenIds, Triplet


@dataclass(frozen=True)
class Window:
    """The duels with something to learn from, and counts of everything that was looked at.

    `indistinguishable`: every reply of the opponents equals the human one.
    """

    duels: list[Duel]
    counts: dict[str, int]
    indistinguishable: bool


def build_window(
    examples: Sequence[Example],
    replies_by_iteration: Mapping[int, Sequence[Reply]],
    stop_ids: frozenset[int],
    *,
    of_start: Sequence[Reply] | None = None,
    keep_identical: bool = False,
) -> Window:
    """Join each example with its replies of every iteration in the window, by row id (paper, section 6.1: newest and previous).

    A duel whose replies are all the same has an exactly zero gradient under a loss of gaps: it is left out and counted, unless
    `keep_identical`. of_start: replies of the start of the game to the same rows, as many to each; they make triplets of the duels.
    """
    anchors = None if of_start is None else _by_row(of_start)
    duels: list[Duel] = []
    for iteration, replies in sorted(replies_by_iteration.items(), reverse=True):
        by_row = _by_row(replies)
        for example in examples:
            own = by_row[example.row_id]
            assert own, f"row {example.row_id} has no replies of iteration {iteration}"
            duel = Duel(example.row_id, iteration, example.prompt_ids, example.reply_ids, own)
            duels.append(duel if anchors is None else Triplet(**vars(duel), start_ids=anchors[example.row_id]))
    used = duels if keep_identical else [duel for duel in duels if not duel.has_no_gap]
    everything = [reply for replies in replies_by_iteration.values() for reply in replies]
    real = {example.row_id: example.reply_ids for example in examples}
    counts = {
        "duels": len(used),
        "duels_all_identical": sum(duel.is_all_identical for duel in duels),
        "replies": len(everything),
        "replies_identical": sum(reply.token_ids == real[reply.row_id] for reply in everything),
        "replies_truncated": sum(reply.finish_reason == "length" for reply in everything),
        "replies_empty": sum(is_empty(reply.token_ids, stop_ids) for reply in everything),
    }
    return Window(used, counts, indistinguishable=all(duel.is_all_identical for duel in duels))


def _by_row(replies: Sequence[Reply]) -> dict[str, tuple[TokenIds, ...]]:
    """row id -> its replies in the order of their replicas; an empty tuple for a row without any."""
    found: dict[str, tuple[TokenIds, ...]] = defaultdict(tuple)
    for reply in sorted(replies, key=lambda reply: reply.replica):
        found[reply.row_id] += (reply.token_ids,)
    return found


def is_empty(ids: TokenIds, stop_ids: frozenset[int]) -> bool:
    """Nothing but the end-of-turn token."""
    return all(token in stop_ids for token in ids)
