"""What checkers let through, good ones and bad ones, and the arithmetic of wrong winners."""

from __future__ import annotations

from pathlib import Path

import pytest
from asking import ask, made
from hypothesis import given
from hypothesis import strategies as st

from sparring.checkers.grades import GradingRequest
from sparring.checkers.probe import DISTRACTORS, KINDS, probe, share_of_wrong_winners


def rows(count: int = 12) -> list[GradingRequest]:
    return [ask(human=f"{n} + 5 is easy. #### {n + 5}", answer=str(n + 5), row_id=f"r{n}") for n in range(count)]


def test_a_strict_checker_lets_nothing_through() -> None:
    with made("number", r"#### (\S+)") as checker:
        report = probe(checker, [*rows(), ask(row_id="of which nothing is known")], 0)
    assert report.rows == 12 and {tried.name for tried in report.kinds} == set(KINDS)
    assert {tried.name: (tried.tried, tried.passed) for tried in report.kinds} == {
        name: (12, 12 if name == "human reply" else 0) for name in KINDS
    }
    assert all(tried.examples == () and tried.failed == 0 for tried in report.kinds)


def test_a_last_number_lets_some_sprayed_answers_through() -> None:
    with made("number") as checker:
        report = probe(checker, rows(60), 0)
        assert report == probe(checker, rows(60), 0) != probe(checker, rows(60), 1)
    for name in ("sprayed", "sprayed, reversed"):
        passed = report[name]
        assert 0 < passed.passed < 20 and 0 < len(passed.examples) <= 3  # one place in ten is the last
        assert all(example.reply.count(",") == DISTRACTORS and example.grade.score == 1.0 for example in passed.examples)
    assert report["human reply of another row"].passed == 0


@pytest.mark.parametrize(
    ("code", "should", "should_not"),
    [
        (
            "def f(completions, answer): return [a in c[0]['content'] for a, c in zip(answer, completions)]",
            {"human reply", "sprayed"},
            {"empty"},
        ),
        ("def f(completions): return [1.0] * len(completions)", set(KINDS), set()),
        ("def f(completions): return [0.9] * len(completions)", set(), set(KINDS)),
    ],
)
def test_functions_of_ones_own(tmp_path: Path, code: str, should: set[str], should_not: set[str]) -> None:
    path = tmp_path / "checker.py"
    path.write_text(code)
    with made(f"{path}:f") as checker:
        report = probe(checker, rows(), 0)
    assert {name for name in should if report[name].passed == 12} == should
    assert {name for name in should_not if report[name].passed == 0} == should_not
    wrongly = [tried for tried in report.kinds if tried.should_pass is False and tried.passed]
    assert all(len(tried.examples) == min(3, tried.passed) for tried in wrongly)


def test_a_human_reply_that_fails_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "checker.py"
    path.write_text("def f(completions): return [None if 'r' in c[0]['content'] else 1 / 0 for c in completions]")
    with made(f"{path}:f") as checker:
        report = probe(checker, [ask(human="better"), ask(human="fine", row_id="s")], 0)
    assert (report["human reply"].passed, report["human reply"].failed) == (0, 1)
    assert [example.reply for example in report["human reply"].examples] == ["better", "fine"]


def test_letters_are_sprayed_among_letters() -> None:
    with made("choice") as checker:
        report = probe(checker, [ask(human=f"The answer is ({letter})", row_id=letter) for letter in "ABCDEFGHIJ"], 0)
    assert report["human reply"].passed == 10
    assert report["sprayed"].tried == 10 and report["sprayed"].passed == 0


def test_prompts_with_an_answer_alone_are_probed_by_what_needs_no_human_reply() -> None:
    with made("number") as checker:
        report = probe(checker, [ask(answer=str(n), row_id=f"r{n}") for n in range(5)], 0)
    of_humans = {name for name in KINDS if "human" in name}
    assert report.rows == 5 and {tried.name: tried.tried for tried in report.kinds} == {name: 5 * (name not in of_humans) for name in KINDS}


def test_nothing_to_probe() -> None:
    with made("number") as checker:
        assert [tried.tried for tried in probe(checker, [ask()], 0).kinds] == [0] * len(KINDS)
        (alone,) = [probe(checker, [ask(human="3")], 0)["human reply of another row"]]
    assert alone.tried == 0


def test_a_third_of_the_winners_is_wrong() -> None:
    """Pass rate 2%, false positives 1%: 0.0098 / 0.0298."""
    assert share_of_wrong_winners(0.02, 0.01) == pytest.approx(0.0098 / 0.0298)
    assert share_of_wrong_winners(0.0, 0.0) == 0.0
    assert share_of_wrong_winners(0.0, 0.01) == 1.0


@given(st.floats(0.01, 1), st.floats(0, 1))
def test_wrong_winners_by_counting(rate: float, false_positives: float) -> None:
    right, wrong = 1e6 * rate, 1e6 * (1 - rate) * false_positives
    assert share_of_wrong_winners(rate, false_positives) == pytest.approx(wrong / (right + wrong))
