"""Statistics of grades: pass rates with their errors, disagreements with other grades, examples to read."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.checkers.grades import Grade
from sparring.evaluation.answers import MAJ_AT, PASS_AT, GradedReply, GradedRow, answer_items
from sparring.evaluation.metrics import Score, higher_is_better, mean_score
from sparring.grading.batches import ReplyBatch, ReplyKey, StoredReply

EXAMPLES = 3
Grades = Mapping[ReplyKey, Grade]
GradePair = tuple[bool, bool]  # whether a reply passed by the kept grade, and by the new one


@dataclass(frozen=True)
class GradedBatch:
    """A batch with the grades to show, new or stored ones. `reads_answers`: whether these grades can have an answer."""

    batch: ReplyBatch
    grades: Grades
    pass_score: float
    reads_answers: bool

    def passed(self, stored: StoredReply, grade: Grade | None) -> bool | None:
        """Whether a reply with this grade passes; None if it has no score."""
        if grade is None or grade.score is None:
            return None
        return grade.score >= self.pass_score and (stored.finish_reason == "stop" or not self.batch.must_end)

    def scores(self) -> dict[str, Score]:
        """The batch's scores by the grades to show."""
        return self._scores(self.grades, self.reads_answers)

    def kept_scores(self) -> dict[str, Score]:
        """The same scores by the grades that the run gave."""
        return self._scores(self.batch.kept, self.batch.reads_answers)

    def counts(self) -> dict[str, int]:
        """Numbers of prompts and replies, and of replies without a score or an answer, cut at the limit, or not graded."""
        grades = [self.grades[stored.place] for stored in self.batch.replies if stored.place in self.grades]
        return {
            "prompts": len(self.batch.examples),
            "replies": len(self.batch.replies),
            "without_score": len(self.batch.replies) - sum(grade.score is not None for grade in grades),
            "without_answer": sum(grade.answer is None for grade in grades),
            "cut": sum(stored.finish_reason == "length" for stored in self.batch.replies),
            "failures": sum(grade.failed for grade in grades),
        }

    def _scores(self, grades: Grades, reads_answers: bool) -> dict[str, Score]:
        """Means over prompts, computed and named as in the run: over training prompts that have a reply with a score, or over all
        held-out ones; empty if no reply has a score."""
        rows = [row for example in self.batch.examples if (row := self._row(example.row_id, grades)) is not None]
        scored = [row for row in rows if any(reply.grade.score is not None for reply in row.replies)]
        counted = rows if self.batch.is_held_out and scored else scored
        items = answer_items(counted, self.pass_score, self.batch.must_end, reads_answers) if counted else {}
        return {name: mean_score(values, higher_is_better(name)) for name, values in items.items() if _is_shown(name)}

    def _row(self, row_id: str, grades: Grades) -> GradedRow | None:
        """The row with its grades; None if any reply has none."""
        stored = self.batch.by_row_id[row_id]
        if not all(one.place in grades for one in stored):
            return None
        replies = {one.replica: GradedReply(one.text, one.finish_reason, grades[one.place]) for one in stored}
        greedy = replies.pop(None, None)
        return GradedRow(row_id, tuple(replies.values()), greedy)


@dataclass(frozen=True)
class GradeExample:
    """A reply to show. `kept`: the run's own grade, if `grade` is another one."""

    title: str
    prompt: str
    stored: StoredReply
    grade: Grade
    kept: Grade | None


@dataclass(frozen=True)
class GradeAgreement:
    """Numbers of replies that have a stored and a new score, by whether each passes, and some replies on which the two differ."""

    counts: Mapping[GradePair, int]
    examples: Mapping[GradePair, Sequence[GradeExample]]

    @property
    def replies(self) -> int:
        """Number of replies that both score."""
        return sum(self.counts.values())

    @property
    def differ(self) -> int:
        """Number of replies that one passes and the other fails."""
        return sum(count for (kept, new), count in self.counts.items() if kept != new)


def agreement(batches: Sequence[GradedBatch], seed: int = 0) -> GradeAgreement:
    """Compare stored and new grades over all batches; `seed` selects the examples."""
    pairs = [(pair, one, stored) for one in batches for stored in one.batch.replies if (pair := _pair(one, stored)) is not None]
    differing = [(True, False), (False, True)]
    examples = {wanted: _examples(((one, stored) for pair, one, stored in pairs if pair == wanted), seed) for wanted in differing}
    return GradeAgreement(Counter(pair for pair, _, _ in pairs), examples)


def examples_of(batches: Sequence[GradedBatch], passed: bool, seed: int = 0) -> list[GradeExample]:
    """Replies that passed, or that have a score and failed, chosen at random, each text once."""
    found = ((one, stored) for one in batches for stored in one.batch.replies if one.passed(stored, one.grades.get(stored.place)) is passed)
    return _examples(found, seed)


def failures_of(batches: Sequence[GradedBatch]) -> list[tuple[int, GradeExample]]:
    """Every reason for which a user's function failed, with its count and first reply; the most frequent first."""
    failed = [
        (one, stored) for one in batches for stored in one.batch.replies if (g := one.grades.get(stored.place)) is not None and g.failed
    ]
    reasons = Counter(one.grades[stored.place].reason for one, stored in failed)
    first = {one.grades[stored.place].reason: (one, stored) for one, stored in reversed(failed)}
    return [(count, _example(*first[reason])) for reason, count in reasons.most_common(EXAMPLES)]


def _pair(one: GradedBatch, stored: StoredReply) -> GradePair | None:
    kept, new = one.passed(stored, stored.kept), one.passed(stored, one.grades.get(stored.place))
    return None if kept is None or new is None else (kept, new)


def _examples(found: Iterable[tuple[GradedBatch, StoredReply]], seed: int) -> list[GradeExample]:
    distinct: dict[Any, tuple[GradedBatch, StoredReply]] = {(stored.row_id, stored.text): (one, stored) for one, stored in found}
    chosen = random.Random(seed).sample(list(distinct.values()), min(EXAMPLES, len(distinct)))
    return [_example(one, stored) for one, stored in chosen]


def _example(one: GradedBatch, stored: StoredReply) -> GradeExample:
    prompt = next(example for example in one.batch.examples if example.row_id == stored.row_id).conversation.prompt
    grade = one.grades[stored.place]
    return GradeExample(one.batch.title, prompt[-1]["content"], stored, grade, None if stored.kept is grade else stored.kept)


def _is_shown(name: str) -> bool:
    return name in ("exact_match", "exact_match_greedy") or name.startswith((PASS_AT, MAJ_AT))
