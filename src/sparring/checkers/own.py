"""A user's function as a checker: loaded from a local file, in separate processes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sparring.checkers.grades import Asked, Grade, find_answer, require_few_failures
from sparring.checkers.pool import Item, Pool, Result
from sparring.checkers.worker import SIGNATURES
from sparring.own_code import OwnCode

WHERE = "target.checker"
TRIED = 16  # replies after which a function that fails on all of them is given up


class OwnChecker:
    """Grades by `path/to/file.py:function`. The answer of a grade is what the pattern finds, where there is one.

    Raises UserError when the file or the function cannot be loaded.
    """

    def __init__(self, name: str, pattern: re.Pattern[str] | None, seconds: float, memory_mb: int, workers: int) -> None:
        code = OwnCode.read(name, WHERE)
        self.name, self._pattern = name, pattern
        self.reads_answers = pattern is not None
        self.fingerprint: dict[str, Any] = {
            "kind": "own",
            "path": code.path,
            "function": code.function,
            "sha256": code.sha256,
            "answer_pattern": pattern.pattern if pattern else None,
        }
        self._pool = Pool({"own": {"path": code.path, "source": code.source, "name": code.function}}, seconds, memory_mb, workers)
        if trouble := self._pool.load():
            raise code.explained(trouble, f"a checker is {SIGNATURES}")

    def grade(self, asked: Sequence[Asked]) -> list[list[Grade]]:
        """Raises UserError when none of the first TRIED replies can be graded: were each to take its time limit, it would take days."""
        texts = [reply for one in asked for reply in one.replies]
        items = [_item(one, reply) for one in asked for reply in one.replies]
        first = self._grades(texts[:TRIED], items[:TRIED])
        if len(first) == TRIED and all(grade.failed for grade in first):
            require_few_failures(texts[:TRIED], first, self.name)
        grades = iter([*first, *self._grades(texts[TRIED:], items[TRIED:])])
        return [[next(grades) for _ in one.replies] for one in asked]

    def expected(self, asked: Asked) -> str | None:
        """Only the function knows."""
        return None

    def close(self) -> None:
        self._pool.close()

    def _grades(self, texts: Sequence[str], items: Sequence[Item]) -> list[Grade]:
        return [self._grade(text, result) for text, result in zip(texts, self._pool.answer(items), strict=True)]

    def _grade(self, reply: str, result: Result) -> Grade:
        if "failed" in result:
            return Grade(None, None, result["failed"], failed=True)
        answer = find_answer(self._pattern, reply) if self._pattern else None
        score = result["score"]
        return Grade(score, answer, "no score given" if score is None else f"scored {score:g}")


def _item(asked: Asked, reply: str) -> Item:
    columns = {**asked.columns, "answer": asked.answer, "human_reply": asked.human, "row_id": asked.row_id}
    return {"prompt": list(asked.prompt), "completion": reply, "columns": columns}
