"""What other public code gets wrong, each as a test: from the texts of replies by a checker and a table of grades to winners and losers.

Two of them concern checkers alone and are tested there: no text of a model is evaluated (tests/checkers/test_texts.py,
test_no_text_is_evaluated), and time limits hold in any thread and are never a score of 0 (tests/checkers/test_own.py and test_math.py,
test_it_works_in_a_thread). That scores are kept over a restart is tests/test_target_games.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from made import ids_of, texts

from sparring.checkers.make import CheckerSettings, asked_of, make_checker
from sparring.data.records import Conversation, Example, Reply
from sparring.data.tables import read_rows
from sparring.stages.grade import grade_all
from sparring.targets import TARGETS, Candidates, Rules, Selection, majority, verified
from sparring.targets.select import candidates_of
from sparring.targets.window import select_window

CUT = "..."  # a reply that ends so was cut at the limit


def graded(
    stage: Path, replies: Sequence[str], kind: str = "number", pattern: str | None = None, human: str = "", answer: str | None = None
) -> Candidates:
    """The replies to one prompt as the grading stage hands them to a target."""
    example = Example("r", Conversation(({"role": "user", "content": "?"},), human, answer), (1,), ids_of(human) if human else ())
    sampled = [
        Reply("r", n, ids_of(text.removesuffix(CUT), not text.endswith(CUT)), "length" if text.endswith(CUT) else "stop")
        for n, text in enumerate(replies)
    ]
    asked = asked_of([example], sampled, lambda ids: "".join(chr(i) for i in ids if i), with_human=True)
    checker = make_checker(CheckerSettings(kind, pattern))
    stage.mkdir(exist_ok=True)
    grade_all(stage, asked, sampled, checker, "test")
    return candidates_of(read_rows(stage), sampled, [example], 1.0)["r"]


def loses_nothing(selection: Selection) -> bool:
    return not (selection.winners and selection.losers)


@pytest.mark.parametrize("replies", [["it is 5", "so 5", "5"], ["it is 6", "so 7", "8"]])
def test_ties_are_no_preference(replies: list[str], tmp_path: Path) -> None:
    """With scores of 0 and 1 most pairs tie, and argmax makes the first reply the winner (verl's SPIN recipe, TRL's OnlineDPO)."""
    found = graded(tmp_path / "grades", replies, answer="5")
    assert loses_nothing(verified(found, Rules()))
    assert loses_nothing(majority(graded(tmp_path / "more", ["a 5", "b 6", "c 5", "d 6"]), Rules()))


def test_replies_without_an_answer_do_not_vote_as_one(tmp_path: Path) -> None:
    """They become "" and win the vote (TTRL, lm-eval's majority)."""
    found = graded(tmp_path, ["no idea", "none", "who knows", "a 5", "so 5"])
    selection = majority(found, Rules(min_votes=0.4))
    assert (texts(selection.winners), texts(selection.losers)) == ({"a 5", "so 5"}, {"no idea", "none", "who knows"})
    assert majority(graded(tmp_path / "none", ["no idea", "none"]), Rules(min_votes=0.0)).outcome == "unjudged"


@pytest.mark.parametrize("name", ["verified", "majority"])
def test_a_reply_without_an_answer_never_wins(name: str, tmp_path: Path) -> None:
    found = graded(tmp_path, ["five", "FIVE", "six"], human="five")  # the gold has no number either
    assert TARGETS[name](found, Rules(human="never", min_votes=0.0)).winners == ()


def test_votes_are_over_equal_answers_and_not_over_texts(tmp_path: Path) -> None:
    found = graded(tmp_path, ["18", "so 18.0", "it is 36/2", "17", "a 17"])
    selection = majority(found, Rules())
    assert texts(selection.winners) == {"18", "so 18.0", "it is 36/2"} and selection.outcome == "decided"


def test_length_is_no_advantage(tmp_path: Path) -> None:
    """DPO-VP takes the longest correct reply. Here each winner meets the loser of nearest length, and what is taken goes by no length."""
    said = ["5", "well, it must be 5", "6", "well, it must be 6"]
    found = graded(tmp_path, said, answer="5")
    (contest,) = select_window({"r": (1,)}, {0: {"r": found}}, verified, Rules(), uses_margins=True, uses_likelihood=False).duels
    lengths = [(len(contest.winners[i]), len(contest.losers[j])) for i, j in contest.pairs]
    assert sorted(lengths) == [(2, 2), (19, 19)]


def test_a_mention_of_the_answer_is_no_answer(tmp_path: Path) -> None:
    """Where the pattern finds nothing, the whole text is not searched in its place."""
    found = graded(tmp_path, ["#### 5", "5 is wrong, 7 too"], kind="exact", pattern="#### (.+)", answer="5")
    assert texts(verified(found, Rules()).winners) == {"#### 5"}
    assert [one.answer for one in found.replies] == ["5", None]


@pytest.mark.parametrize("name", ["verified", "majority"])
def test_a_reply_that_was_cut_never_wins_and_never_votes(name: str, tmp_path: Path) -> None:
    found = graded(tmp_path, [f"so 5{CUT}", f"then 5{CUT}", "it is 6"], answer="5")
    assert [one.passed for one in found.replies[:2]] == [True, True], "the checker alone would pass it"
    selection = TARGETS[name](found, Rules(min_votes=0.0))
    assert texts(selection.winners) == (set() if name == "verified" else {"it is 6"})
    assert {"so 5", "then 5"} <= texts(selection.losers)


def test_a_winner_that_equals_the_human_reply_counts_once(tmp_path: Path) -> None:
    found = graded(tmp_path, ["so 5", "5", "so 5", "6"], human="so 5")
    assert sorted(one.text for one in verified(found, Rules(human="mix")).winners) == ["5", "so 5"]
    assert found.human is not None and found.human.passed


def test_the_grades_of_a_human_reply_are_its_own(tmp_path: Path) -> None:
    """It is graded beside the replies, so that its answer is in the form in which theirs vote."""
    found = graded(tmp_path, ["18", "it is 18.0"], human="so 36/2")
    assert {one.answer for one in (*found.replies, found.human)} == {"18"}
