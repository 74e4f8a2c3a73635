"""What the judge is asked, and what is made of its words, however bad they are."""

from __future__ import annotations

import time

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
        ("[[10]]", 10.0),
        ("Score: 8.", 8.0),
        ("Score:\n8", 8.0),
        ("Score - 8", 8.0),
        ("Score (1-10): `8`", 8.0),
        ("Score: 8\n- 2 mistakes", 8.0),
        ("Score: 7\n(10 would need sources.)", 7.0),
        ("My score:\n1. It is short.\n2. It is right.\nSo 8/10.", 8.0),  # a list is no grade
        ("Score: -5", None),
        ("-5", None),
        ("Score: 4/5", None),  # another scale
        ("Score: 8 out of 20", None),
        ("Score: 8%", None),
        ("Score: 7-8", None),
        ("Score: 7 to 9", None),
        ("7-8/10", None),
        ("Score: 3 at first.\nScore: 7-8", None),
        ("Score: 8,5", None),
        ("8,5/10", None),
        ("[[7-8]]", None),
        ("Score: 100", None),
        ("Score: 10.5", None),
        ("10/10/2024", None),
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
        ("Verdict: A tie", "tie"),  # its article is no side
        ("The verdict is a draw.", "tie"),
        ("a tie", "tie"),
        ("Verdict: [[B]]", "B"),
        ("Verdict: A - more complete than B", "A"),
        ("Verdict: A (clearer)", "A"),
        ('{"verdict": "B", "why": "clearer"}', "B"),
        ("Verdict: `B`", "B"),
        ("My verdict\n\nA few things matter.\nVerdict: B", "B"),
        ("My verdict\n\nA few things matter.", None),
        ("Verdict: A and B are equal", None),
        ("Verdict: A or B", None),
        ("Verdict: A/B", None),
        ("Verdict: A slight edge to B", None),
        ("Verdict: A, Verdict: B or Verdict: tie", None),  # the form itself
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


def test_a_reply_without_end_is_read_in_no_time() -> None:
    for part in ("score " + " " * 1000, "verdict: " + "\n" * 1000, "[[1", "1."):
        reply = part * (300_000 // len(part))
        began = time.monotonic()
        assert read_grade(reply) is None and read_verdict(reply) is None
        assert time.monotonic() - began < 5
