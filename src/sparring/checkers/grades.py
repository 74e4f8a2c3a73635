"""The input of a checker, grades, and the answer that a pattern finds in a text or that human replies suggest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sparring.data.records import Example, Message
from sparring.errors import UserError

NO_ANSWER = "no answer found"
NOTHING_TO_COMPARE = "nothing to compare with"


@dataclass(frozen=True)
class GradingRequest:
    """One prompt, what is known of its answer, and the replies to grade."""

    row_id: str
    prompt: tuple[Message, ...]
    answer: str | None  # the text of the data's answer column, if the row has one
    human: str | None  # the human reply, if the row has one
    columns: Mapping[str, Any]  # further columns of the row, for a user's function
    replies: tuple[str, ...]
    cut: frozenset[int] = frozenset()  # places of replies that were cut at the limit, where that is known


@dataclass(frozen=True)
class Grade:
    """What a checker says of one reply."""

    score: float | None  # 1.0 right, 0.0 wrong; any finite number of a user's function; None: no score
    answer: str | None  # as read, in a normal form: within one prompt equal texts are equal answers; None: no answer was found
    reason: str  # a short explanation for readers
    failed: bool = False  # the function raised, took too long, ended its process or returned something that is not a score for this reply


class Checker:
    """Grades replies."""

    name: str
    fingerprint: dict[str, Any]  # all that the grades depend on
    reads_answers = True  # whether a grade ever has an answer, so that votes can be counted
    shuffles = False  # a grade depends on the other replies of the same call
    works = False  # some reply is known to have been graded

    def grade(self, asked: Sequence[GradingRequest]) -> list[list[Grade]]:
        """One grade for each reply of each prompt, in their order."""
        raise NotImplementedError

    def expected(self, asked: GradingRequest) -> str | None:
        """The right answer in normal form: from the answer column where the row has one, else from the human reply. None: there is none,
        or only a user's function knows it."""
        return None

    def close(self) -> None:
        """End the checker's processes, if it has any. It grades no more."""


def ask(examples: Iterable[Example], texts: Mapping[str, Sequence[str]]) -> list[GradingRequest]:
    """One question for each example, with the replies that `texts` has by its row id."""
    found = []
    for example in examples:
        said = example.conversation
        human = said.reply if example.has_reply else None
        found.append(GradingRequest(example.row_id, said.prompt, said.answer, human, said.columns, tuple(texts.get(example.row_id, ()))))
    return found


MOST_FAILURES = 0.05  # share of replies that a user's function may fail to score


def require_few_failures(texts: Sequence[str], grades: Sequence[Grade], name: str, total: int | None = None) -> int:
    """How many of the replies the checker of that name could not grade. Raises UserError where they are more than MOST_FAILURES of `total`
    replies, of these when None."""
    total = len(grades) if total is None else total
    failed = [(text, grade.reason) for text, grade in zip(texts, grades, strict=True) if grade.failed]
    if len(failed) > MOST_FAILURES * total:
        text, reason = failed[0]
        raise UserError(
            f"{len(failed)} of {total} replies could not be graded, more than {MOST_FAILURES:.0%}; the first of them: {reason}",
            where=f"target.checker ({name}), on the reply {text[:200]!r}",
            remedy="correct the function, name columns that it needs in data.checker_columns, or raise target.timeout_seconds or "
            "target.memory_mb; nothing has to be sampled again",
        )
    return len(failed)


def find_answer(pattern: re.Pattern[str], text: str) -> str | None:
    """The last match in a reply (its group 1 if the pattern has one), stripped; None without one.

    Empty matches do not count: `.*` has one at the end of every text, and all replies would agree.
    """
    found = [(match.group(1 if pattern.groups else 0) or "").strip() for match in pattern.finditer(text)]
    return next((answer for answer in reversed(found) if answer), None)


def answer_text(pattern: re.Pattern[str] | None, text: str) -> str | None:
    """The part of a reply in which the answer is read: only what the pattern finds, or the whole text without a pattern."""
    return text if pattern is None else find_answer(pattern, text)


def right_text(pattern: re.Pattern[str] | None, asked: GradingRequest) -> str | None:
    """The text in which the right answer of a prompt is read: its answer column, else its human reply. None: nothing to compare with.

    The column may hold the bare answer, which a pattern for whole replies does not find.
    """
    if not has_answer(asked):
        return None if asked.human is None else answer_text(pattern, asked.human)
    assert asked.answer is not None
    return (find_answer(pattern, asked.answer) if pattern else None) or asked.answer


def has_answer(asked: GradingRequest) -> bool:
    """Whether the row has an answer; an empty cell of the answer column does not count."""
    return bool(asked.answer and asked.answer.strip())


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
    Form("a number at the end", rf"(?<![A-Za-z0-9_.,])({_NUMBER})[.!%。\s]*\Z", "number"),
)


@dataclass(frozen=True)
class PatternProposal:
    """A form of answers, in how many of `replies` it finds one, and one of these as an example."""

    form: Form
    found: int
    replies: int
    example: str

    @property
    def is_usual(self) -> bool:
        """Whether nearly all replies have an answer in this form: at least the share USUAL."""
        return self.found >= USUAL * self.replies


def propose(replies: Sequence[str]) -> PatternProposal | None:
    """The first form that nearly all replies have, else the most frequent one; None if fewer than half of the replies have it."""
    tried = []
    for form in FORMS:
        pattern = re.compile(form.pattern)
        if answers := [answer for reply in replies if (answer := find_answer(pattern, reply)) is not None]:
            tried.append(PatternProposal(form, len(answers), len(replies), answers[0]))
    usual = next((proposal for proposal in tried if proposal.is_usual), None)
    best = usual or max(tried, key=lambda proposal: proposal.found, default=None)
    return best if best is not None and best.found >= WORTH_A_LOOK * best.replies else None
