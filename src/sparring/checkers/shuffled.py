"""A random checker: the scores of another one, shuffled. A gain with it shows that any training sharpens the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sparring.checkers.grades import Asked, Checker, Grade

Slot = tuple[int, int]  # prompt, reply


class RandomChecker:
    """Shuffles the scores of one call among its replies, so that the pass rate stays the same.

    Replies in which no answer was found, and those without a score, keep their grade. The shuffle depends on the seed and the rows, not on
    their order.
    """

    name = "random"

    def __init__(self, like: Checker, seed: int) -> None:
        self._like, self._seed = like, seed
        self.reads_answers = like.reads_answers
        self.fingerprint: dict[str, Any] = {"kind": "random", "seed": seed, "of": like.fingerprint}

    def grade(self, asked: Sequence[Asked]) -> list[list[Grade]]:
        grades = self._like.grade(asked)
        slots = [(p, r) for p, prompt in enumerate(grades) for r, grade in enumerate(prompt) if self._is_shuffled(grade)]
        by_name = sorted(slots, key=lambda slot: (asked[slot[0]].row_id, slot[1], self._random_key(asked, slot)))
        by_chance = sorted(slots, key=lambda slot: self._random_key(asked, slot))
        shuffled = [list(prompt) for prompt in grades]
        for (p, r), (q, s) in zip(by_name, by_chance, strict=True):
            shuffled[p][r] = replace(grades[p][r], score=grades[q][s].score, reason="assigned at random")
        return shuffled

    def expected(self, asked: Asked) -> str | None:
        return self._like.expected(asked)

    def close(self) -> None:
        self._like.close()

    def _is_shuffled(self, grade: Grade) -> bool:
        return grade.score is not None and (grade.answer is not None or not self.reads_answers)

    def _random_key(self, asked: Sequence[Asked], slot: Slot) -> str:
        prompt, reply = slot
        words = [self._seed, asked[prompt].row_id, reply, asked[prompt].replies[reply]]
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()
