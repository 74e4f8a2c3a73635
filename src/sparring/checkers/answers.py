"""Finds the answer in a text."""

from __future__ import annotations

import re

from sparring.checkers.grades import Asked


def find_answer(pattern: re.Pattern[str], text: str) -> str | None:
    """The last match in a reply (its group 1 if the pattern has one), stripped; None without one.

    Empty matches do not count: `.*` has one at the end of every text, and all replies would agree.
    """
    found = [(match.group(1 if pattern.groups else 0) or "").strip() for match in pattern.finditer(text)]
    return next((answer for answer in reversed(found) if answer), None)


def answer_text(pattern: re.Pattern[str] | None, text: str) -> str | None:
    """Where the answer of a reply is read: what the pattern finds, where there is a pattern, and never the rest of the text then."""
    return text if pattern is None else find_answer(pattern, text)


def right_text(pattern: re.Pattern[str] | None, asked: Asked) -> str | None:
    """Where the right answer of a prompt is read: its answer column, else its human reply. None: nothing to compare with.

    The column may hold the bare answer, which a pattern for whole replies does not find.
    """
    if not has_answer(asked):
        return None if asked.human is None else answer_text(pattern, asked.human)
    assert asked.answer is not None
    return (find_answer(pattern, asked.answer) if pattern else None) or asked.answer


def has_answer(asked: Asked) -> bool:
    """An empty cell of the answer column is no answer."""
    return bool(asked.answer and asked.answer.strip())
