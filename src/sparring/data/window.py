"""The window: which duels an iteration trains on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparring.data.records import Duel, Example, Reply, TokenIds


@dataclass(frozen=True)
class Window:
    """The duels with something to learn from, and counts of everything that was looked at."""

    duels: list[Duel]
    counts: dict[str, int]


def build_window(examples: Sequence[Example], replies_by_iteration: Mapping[int, Sequence[Reply]], stop_ids: frozenset[int]) -> Window:
    """Join each example with its replies of every iteration in the window, by row id (paper, section 6.1: newest and previous).

    A duel whose replies all equal the human one has an exactly zero gradient: it is left out and counted.
    """
    duels = []
    for iteration, replies in sorted(replies_by_iteration.items(), reverse=True):
        by_row: dict[str, list[Reply]] = defaultdict(list)
        for reply in replies:
            by_row[reply.row_id].append(reply)
        for example in examples:
            own = sorted(by_row[example.row_id], key=lambda reply: reply.replica)
            assert own, f"row {example.row_id} has no replies of iteration {iteration}"
            duels.append(Duel(example.row_id, iteration, example.prompt_ids, example.reply_ids, tuple(r.token_ids for r in own)))
    used = [duel for duel in duels if not duel.is_all_identical]
    everything = [reply for replies in replies_by_iteration.values() for reply in replies]
    real = {example.row_id: example.reply_ids for example in examples}
    counts = {
        "duels": len(used),
        "duels_all_identical": len(duels) - len(used),
        "replies": len(everything),
        "replies_identical": sum(reply.token_ids == real[reply.row_id] for reply in everything),
        "replies_truncated": sum(reply.finish_reason == "length" for reply in everything),
        "replies_empty": sum(is_empty(reply.token_ids, stop_ids) for reply in everything),
    }
    return Window(used, counts)


def is_empty(ids: TokenIds, stop_ids: frozenset[int]) -> bool:
    """Nothing but the end-of-turn token."""
    return all(token in stop_ids for token in ids)
