"""Who wins and who loses: each target by hand, for each part that a human reply can have."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from made import cut, reply, right, texts, voting, wrong

from sparring.targets import TARGETS, Candidate, Candidates, Rules, Selection, human, majority, verified

HUMAN = reply("by hand", passed=True, answer="r")
MIXED = (right("a"), right("b"), wrong("c"), wrong("d"))
Case = tuple[set[str], set[str], str]  # winners, losers, outcome


def assert_is(selection: Selection, winners: set[str], losers: set[str], outcome: str, weight: float = 1.0) -> None:
    assert (texts(selection.winners), texts(selection.losers), selection.outcome) == (winners, losers, outcome)
    assert selection.weight == pytest.approx(weight, rel=1e-15)


# --- human


@pytest.mark.parametrize("part", ["fallback", "never", "mix", "only"])
def test_of_the_human_target_every_reply_loses_as_often_as_it_was_sampled(part: str) -> None:
    replies = (right("a"), right("a"), cut(wrong("c")))
    selection = human(Candidates(replies, HUMAN), Rules(human=part))
    assert (selection.winners, selection.losers, selection.outcome) == ((HUMAN,), replies, "human_wins")


def test_without_a_human_reply_nobody_wins_and_equal_to_it_nobody_loses() -> None:
    assert human(Candidates(MIXED), Rules()).outcome == "unjudged" and human(Candidates(MIXED), Rules()).winners == ()
    assert human(Candidates((HUMAN, HUMAN), HUMAN), Rules()).outcome == "all_pass"


# --- verified

VERIFIED: dict[str, tuple[Sequence[Candidate], dict[str, Case]]] = {
    "some pass": (
        MIXED,
        {
            "fallback": ({"a", "b"}, {"c", "d"}, "decided"),
            "never": ({"a", "b"}, {"c", "d"}, "decided"),
            "mix": ({"by hand", "a", "b"}, {"c", "d"}, "decided"),
            "only": ({"by hand"}, {"c", "d"}, "human_wins"),
        },
    ),
    "none passes": (
        MIXED[2:],
        {
            "fallback": ({"by hand"}, {"c", "d"}, "human_wins"),
            "never": (set(), {"c", "d"}, "none_pass"),
            "mix": ({"by hand"}, {"c", "d"}, "human_wins"),
            "only": ({"by hand"}, {"c", "d"}, "human_wins"),
        },
    ),
    "all pass": (
        MIXED[:2],
        {
            "fallback": ({"a", "b"}, set(), "all_pass"),
            "never": ({"a", "b"}, set(), "all_pass"),
            "mix": ({"by hand", "a", "b"}, set(), "all_pass"),
            "only": ({"by hand"}, set(), "all_pass"),
        },
    ),
    "nothing was judged": (
        [reply("a"), reply("b")],
        {
            "fallback": ({"by hand"}, set(), "unjudged"),
            "never": (set(), set(), "unjudged"),
            "mix": ({"by hand"}, set(), "unjudged"),
            "only": ({"by hand"}, set(), "unjudged"),
        },
    ),
    "only a cut one passes": (
        [cut(right("a")), wrong("c")],
        {
            "fallback": ({"by hand"}, {"a", "c"}, "human_wins"),
            "never": (set(), {"a", "c"}, "none_pass"),
            "mix": ({"by hand"}, {"a", "c"}, "human_wins"),
            "only": ({"by hand"}, {"a", "c"}, "human_wins"),
        },
    ),
    "one was not judged": (
        [right("a"), wrong("c"), reply("e")],
        {"fallback": ({"a"}, {"c"}, "decided"), "never": ({"a"}, {"c"}, "decided"), "mix": ({"by hand", "a"}, {"c"}, "decided")},
    ),
}


@pytest.mark.parametrize(("name", "part"), [(name, part) for name, (_, parts) in VERIFIED.items() for part in parts])
def test_verified(name: str, part: str) -> None:
    replies, expected = VERIFIED[name]
    assert_is(verified(Candidates(tuple(replies), HUMAN), Rules(human=part)), *expected[part])


@pytest.mark.parametrize("part", ["fallback", "never", "mix", "only"])
def test_a_prompt_without_a_human_reply_is_decided_by_the_replies_alone(part: str) -> None:
    won = {"a", "b"} if part != "only" else set()
    assert_is(verified(Candidates(MIXED), Rules(human=part)), won, {"c", "d"}, "decided" if won else "none_pass")
    assert_is(verified(Candidates(MIXED[2:]), Rules(human=part)), set(), {"c", "d"}, "none_pass")


# --- majority

OF_7 = reply("by hand", answer="7")
MAJORITY: dict[str, tuple[tuple[Candidate, ...], dict[str, Case]]] = {
    "a majority": (
        voting("5", "5", "5", "7", None),
        {
            "fallback": ({"5 0", "5 1", "5 2"}, {"7 3", "None 4"}, "decided"),
            "never": ({"5 0", "5 1", "5 2"}, {"7 3", "None 4"}, "decided"),
            "mix": ({"by hand", "7 3"}, {"5 0", "5 1", "5 2", "None 4"}, "decided"),
            "only": ({"by hand"}, {"5 0", "5 1", "5 2", "None 4"}, "human_wins"),
        },
    ),
    "a tie": (
        voting("5", "7", "5", "7"),
        {
            "fallback": ({"by hand"}, {"5 0", "5 2"}, "human_wins"),
            "never": (set(), {"5 0", "7 1", "5 2", "7 3"}, "ties"),
            "mix": ({"by hand", "7 1", "7 3"}, {"5 0", "5 2"}, "decided"),
            "only": ({"by hand"}, {"5 0", "5 2"}, "human_wins"),
        },
    ),
    "too few votes": (
        voting("5", "5", "7", None, "8"),
        {
            "fallback": ({"by hand"}, {"5 0", "5 1", "8 4"}, "human_wins"),
            "never": (set(), {"5 0", "5 1", "7 2", "8 4"}, "few_votes"),
            "mix": ({"by hand", "7 2"}, {"5 0", "5 1", "None 3", "8 4"}, "decided"),
            "only": ({"by hand"}, {"5 0", "5 1", "None 3", "8 4"}, "human_wins"),
        },
    ),
    "no vote": (
        (reply("a"), cut(reply("b", answer="5"))),
        {
            "fallback": ({"by hand"}, set(), "unjudged"),
            "never": (set(), set(), "unjudged"),
            "mix": ({"by hand"}, {"a", "b"}, "human_wins"),
            "only": ({"by hand"}, {"a", "b"}, "human_wins"),
        },
    ),
    "agreed": (
        voting("7", "7"),
        {
            "fallback": ({"7 0", "7 1"}, set(), "all_pass"),
            "never": ({"7 0", "7 1"}, set(), "all_pass"),
            "mix": ({"by hand", "7 0", "7 1"}, set(), "all_pass"),
            "only": ({"by hand"}, set(), "all_pass"),
        },
    ),
}


@pytest.mark.parametrize(("name", "part"), [(name, part) for name, (_, parts) in MAJORITY.items() for part in parts])
def test_majority(name: str, part: str) -> None:
    replies, expected = MAJORITY[name]
    winners, losers, outcome = expected[part]
    selection = majority(Candidates(replies, OF_7), Rules(human=part, max_losers=5, weigh_votes=False))
    assert_is(selection, winners, losers | ({"None 3"} if name == "too few votes" else set()), outcome)


@pytest.mark.parametrize("part", ["mix", "only"])
def test_a_human_reply_whose_answer_cannot_be_read_leaves_it_to_the_vote(part: str) -> None:
    selection = majority(Candidates(voting("5", "5", "7"), reply("by hand")), Rules(human=part, weigh_votes=False))
    assert_is(selection, {"by hand"} | ({"5 0", "5 1"} if part == "mix" else set()), {"7 2"}, "decided" if part == "mix" else "human_wins")


@pytest.mark.parametrize(
    ("votes", "of", "min_votes", "outcome"),
    [
        (2, 4, 0.5, "decided"),
        (2, 5, 0.5, "few_votes"),
        (3, 5, 0.6, "decided"),
        (11, 20, 0.55, "decided"),  # 0.55 * 20 is 11.000000000000002
        (7, 25, 0.28, "decided"),
        (3, 10, 0.3, "decided"),
        (3, 4, 1.0, "few_votes"),
        (1, 1, 1.0, "all_pass"),
        (2, 9, 0.0, "decided"),
    ],
)
def test_the_share_of_votes_that_is_needed_is_enough(votes: int, of: int, min_votes: float, outcome: str) -> None:
    others = [f"x{n}" for n in range(of - votes)]
    assert majority(Candidates(voting(*["5"] * votes, *others)), Rules(min_votes=min_votes)).outcome == outcome


@pytest.mark.parametrize(
    ("answers", "weight"),
    [("5557", 0.5), ("55578", 0.4), ("5555", 1.0), ("557", 1 / 3), (["5", "5", None, None], 0.5), (["5", "5", "7", None], 0.25)],
)
def test_a_prompt_weighs_by_its_margin_of_votes(answers: Sequence[str | None], weight: float) -> None:
    """Of all replies, those without an answer too (ScPO, equation 3)."""
    assert majority(Candidates(voting(*answers)), Rules()).weight == pytest.approx(weight, rel=1e-15)
    assert majority(Candidates(voting(*answers)), Rules(weigh_votes=False)).weight == 1.0


@pytest.mark.parametrize("part", ["mix", "only"])
def test_a_known_answer_weighs_1_whatever_the_votes(part: str) -> None:
    """Prompts that the majority gets wrong are the ones to learn from."""
    selection = majority(Candidates(voting("5", "5", "5", "7"), OF_7), Rules(human=part, weigh_votes=True))
    assert selection.weight == 1.0 and selection.outcome in ("decided", "human_wins")


# --- what all have in common


def test_a_winner_that_repeats_the_human_reply_is_there_once() -> None:
    selection = verified(Candidates((right("by hand"), right("a"), wrong("c")), HUMAN), Rules(human="mix"))
    assert selection.winners[0] is HUMAN and texts(selection.winners) == {"by hand", "a"}
    assert selection.left_out == {"replies_repeated": 1, "winners_left_out": 0, "losers_left_out": 0}


def test_the_same_reply_under_a_text_that_a_template_trimmed_is_the_human_one_too() -> None:
    """Its ids are equal, and its text differs from that of the row by a space."""
    spaced = Candidate(HUMAN.token_ids, "by hand ", passed=True, answer="r")
    mixed = verified(Candidates((HUMAN, wrong("c")), spaced), Rules(human="mix"))
    assert mixed.winners == (spaced,)
    failed = Candidate(HUMAN.token_ids, "by hand", passed=False)
    alone = verified(Candidates((failed, wrong("c")), spaced), Rules())
    assert (alone.winners, texts(alone.losers)) == ((spaced,), {"c"})


def test_what_wins_cannot_lose_though_a_checker_judged_it_twice() -> None:
    selection = verified(Candidates((right("a"), wrong("a"), wrong("c"))), Rules())
    assert_is(selection, {"a"}, {"c"}, "decided")


@pytest.mark.parametrize(("near", "kept"), [(None, 3), (1.0, 3), (0.9, 2), (0.0, 1)])
def test_near_duplicates(near: float | None, kept: int) -> None:
    """Nine of ten words, in order: 0.9."""
    said = "a b c d e f g h i"
    replies = (right(f"{said} j"), right(f"{said} k"), right("x y z"), wrong("c"))
    selection = verified(Candidates(replies), Rules(near_duplicates=near))
    assert (len(selection.winners), selection.left_out["replies_repeated"]) == (kept, 3 - kept)


def test_losers_that_have_answered() -> None:
    replies = (right("a"), wrong("c"), wrong("d", answer=None), cut(wrong("e")))
    assert_is(verified(Candidates(replies), Rules(losers="answered")), {"a"}, {"c"}, "decided")
    assert_is(verified(Candidates(replies), Rules()), {"a"}, {"c", "d", "e"}, "decided")


def test_the_outcome_without_losers_says_why_no_reply_wins() -> None:
    """The human reply wins and no reply loses to it: those without an answer cannot, those with its own answer must not."""
    one_vote = Candidates(voting("7", *[None] * 7), OF_7)
    assert_is(majority(one_vote, Rules(losers="answered")), {"by hand"}, set(), "few_votes")
    unreadable = Candidates((wrong("c", answer=None), wrong("d", answer=None)), HUMAN)
    assert_is(verified(unreadable, Rules(losers="answered")), {"by hand"}, set(), "none_pass")


def test_at_most_so_many_winners_and_losers_and_the_human_one_is_among_them() -> None:
    replies = tuple([right(f"a{n}") for n in range(9)] + [wrong(f"c{n}") for n in range(9)])
    selection = verified(Candidates(replies, HUMAN), Rules(human="mix", max_winners=3, max_losers=2))
    assert (len(selection.winners), len(selection.losers), selection.winners[0]) == (3, 2, HUMAN)
    assert selection.left_out == {"replies_repeated": 0, "winners_left_out": 7, "losers_left_out": 7}
    alone = verified(Candidates(replies, HUMAN), Rules(human="mix", max_winners=1))
    assert alone.winners == (HUMAN,) and alone.outcome == "human_wins"


def test_which_are_taken_where_there_are_too_many_does_not_go_by_length() -> None:
    """Over many prompts the chosen winner is as often the longer of two as the shorter."""
    pairs = [Candidates((right(f"{n}"), right(f"{n} and more words"))) for n in range(200)]
    chosen = [len(verified(pair, Rules(max_winners=1)).winners[0].text) > 5 for pair in pairs]
    assert 70 < sum(chosen) < 130


def test_the_targets_by_name() -> None:
    assert dict(TARGETS) == {"human": human, "verified": verified, "majority": majority}
