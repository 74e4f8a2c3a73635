"""A pattern that finds the answer in a reply, proposed from human replies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sparring.checkers.grades import find_answer

USUAL, WORTH_A_LOOK = 0.9, 0.5  # shares of the replies in which a pattern that is proposed, or only mentioned, finds an answer
_NUMBER = r"-?\d+(?:,\d{3})*(?:\.\d+)?"


class Form(NamedTuple):
    """A usual form of answers; `checker` compares such answers."""

    words: str
    pattern: str
    checker: str


# The more specific ones first: a reply that ends in "#### 72" ends in a number as well.
FORMS = (
    Form("a number after ####", rf"####\s*\$?({_NUMBER})", "number"),
    Form("the content of \\boxed{}", r"\\boxed\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}", "math"),
    Form("a letter after the word answer", r"(?i:\banswer)(?i:\s+is\b)?\s*:?\s*\(?([A-J])\b(?!['\u2019])", "choice"),
    Form("a number after the word answer", rf"(?i:\banswer)(?i:\s+is\b)?\s*:?\s*\$?({_NUMBER})", "number"),
    Form("a letter at the start", r"\A\s*\(?([A-J])(?:[).:]|\s*\Z)", "choice"),
    Form("a number after = at the end", rf"=\s*\$?({_NUMBER})[.\s]*\Z", "number"),
    Form("a number at the end", rf"(?<![\w.,])({_NUMBER})[.!%\s]*\Z", "number"),
)


@dataclass(frozen=True)
class PatternProposal:
    """In how many of `replies` the form has an answer, and one such answer."""

    form: Form
    found: int
    replies: int
    example: str

    @property
    def is_usual(self) -> bool:
        """Whether nearly all replies have an answer in this form: at least the share USUAL."""
        return self.found >= USUAL * self.replies


def propose(replies: Sequence[str]) -> PatternProposal | None:
    """The first form that nearly all replies have, else the most frequent one; None where not even half of them have any."""
    tried = [proposal for form in FORMS if (proposal := _tried(form, replies)) is not None]
    usual = next((proposal for proposal in tried if proposal.is_usual), None)
    best = usual or max(tried, key=lambda proposal: proposal.found, default=None)
    return best if best is not None and best.found >= WORTH_A_LOOK * best.replies else None


def _tried(form: Form, replies: Sequence[str]) -> PatternProposal | None:
    pattern = re.compile(form.pattern)
    answers = [answer for reply in replies if (answer := find_answer(pattern, reply)) is not None]
    return PatternProposal(form, len(answers), len(replies), answers[0]) if answers else None
