"""What holds of every target whatever the replies, their grades and the rules: over random tables."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import reply, right, rules, tables, wrong

from sparring.targets import TARGETS, Candidates, Rules, Selection
from sparring.targets.select import LEFT_OUT, OUTCOMES
from sparring.targets.window import Window, select_window

TARGET = st.sampled_from(["verified", "majority"])


def leading(candidates: Candidates) -> set[str]:
    """The answers with most votes."""
    votes = Counter(one.answer for one in candidates.replies if one.is_complete and one.answer is not None)
    return {answer for answer, count in votes.items() if count == max(votes.values())}


def select(name: str, candidates: Candidates, rule: Rules) -> Selection:
    return TARGETS[name](candidates, rule)


@given(TARGET, tables(), rules)
def test_winners_are_valid(name: str, candidates: Candidates, rule: Rules) -> None:
    """Complete, and passed or of the winning answer; or the human reply, where it has a part."""
    known = candidates.human.answer if candidates.human and rule.human in ("mix", "only") else None
    for winner in select(name, candidates, rule).winners:
        if winner is candidates.human:
            assert rule.human != "never"
            continue
        assert winner in candidates.replies and winner.is_complete and rule.human != "only"
        if name == "verified":
            assert winner.passed
        else:
            assert winner.answer is not None and {winner.answer} == (leading(candidates) if known is None else {known})


@given(TARGET, tables(), rules)
def test_winners_and_losers_are_apart(name: str, candidates: Candidates, rule: Rules) -> None:
    found = select(name, candidates, rule)
    won, lost = ([one.text for one in side] for side in (found.winners, found.losers))
    assert len(won) == len(set(won)) <= rule.max_winners and len(lost) == len(set(lost)) <= rule.max_losers
    assert not set(won) & set(lost)
    assert candidates.human not in found.losers or candidates.human in candidates.replies
    assert rule.losers == "all" or all(one.is_complete and one.answer is not None for one in found.losers)


@given(TARGET, tables(), rules)
def test_what_is_right_never_loses_to_a_reply_of_the_opponent(name: str, candidates: Candidates, rule: Rules) -> None:
    found = select(name, candidates, rule)
    if [one for one in found.winners if one is not candidates.human]:
        won = {one.answer for one in found.winners if one is not candidates.human}
        wrong = [not one.passed if name == "verified" else one.answer not in won for one in found.losers if one.is_complete]
        assert all(wrong)


@given(tables(), rules)
def test_a_tie_is_no_preference_between_replies(candidates: Candidates, rule: Rules) -> None:
    found = TARGETS["majority"](Candidates(candidates.replies), rule)
    if len(leading(candidates)) > 1:
        assert found.winners == () and found.outcome == "ties"


@given(TARGET, tables(), rules)
def test_the_outcome_says_who_is_there(name: str, candidates: Candidates, rule: Rules) -> None:
    found = select(name, candidates, rule)
    assert found.outcome in OUTCOMES and 0 < found.weight <= 1
    both = bool(found.winners and found.losers)
    assert both == (found.outcome in ("decided", "human_wins"))
    if found.outcome in ("none_pass", "ties", "few_votes", "unjudged"):
        assert found.winners in ((), (candidates.human,)), "no generated reply wins"
    if found.outcome == "all_pass" and name == "verified":
        assert any(one.passed and one.is_complete for one in candidates.replies)
    # the same object: a generated reply that equals the human one can win too
    human_alone = len(found.winners) == 1 and found.winners[0] is candidates.human
    assert (found.outcome == "human_wins") == (both and human_alone)


@given(TARGET, tables(), rules)
def test_every_reply_wins_or_loses_or_is_counted_as_left_out(name: str, candidates: Candidates, rule: Rules) -> None:
    found = select(name, candidates, rule)
    generated = [one for one in found.winners if one is not candidates.human]
    counted = len(generated) + len(found.losers) + sum(found.left_out.values())
    assert min(found.left_out.values()) >= 0 and counted <= len(candidates.replies)
    if rule.human != "only" and rule.losers == "all" and name == "verified":
        assert counted == sum(one.passed is not None for one in candidates.replies)
    if rule.human != "only" and rule.losers == "all" and name == "majority" and generated:
        assert counted == len(candidates.replies)


@given(TARGET, tables(), rules, st.randoms(use_true_random=False))
def test_the_order_of_replies_is_irrelevant(name: str, candidates: Candidates, rule: Rules, chance: random.Random) -> None:
    shuffled = Candidates(tuple(chance.sample(candidates.replies, len(candidates.replies))), candidates.human)
    ours, theirs = select(name, candidates, rule), select(name, shuffled, rule)
    assert (ours.outcome, ours.weight) == (theirs.outcome, theirs.weight)
    assert [one.token_ids for one in ours.winners] == [one.token_ids for one in theirs.winners]
    assert {one.text for one in ours.losers} == {one.text for one in theirs.losers}


# --- the window


def window(name: str, found: list[Candidates], rule: Rules, uses_margins: bool, uses_likelihood: bool) -> Window:
    """Of two iterations: the first half of the prompts were also played in the one before."""
    by_row = {f"r{n}": one for n, one in enumerate(found)}
    before = dict(list(by_row.items())[: len(found) // 2])
    prompts = {name: (n + 1,) for n, name in enumerate(by_row)}
    return select_window(prompts, {3: by_row, 2: before}, TARGETS[name], rule, uses_margins=uses_margins, uses_likelihood=uses_likelihood)


LOSSES = st.sampled_from([(True, False), (True, True), (False, True)])


@given(TARGET, st.lists(tables(), min_size=1, max_size=5), rules, LOSSES)
def test_every_count_adds_up(name: str, found: list[Candidates], rule: Rules, loss: tuple[bool, bool]) -> None:
    counts = window(name, found, rule, *loss).counts
    played = [*found, *found[: len(found) // 2]]
    assert counts["prompts"] == len(played) == sum(counts[outcome] for outcome in OUTCOMES)
    replies = [one for each in played for one in each.replies]
    assert counts["replies"] == len(replies)
    assert counts["replies_truncated"] == sum(not one.is_complete for one in replies)
    assert counts["replies_passed"] == sum(one.is_complete and one.passed is True for one in replies)
    assert counts["replies_without_answer"] == sum(one.answer is None for one in replies)
    left_out = [select(name, each, rule).left_out for each in played]
    for part in LEFT_OUT:
        everything = sum(each[part] for each in left_out)
        assert counts[part] <= everything, "of a prompt that nothing is learned from, nothing is left out"
        if counts["duels"] == len(played) and part != "losers_left_out":
            assert counts[part] == everything
        if not loss[0] and part == "losers_left_out":
            assert counts[part] == 0, "losers take no part"
    has_gap = counts["decided"] + counts["human_wins"]
    assert counts["duels"] == has_gap if loss == (True, False) else counts["duels"] >= has_gap + counts["all_pass"]


@given(TARGET, st.lists(tables(), min_size=1, max_size=5), rules, LOSSES)
def test_contests_hold_what_their_loss_needs(name: str, found: list[Candidates], rule: Rules, loss: tuple[bool, bool]) -> None:
    uses_margins, uses_likelihood = loss
    made = window(name, found, rule, *loss)
    assert len({contest.duel_id for contest in made.duels}) == len(made.duels)
    iterations = [contest.source_iteration for contest in made.duels]
    assert iterations == sorted(iterations, reverse=True), "the newest first"
    for contest in made.duels:
        assert contest.winners and contest.weight > 0 and contest.prompt_ids == (int(contest.row_id[1:]) + 1,)
        assert contest.pairs or (uses_likelihood and not contest.losers)
        assert uses_margins or not contest.losers, "a reply that nothing looks at is not computed"
        if contest.pairs:
            assert {i for i, _ in contest.pairs} == set(range(len(contest.winners)))
            assert {j for _, j in contest.pairs} == set(range(len(contest.losers)))
    counts = made.counts
    sums = {part: sum(len(getattr(contest, part)) for contest in made.duels) for part in ("winners", "losers", "pairs")}
    assert sums.items() <= counts.items() and counts["duels"] == len(made.duels)


@given(TARGET, st.lists(tables(), min_size=1, max_size=4), rules, LOSSES, st.randoms(use_true_random=False))
def test_permuted_replicas_make_an_equal_window(
    name: str, found: list[Candidates], rule: Rules, loss: tuple[bool, bool], chance: random.Random
) -> None:
    shuffled = [Candidates(tuple(chance.sample(one.replies, len(one.replies))), one.human) for one in found]
    assert window(name, found, rule, *loss) == window(name, shuffled, rule, *loss)


def test_one_window_by_hand() -> None:
    graded = {
        "a": Candidates((right("ok"), right("fine"), wrong("bad one"))),
        "b": Candidates((right("ok"),)),
        "c": Candidates((wrong("x"),)),
    }
    prompts = {"a": (1,), "b": (2, 2), "c": (3,)}
    gaps = select_window(prompts, {0: graded}, TARGETS["verified"], Rules(), uses_margins=True, uses_likelihood=False)
    (contest,) = gaps.duels
    assert {contest.row_id, contest.prompt_ids, *contest.winners} == {"a", (1,), reply("ok").token_ids, reply("fine").token_ids}
    assert (contest.losers, contest.pairs, contest.weight) == ((reply("bad one").token_ids,), ((0, 0), (1, 0)), 1.0)
    assert {name: gaps.counts[name] for name in ("decided", "all_pass", "none_pass", "duels", "pairs")} == {
        "decided": 1,
        "all_pass": 1,
        "none_pass": 1,
        "duels": 1,
        "pairs": 2,
    }
    both = select_window(prompts, {0: graded}, TARGETS["verified"], Rules(), uses_margins=True, uses_likelihood=True)
    assert [(one.row_id, bool(one.pairs)) for one in both.duels] == [("a", True), ("b", False)]
    sft = select_window(prompts, {0: graded}, TARGETS["verified"], Rules(), uses_margins=False, uses_likelihood=True)
    assert [(one.row_id, len(one.winners), one.losers, one.pairs) for one in sft.duels] == [("a", 2, (), ()), ("b", 1, (), ())]


@pytest.mark.parametrize("name", ["verified", "majority"])
def test_no_prompt_makes_an_empty_window(name: str) -> None:
    empty = select_window({}, {0: {}}, TARGETS[name], Rules(), uses_margins=True, uses_likelihood=True)
    assert empty.duels == [] and set(empty.counts.values()) == {0}
