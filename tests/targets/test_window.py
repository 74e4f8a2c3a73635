"""The window: examples joined with replies by row id, identical duels left out, everything counted."""

from __future__ import annotations

import random

import pytest

from sparring.data.records import Conversation, Duel, Example, Reply, Triplet, is_empty
from sparring.stages.context import counts_text
from sparring.targets.window import build_window

STOP = frozenset({9})


def example(name: str, prompt: tuple[int, ...], reply: tuple[int, ...]) -> Example:
    return Example(name, Conversation((), ""), prompt, reply)


EXAMPLES = [example("a", (1,), (5, 9)), example("b", (2, 2), (6, 7, 9)), example("c", (3,), (8,))]
NEW = [
    Reply("a", 0, (5, 9), "stop"),
    Reply("a", 1, (5, 5), "length"),
    Reply("b", 0, (6, 7, 9), "stop"),
    Reply("b", 1, (6, 7, 9), "stop"),
    Reply("c", 0, (9,), "stop"),
    Reply("c", 1, (8, 8), "length"),
]
OLD = [Reply("a", 0, (1, 9), "stop"), Reply("b", 0, (2, 9), "stop"), Reply("c", 0, (8,), "length")]


def test_one_iteration_by_hand() -> None:
    window = build_window(EXAMPLES, {0: NEW}, STOP)
    assert window.duels == [Duel("a", 0, (1,), (5, 9), ((5, 9), (5, 5))), Duel("c", 0, (3,), (8,), ((9,), (8, 8)))]
    assert window.counts == {
        "duels": 2,
        "duels_all_identical": 1,
        "replies": 6,
        "replies_identical": 3,
        "replies_truncated": 2,
        "replies_empty": 1,
    }
    duels, replies = "2 duels, 1 duel with identical replies only", "3 replies identical to the human reply, 2 replies truncated"
    assert counts_text(window.counts) == f"{duels}, 6 replies, {replies}, 1 reply empty"


def test_two_iterations_the_newest_first() -> None:
    window = build_window(EXAMPLES, {1: OLD, 2: NEW}, STOP)
    assert [duel.duel_id for duel in window.duels] == ["a@2", "c@2", "a@1", "b@1"]
    assert window.counts["duels_all_identical"] == 2 and window.counts["replies"] == 9
    assert window.counts["replies_identical"] == 4


def test_the_join_is_by_row_id_and_replica_not_by_place() -> None:
    shuffled = random.Random(0).sample(NEW, len(NEW))
    assert shuffled != NEW
    assert build_window(EXAMPLES, {0: shuffled}, STOP) == build_window(EXAMPLES, {0: NEW}, STOP)


def test_a_reply_cut_before_its_end_of_turn_is_not_identical() -> None:
    window = build_window(EXAMPLES[:1], {0: [Reply("a", 0, (5,), "length")]}, STOP)
    assert len(window.duels) == 1 and window.counts["replies_identical"] == 0


def test_all_identical_leaves_nothing() -> None:
    window = build_window(EXAMPLES[1:2], {0: NEW[2:4]}, STOP)
    assert window.duels == [] and window.counts["duels_all_identical"] == 1 and window.indistinguishable


def test_identical_ones_are_kept_where_they_have_a_gradient() -> None:
    window = build_window(EXAMPLES, {0: NEW}, STOP, keep_identical=True)
    assert [duel.duel_id for duel in window.duels] == ["a@0", "b@0", "c@0"] and not window.indistinguishable
    assert (window.counts["duels"], window.counts["duels_all_identical"]) == (3, 1)
    alone = build_window(EXAMPLES[1:2], {0: NEW[2:4]}, STOP, keep_identical=True)
    assert len(alone.duels) == 1 and alone.indistinguishable, "the game ends all the same"


def test_triplets_pair_the_replies_of_the_start_by_replica() -> None:
    of_start = [Reply("c", 1, (2,), "length"), Reply("a", 1, (1, 1), "length"), Reply("a", 0, (5, 9), "stop"), Reply("c", 0, (9,), "stop")]
    of_start += [Reply("b", 0, (6, 7, 9), "stop"), Reply("b", 1, (4, 9), "stop")]
    window = build_window(EXAMPLES, {1: NEW}, STOP, of_start=of_start)
    assert window.duels == [
        Triplet("a", 1, (1,), (5, 9), ((5, 9), (5, 5)), ((5, 9), (1, 1))),
        Triplet("b", 1, (2, 2), (6, 7, 9), ((6, 7, 9), (6, 7, 9)), ((6, 7, 9), (4, 9))),
        Triplet("c", 1, (3,), (8,), ((9,), (8, 8)), ((9,), (2,))),
    ]
    assert window.counts["duels_all_identical"] == 1, "b stays: the human reply is to be preferred to that of the start"
    assert [duel.row_id for duel in build_window(EXAMPLES, {0: NEW}, STOP, of_start=NEW).duels] == ["a", "c"]


def test_a_lost_reply_is_never_taken_for_an_identical_one() -> None:
    with pytest.raises(AssertionError, match="row c has no replies of iteration 3"):
        build_window(EXAMPLES, {3: NEW[:4]}, STOP)


def test_a_reply_to_an_unknown_row_is_noticed() -> None:
    with pytest.raises(KeyError):
        build_window(EXAMPLES[:2], {0: NEW}, STOP)


@pytest.mark.parametrize(("ids", "empty"), [((9,), True), ((), True), ((9, 9), True), ((5, 9), False), ((5,), False)])
def test_empty_is_nothing_but_an_end_of_turn(ids: tuple[int, ...], empty: bool) -> None:
    assert is_empty(ids, STOP) == empty
