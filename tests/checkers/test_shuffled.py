"""random: the same scores, in other places."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from asking import ask, made
from hypothesis import given, settings
from hypothesis import strategies as st

from sparring.checkers.grades import Grade, GradingRequest
from sparring.checkers.make import CheckerSettings

NUMBER = CheckerSettings("number", None)


def prompts(count: int) -> list[GradingRequest]:
    return [ask(f"{n}", "3", "none", f"{n}", answer="3", row_id=f"r{n}") for n in range(count)]


def shuffled(asked: list[GradingRequest], seed: int = 0) -> list[list[Grade]]:
    with made("random", random_like=NUMBER, seed=seed) as checker:
        return checker.grade(asked)


def test_the_pass_rate_stays_and_the_places_change() -> None:
    asked = prompts(40)
    with made("number") as checker:
        honest = checker.grade(asked)
    by_chance = shuffled(asked)
    assert Counter(g.score for p in honest for g in p) == Counter(g.score for p in by_chance for g in p)
    assert [[g.answer for g in p] for p in honest] == [[g.answer for g in p] for p in by_chance]
    assert [p[2] for p in honest] == [p[2] for p in by_chance]  # no answer: the grade stays
    # second replies are all right, first and last almost never: dealt anew, about half of each is
    assert sum(p[1].score for p in by_chance) < 30
    assert by_chance == shuffled(asked) != shuffled(asked, seed=1)


def test_replies_that_were_cut_take_no_part() -> None:
    """They can never win: with a pass dealt to one of them a prompt would have fewer winners than with the checker."""
    asked = [replace(ask("3", "4", "3", "4", answer="3", row_id=f"r{n}"), cut=frozenset({2} if n % 2 else {3})) for n in range(40)]
    with made("number") as checker:
        honest = checker.grade(asked)
    by_chance = shuffled(asked)
    assert all(by_chance[n][place] == honest[n][place] for n, one in enumerate(asked) for place in one.cut)
    whole = [(n, place) for n in range(40) for place in range(4) if place not in asked[n].cut]
    scores = [[found[n][place].score for n, place in whole] for found in (honest, by_chance)]
    assert sum(scores[0]) == sum(scores[1]) == 60 and scores[0] != scores[1]


@settings(max_examples=20)
@given(st.permutations(range(12)))
def test_the_order_of_prompts_changes_nothing(order: list[int]) -> None:
    asked = prompts(12)
    assert shuffled([asked[n] for n in order]) == [shuffled(asked)[n] for n in order]


def test_what_it_says_of_itself() -> None:
    with made("random", random_like=NUMBER, seed=7) as checker:
        assert checker.reads_answers
        assert checker.expected(ask(answer="5")) == "5"
        assert checker.fingerprint["seed"] == 7 and checker.fingerprint["of"]["kind"] == "number"
