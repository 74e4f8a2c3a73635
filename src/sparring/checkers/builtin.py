"""Checkers that read an answer from a text and compare: exact, number, choice. No text is ever evaluated."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from sparring.checkers.answers import find_answer
from sparring.checkers.grades import NO_ANSWER, NOTHING_TO_COMPARE, Asked, Grade
from sparring.checkers.letters import chosen_letter, leading_letter
from sparring.checkers.numbers import last_number

Read = Callable[[str], str | None]


class TextChecker:
    """Two answers are equal where their normal forms are.

    `read` turns a text, or what `pattern` finds in one, into an answer's normal form; None: there is none in it.
    """

    reads_answers = True

    def __init__(self, name: str, read: Read, pattern: re.Pattern[str] | None) -> None:
        self.name, self._read, self._pattern = name, read, pattern
        self.fingerprint: dict[str, Any] = {"kind": name, "answer_pattern": pattern.pattern if pattern else None}

    def grade(self, asked: Sequence[Asked]) -> list[list[Grade]]:
        return [self._grade_prompt(one) for one in asked]

    def expected(self, asked: Asked) -> str | None:
        return expected_by(self._read, self._pattern, asked)

    def close(self) -> None:
        """No process to end."""

    def _grade_prompt(self, asked: Asked) -> list[Grade]:
        gold = self.expected(asked)
        answers = [read_by(self._read, self._pattern, reply) for reply in asked.replies]
        shared = self._shared(answer for answer in answers if answer is not None)
        return [self._grade(answer, shared, gold) for answer in answers]

    def _grade(self, answer: str | None, shared: Mapping[str, str], gold: str | None) -> Grade:
        voted = None if answer is None else shared[answer]
        if gold is None:
            return Grade(None, voted, NOTHING_TO_COMPARE)
        if answer is None:
            return Grade(0.0, None, NO_ANSWER)
        return Grade(1.0, voted, "equal") if self._equal(answer, gold) else Grade(0.0, voted, differs_from(gold))

    def _equal(self, answer: str, gold: str) -> bool:
        return answer == gold

    def _shared(self, answers: Iterable[str]) -> dict[str, str]:
        """The text under which each answer of one prompt votes."""
        return {answer: answer for answer in answers}


class NumberChecker(TextChecker):
    """Numbers by exact value, or by an absolute difference of `tolerance` at most. The normal form is a fraction: 18, 1/3."""

    def __init__(self, pattern: re.Pattern[str] | None, tolerance: float) -> None:
        super().__init__("number", read_number, pattern)
        self._tolerance = Fraction(repr(tolerance))  # 0.1 is one tenth
        self.fingerprint["tolerance"] = tolerance

    def _equal(self, answer: str, gold: str) -> bool:
        return abs(Fraction(answer) - Fraction(gold)) <= self._tolerance

    def _shared(self, answers: Iterable[str]) -> dict[str, str]:
        """The smallest one stands for all that are equal to it, then the smallest of the others, and so on: whatever their order."""
        shared: dict[str, str] = {}
        representative = None
        for value in sorted({Fraction(answer) for answer in answers}):
            if representative is None or value - representative > self._tolerance:
                representative = value
            shared[str(value)] = str(representative)
        return shared


def read_by(read: Read, pattern: re.Pattern[str] | None, text: str) -> str | None:
    """The answer of a text: in what the pattern finds where there is a pattern, and never in the rest of the text then."""
    found = text if pattern is None else find_answer(pattern, text)
    return None if found is None else read(found)


def expected_by(read: Read, pattern: re.Pattern[str] | None, asked: Asked) -> str | None:
    """The right answer of a prompt. The answer column may hold the bare answer, which a pattern for whole replies does not find."""
    if asked.answer is None or not asked.answer.strip():
        return None if asked.human is None else read_by(read, pattern, asked.human)
    found = find_answer(pattern, asked.answer) if pattern else None
    return read(asked.answer if found is None else found)


def differs_from(gold: str) -> str:
    return f"differs from {gold[:60]!r}"


def read_text(text: str) -> str | None:
    return text.strip() or None


def read_number(text: str) -> str | None:
    value = last_number(text)
    return None if value is None else str(value)


def exact_checker(pattern: re.Pattern[str]) -> TextChecker:
    return TextChecker("exact", read_text, pattern)


def choice_checker(pattern: re.Pattern[str] | None) -> TextChecker:
    """What a pattern finds must start with the letter as an option; a whole reply may say that its answer is the letter."""
    return TextChecker("choice", leading_letter if pattern else chosen_letter, pattern)
