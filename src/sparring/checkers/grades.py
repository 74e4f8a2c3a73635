"""What is graded and what a grade says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sparring.data.records import Message

NO_ANSWER = "no answer found"
NOTHING_TO_COMPARE = "nothing to compare with"


@dataclass(frozen=True)
class Asked:
    """One prompt, what is known of its answer, and the replies to grade.

    `answer` is the text of the data's answer column and `human` the human reply; None where the row has none. `columns` are further
    columns of the row, for a function of one's own.
    """

    row_id: str
    prompt: tuple[Message, ...]
    answer: str | None
    human: str | None
    columns: Mapping[str, Any]
    replies: tuple[str, ...]


@dataclass(frozen=True)
class Grade:
    """What a checker says of one reply.

    score: 1.0 right, 0.0 wrong; any finite number of a function of one's own; None: no score
    answer: the answer that was read, in a normal form: within one prompt equal texts are equal answers; None: no answer was found
    reason: for people, in a few words
    failed: the function raised, took too long, ended its process or returned what is no score for this reply
    """

    score: float | None
    answer: str | None
    reason: str
    failed: bool = False


class Checker(Protocol):
    """Grades replies.

    `reads_answers`: whether a grade ever has an answer, so that votes can be counted. `fingerprint`: all that the grades depend on.
    """

    name: str
    reads_answers: bool
    fingerprint: dict[str, Any]

    def grade(self, asked: Sequence[Asked]) -> list[list[Grade]]:
        """One grade for each reply of each prompt, in their order."""
        ...

    def expected(self, asked: Asked) -> str | None:
        """The right answer as it is read: of the answer column where the row has one, else of the human reply. None: there is none."""
        ...

    def close(self) -> None:
        """End the checker's processes. It grades no more."""
        ...
