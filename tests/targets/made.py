"""Replies with grades, made by hand or drawn at random."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from sparring.targets import Candidate, Candidates, Rules

WORDS = ["one", "two", "three", "one two", "two one", "one two three", "three two one four", "one two three four", "five"]


def ids_of(text: str, is_complete: bool = True) -> tuple[int, ...]:
    """Token ids that stand for a text, 1 of them per letter and the end of turn where it was reached."""
    return (*map(ord, text), *([0] if is_complete else []))


def reply(text: str, **grade: Any) -> Candidate:
    return Candidate(ids_of(text, grade.get("is_complete", True)), text, **grade)


def right(text: str, answer: str | None = "r") -> Candidate:
    return reply(text, passed=True, answer=answer)


def wrong(text: str, answer: str | None = "w") -> Candidate:
    return reply(text, passed=False, answer=answer)


def cut(candidate: Candidate) -> Candidate:
    """The same without its end of turn."""
    return replace(candidate, token_ids=ids_of(candidate.text, is_complete=False), is_complete=False)


def voting(*answers: str | None) -> tuple[Candidate, ...]:
    """One reply for each answer, no two alike; None: no answer was found."""
    return tuple(reply(f"{answer} {n}", answer=answer) for n, answer in enumerate(answers))


def texts(candidates: tuple[Candidate, ...]) -> set[str]:
    found = [one.text for one in candidates]
    assert len(set(found)) == len(found), "each of them once"
    return set(found)


@st.composite
def graded(draw: st.DrawFn) -> Candidate:
    made = reply(
        draw(st.sampled_from(WORDS)),
        is_complete=draw(st.booleans()),
        passed=draw(st.sampled_from([True, False, None])),
        answer=draw(st.sampled_from(["1", "2", None])),
    )
    return made


@st.composite
def tables(draw: st.DrawFn) -> Candidates:
    """Replies to a prompt with any grades, and perhaps a human one; equal texts may be graded differently, as a function may do."""
    replies = tuple(draw(st.lists(graded(), min_size=1, max_size=8)))
    human = draw(st.none() | st.sampled_from([*WORDS, "seven"]).map(lambda text: reply(text, answer="1", passed=True)))
    return Candidates(replies, human)


rules = st.builds(
    Rules,
    human=st.sampled_from(["fallback", "never", "mix", "only"]),
    max_winners=st.integers(1, 4),
    max_losers=st.integers(1, 4),
    losers=st.sampled_from(["all", "answered"]),
    near_duplicates=st.sampled_from([None, 0.5, 0.9]),
    min_votes=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    weigh_votes=st.booleans(),
)
