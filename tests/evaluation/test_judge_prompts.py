"""What the judge is asked, and what is made of its words, however bad they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.evaluation.judge_prompts import comparing, grading, read_grade, read_verdict


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("It is correct and short.\nScore: 8", 8.0),
        ("**Score:** 7.5", 7.5),
        ("Score: **9**", 9.0),
        ('{"reasons": "fine", "score": 6}', 6.0),
        ("Rating: [[4]]", 4.0),
        ("I would give it [[3]].", 3.0),
        ("That makes 5/10.", 5.0),
        ("9 out of 10", 9.0),
        (" 10 ", 10.0),
        ("score is 2", 2.0),
        ("A score: 3 would be harsh, so\nScore: 6", 6.0),  # the last one counts
        ("Score: N", None),
        ("Score: 11", None),
        ("Score: 0", None),
        ("There are 3 mistakes and 2 good points.", None),
        ("", None),
        ("no", None),
    ],
)
def test_grades(reply: str, grade: float | None) -> None:
    assert read_grade(reply) == grade


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("B is vague.\nVerdict: A", "A"),
        ("**Verdict:** B", "B"),
        ("Verdict: assistant B", "B"),
        ("verdict: Tie", "tie"),
        ("Verdict: draw", "tie"),
        ("[[C]]", "tie"),
        ("[[A]]", "A"),
        ("B", "B"),
        ("The winner is A.", "A"),
        ("Verdict: A would be wrong.\nVerdict: B", "B"),
        ("Both are fine.", None),
        ("Assistant A is better", None),
        ("", None),
    ],
)
def test_verdicts(reply: str, verdict: str | None) -> None:
    assert read_verdict(reply) == verdict


@given(st.text('scorevdit ABC019.:*[]/{}"\n'))
def test_no_reply_breaks_the_parsers(reply: str) -> None:
    assert read_grade(reply) is None or 1 <= read_grade(reply) <= 10
    assert read_verdict(reply) in ("A", "B", "tie", None)


def test_a_grading_shows_the_conversation_up_to_its_turn() -> None:
    turns, answers, references = ["one?", "two?"], ["ONE", "TWO"], ["uno", "due"]
    first = grading(turns, answers, references, 0)[-1]["content"]
    assert "ONE" in first and "uno" in first and "first user turn" in first
    assert not {"TWO", "two?", "due"} & set(first.split())
    second = grading(turns, answers, references, 1)[-1]["content"]
    assert all(word in second for word in ("ONE", "TWO", "two?", "due", "second user turn")) and "uno" not in second
    assert "reference" not in grading(turns, answers, [], 0)[-1]["content"]


def test_a_comparison_shows_a_before_b() -> None:
    text = comparing(["one?"], ["mine"], ["theirs"], [], 0)[-1]["content"]
    assert text.index("assistant A") < text.index("mine") < text.index("assistant B") < text.index("theirs")
