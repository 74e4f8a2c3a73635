"""math: answers compared by math-verify, in separate processes, since a hard expression may never finish."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sparring.checkers.builtin import graded
from sparring.checkers.grades import Checker, Grade, GradingRequest, answer_text, has_answer, right_text
from sparring.checkers.pool import Pool, Result
from sparring.console import printable
from sparring.errors import UserError, is_installed

MARKED = re.compile(r"\$|\\boxed|\\\(|\\\[")


class MathChecker(Checker):
    """Grades by `math_verify.verify(gold, answer)`. Raises UserError where the package is missing.

    An answer's normal form is what math-verify read. Equal answers to one prompt get the same one: the first of them in sorted order.
    """

    name = "math"

    def __init__(self, pattern: re.Pattern[str] | None, seconds: float, memory_mb: int, workers: int) -> None:
        if not is_installed("math_verify"):
            raise UserError("math needs the package math-verify", where="target.checker", remedy="pip install 'sparring[math]'")
        self._pattern = pattern
        self.fingerprint: dict[str, Any] = {"kind": "math", "answer_pattern": pattern.pattern if pattern else None}
        self._pool = Pool({"math": True}, seconds, memory_mb, workers)
        self._is_loaded = False

    def grade(self, asked: Sequence[GradingRequest]) -> list[list[Grade]]:
        golds = [self._gold_text(one) for one in asked]
        replies = [[self._reply_text(reply) for reply in one.replies] for one in asked]
        read = self._read([*golds, *(text for texts in replies for text in texts)])
        pairs = {
            (gold, text)
            for gold, texts in zip(golds, replies, strict=True)
            for text in texts
            if gold is not None and text is not None and _are_read(read, gold, text)
        }
        equal = self._compare(sorted(pairs))
        shared = self._votes(
            [{read[text]["answer"]: text for text in sorted(filter(None, texts)) if _are_read(read, text)} for texts in replies]
        )
        return [
            [_grade(text, gold, read, equal, votes) for text in texts] for gold, texts, votes in zip(golds, replies, shared, strict=True)
        ]

    def expected(self, asked: GradingRequest) -> str | None:
        text = self._gold_text(asked)
        return self._read([text])[text].get("answer")

    def close(self) -> None:
        self._pool.close()

    def _reply_text(self, reply: str) -> str | None:
        text = answer_text(self._pattern, reply)
        return _as_mathematics(text) if text and self._pattern else text

    def _gold_text(self, asked: GradingRequest) -> str | None:
        text = right_text(self._pattern, asked)
        return _as_mathematics(text) if text and (self._pattern or has_answer(asked)) else text

    def _read(self, texts: Sequence[str | None]) -> dict[str | None, Result]:
        """text -> what math-verify reads in it; None has no answer."""
        self._load()
        unique = sorted({text for text in texts if text is not None})
        results = self._pool.answer([{"text": text} for text in unique])
        return {None: {"answer": None}, **dict(zip(unique, results, strict=True))}

    def _load(self) -> None:
        """Start the first process. Raises UserError if it cannot load math-verify: every text would take the time limit otherwise."""
        if self._is_loaded:
            return
        if trouble := self._pool.load():
            why = printable(str(trouble.get("import") or trouble["lost"]))
            raise UserError(f"math-verify cannot be loaded: {why}", where="target.checker math", remedy=self._pool.remedy(trouble))
        self._is_loaded = True

    def _compare(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Result]:
        results = self._pool.answer([{"gold": gold, "answer": answer} for gold, answer in pairs])
        return dict(zip(pairs, results, strict=True))

    def _votes(self, prompts: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        """For each prompt's answers (what was read: the text that it was read in) the answer under which each votes.

        In every round the first one left represents all that are equal to it; if a comparison fails, the two are not equal.
        """
        shared: list[dict[str, str]] = [{} for _ in prompts]
        waiting = [sorted(answers) for answers in prompts]
        while any(waiting):
            rounds = [(n, rest[0], other) for n, rest in enumerate(waiting) for other in rest[1:]]
            equal = self._compare([(prompts[n][first], prompts[n][other]) for n, first, other in rounds])
            for votes, rest in zip(shared, waiting, strict=True):
                votes.update({rest[0]: rest[0]} if rest else {})
            for n, first, other in rounds:
                if equal[prompts[n][first], prompts[n][other]].get("score"):
                    shared[n][other] = first
            waiting = [[answer for answer in rest if answer not in votes] for votes, rest in zip(shared, waiting, strict=True)]
        return shared


def _as_mathematics(answer: str) -> str:
    """A bare answer between dollar signs; without them math-verify would read x^2+1 as the number 1."""
    return answer if MARKED.search(answer) else f"${answer.strip()}$"


def _are_read(read: dict[str | None, Result], *texts: str | None) -> bool:
    return all(read[text].get("answer") is not None for text in texts)


def _grade(
    text: str | None, gold: str | None, read: dict[str | None, Result], equal: dict[tuple[str, str], Result], votes: dict[str, str]
) -> Grade:
    """An answer that could not be read or compared in time is a failure, neither right nor wrong."""
    found, right = read[text], read[gold]
    compared = equal.get((gold, text), {}) if gold is not None and text is not None else {}
    for result in (found, right, compared):
        if "failed" in result:
            return Grade(None, None, result["failed"], failed=True)
    answer = None if found["answer"] is None else votes[found["answer"]]
    return graded(answer, compared.get("score") == 1.0, right["answer"])
