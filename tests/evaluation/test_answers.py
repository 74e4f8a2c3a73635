"""Several replies to every held-out prompt: pass@1, pass@k, the majority's answer, how many answers there are."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.checkers.grades import Grade
from sparring.evaluation.answers import GradedReply, GradedRow, answer_items, graded_columns, majority_is_right, pass_at


def said(answer: str | None, score: float | None, finish: str = "stop") -> GradedReply:
    return GradedReply(f"so {answer}", finish, Grade(score, answer, "test"))


ROWS = [
    GradedRow("a", (said("5", 1.0), said("5", 1.0, "length"), said("6", 0.0), said("6", 0.0)), said("5", 1.0)),
    GradedRow("b", (said("7", 0.0), said(None, 0.0), said(None, None), said("8", 1.0)), said(None, 0.0)),
]


def test_by_hand() -> None:
    items = answer_items(ROWS, pass_score=1.0, must_end=True, reads_answers=True)
    assert items == {
        "exact_match": [0.25, 0.25],
        "exact_match_greedy": [1.0, 0.0],
        "pass_at_2": [pytest.approx(1 / 2)] * 2,
        "pass_at_4": [1.0, 1.0],
        "maj_at_4": [0.0, 0.5],  # two votes for 6 and one for 5; one for 7 and one for 8
        "vote_share": [0.5, 0.25],
        "distinct_answers": [2.0, 2.0],
    }


def test_a_reply_that_was_cut_passes_where_only_a_pattern_grades() -> None:
    """As exact match has always had it for SPIN."""
    assert answer_items(ROWS, 1.0, must_end=False, reads_answers=True)["exact_match"] == [0.5, 0.25]


def test_a_lower_score_may_pass() -> None:
    rows = [GradedRow("a", (said("5", 0.4), said("5", 0.6)), None)]
    assert [answer_items(rows, limit, True, True)["exact_match"] for limit in (0.3, 0.5, 0.7)] == [[1.0], [0.5], [0.0]]


@pytest.mark.parametrize(("reads_answers", "there"), [(True, True), (False, False)])
def test_what_votes_say_is_there_though_nobody_has_answered(reads_answers: bool, there: bool) -> None:
    """A player that gives no answer any more has no distinct ones: a rule that waits for fewer must see them."""
    items = answer_items([GradedRow("a", (said(None, 0.0),) * 2, None)], 1.0, True, reads_answers)
    found = {name: items[name] for name in ("maj_at_2", "vote_share", "distinct_answers") if name in items}
    assert found == ({"maj_at_2": [0.0], "vote_share": [0.0], "distinct_answers": [0.0]} if there else {})


def test_one_reply_has_no_votes() -> None:
    assert answer_items([GradedRow("a", (said("5", 1.0),), None)], 1.0, True, True) == {"exact_match": [1.0]}


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_against_every_choice_of_k(passed: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(passed)))
    chosen = [any(some) for some in combinations(passed, k)]
    assert pass_at(len(passed), sum(passed), k) == pytest.approx(sum(chosen) / len(chosen), rel=1e-12)


@pytest.mark.parametrize(
    ("answers", "passed", "value"),
    [
        (["5", "5", "6"], [True, True, False], 1.0),
        (["5", "6", "6"], [True, False, False], 0.0),
        (["5", "6"], [True, False], 0.5),
        (["5", "6", "7"], [False, False, True], pytest.approx(1 / 3)),
        ([None, None, "5"], [False, False, True], 1.0),
        ([None, None], [False, False], 0.0),
    ],
)
def test_the_majoritys_answer(answers: list[str | None], passed: list[bool], value: float) -> None:
    assert majority_is_right(answers, passed) == value


def test_every_reply_is_kept_with_its_grade() -> None:
    columns = graded_columns(ROWS)
    assert columns["replica"] == [0, 1, 2, 3, None] * 2 and columns["row_id"] == ["a"] * 5 + ["b"] * 5
    assert columns["answer"][:5] == ["5", "5", "6", "6", "5"] and columns["score"][6:8] == [0.0, None]
