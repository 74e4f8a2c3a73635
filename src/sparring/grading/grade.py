"""`sparring grade`: stored replies graded again by another checker, or the stored grades: statistics, disagreements, examples to read."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparring.checkers.grades import Checker, Grade, ask
from sparring.errors import UserError
from sparring.grading.batches import ReplyBatch, StoredReply, read_batches
from sparring.grading.trial import checker_of, settings_for
from sparring.progress import progress
from sparring.stage_names import recipe_of_game

CHECKER = "--checker"
CHUNK = 256  # prompts that are graded together
EXAMPLES = 3
GradePair = tuple[bool, bool]  # whether a reply passed by the kept grade, and by the new one


@dataclass(frozen=True)
class GradeExample:
    """A reply to show, with the title of its batch, its prompt and its grade."""

    title: str
    prompt: str
    stored: StoredReply
    grade: Grade


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


@dataclass(frozen=True)
class GradingOutcome:
    """`checker`: the fingerprint of the checker of new grades; it and `agreement` are None if the stored grades are shown."""

    batches: list[ReplyBatch]
    checker: dict[str, Any] | None
    agreement: GradeAgreement | None
    passed: list[GradeExample]
    failed: list[GradeExample]
    failures: list[tuple[int, GradeExample]]


def grade_run(root: Path, checker: str | None, pattern: str | None, iterations: Sequence[int], limit: int | None) -> GradingOutcome:
    """Grade a run's replies again if a checker or a pattern is given, else show the stored grades. The run is only read.

    pattern: without a checker it is used with the run's own; empty for none; limit: prompts of each batch. Raises UserError if there is
    nothing to grade, or no stored grade to show.
    """
    recipe = recipe_of_game(root)
    if checker is None and pattern is None:
        kept = [batch for batch in read_batches(root, iterations, limit) if any(stored.kept for stored in batch.replies)]
        if not kept:
            what = "these replies were not graded when the run was made"
            raise UserError(what, where=str(root), remedy=f"name a checker that grades them now: {CHECKER} number, for example")
        return _outcome(kept, None)
    with checker_of(settings_for(recipe, checker, pattern, CHECKER), CHECKER) as by:
        return _outcome([graded_again(batch, by) for batch in read_batches(root, iterations, limit)], by.fingerprint)


def graded_again(batch: ReplyBatch, checker: Checker) -> ReplyBatch:
    """The batch with the checker's grade of every reply, computed in chunks of CHUNK prompts."""
    asked = ask(batch.examples, {row_id: [one.text for one in stored] for row_id, stored in batch.by_row_id.items()})
    found: dict[str, tuple[StoredReply, ...]] = {}
    with progress(f"grading: {batch.title}", len(asked), "prompts") as shown:
        for start in range(0, len(asked), CHUNK):
            part = asked[start : start + CHUNK]
            for one, grades in zip(part, checker.grade(part), strict=True):
                pairs = zip(batch.by_row_id[one.row_id], grades, strict=True)
                found[one.row_id] = tuple(replace(stored, grade=grade) for stored, grade in pairs)
            shown.advance(len(part))
    return replace(batch, by_row_id=found, reads_answers=checker.reads_answers)


def _outcome(batches: list[ReplyBatch], checker: dict[str, Any] | None) -> GradingOutcome:
    both = agreement(batches) if checker else None
    return GradingOutcome(batches, checker, both, examples_of(batches, True), examples_of(batches, False), failures_of(batches))


def agreement(batches: Sequence[ReplyBatch]) -> GradeAgreement:
    """Compare stored and new grades over all batches."""
    pairs = [(pair, one, stored) for one in batches for stored in one.replies if (pair := _pair(one, stored)) is not None]
    differing = [(True, False), (False, True)]
    examples = {wanted: _examples(((one, stored) for pair, one, stored in pairs if pair == wanted)) for wanted in differing}
    return GradeAgreement(Counter(pair for pair, _, _ in pairs), examples)


def examples_of(batches: Sequence[ReplyBatch], passed: bool) -> list[GradeExample]:
    """Replies that passed, or that have a score and failed, chosen at random, each text once."""
    return _examples((one, stored) for one in batches for stored in one.replies if one.passed(stored, stored.grade) is passed)


def failures_of(batches: Sequence[ReplyBatch]) -> list[tuple[int, GradeExample]]:
    """Every reason for which a user's function failed, with its count and first reply; the most frequent first."""
    failed = [(stored.grade.reason, one, stored) for one in batches for stored in one.replies if stored.grade and stored.grade.failed]
    first = {reason: (one, stored) for reason, one, stored in reversed(failed)}
    reasons = Counter(reason for reason, _, _ in failed)
    return [(count, _example(*first[reason])) for reason, count in reasons.most_common(EXAMPLES)]


def _pair(one: ReplyBatch, stored: StoredReply) -> GradePair | None:
    kept, new = one.passed(stored, stored.kept), one.passed(stored, stored.grade)
    return None if kept is None or new is None else (kept, new)


def _examples(found: Iterable[tuple[ReplyBatch, StoredReply]]) -> list[GradeExample]:
    distinct: dict[Any, tuple[ReplyBatch, StoredReply]] = {(stored.row_id, stored.text): (one, stored) for one, stored in found}
    chosen = random.Random(0).sample(list(distinct.values()), min(EXAMPLES, len(distinct)))
    return [_example(one, stored) for one, stored in chosen]


def _example(one: ReplyBatch, stored: StoredReply) -> GradeExample:
    prompt = next(example for example in one.examples if example.row_id == stored.row_id).conversation.prompt
    assert stored.grade is not None, "only graded replies are shown"
    return GradeExample(one.title, prompt[-1]["content"], stored, stored.grade)


def as_json(found: GradingOutcome) -> dict[str, Any]:
    """The content of the tables, with whole texts. Scores are named as in scores.json: exact_match is the pass rate."""
    both = found.agreement
    return {
        "checker": found.checker,
        "replies_of": [
            {
                "stage": one.stage,
                "held_out": one.is_held_out,
                **one.counts(),
                "scores": one.scores(),
                **({"kept_scores": one.scores(kept=True)} if found.checker else {}),
            }
            for one in found.batches
        ],
        "examples": {"passed": [_as_json(e) for e in found.passed], "failed": [_as_json(e) for e in found.failed]},
        "failures": [{"replies": count, **_as_json(example)} for count, example in found.failures],
        "agreement": both
        and [
            {
                "kept_passes": kept,
                "passes": new,
                "replies": both.counts[kept, new],
                "examples": [_as_json(example) for example in both.examples.get((kept, new), ())],
            }
            for kept in (True, False)
            for new in (True, False)
        ],
    }


def _as_json(example: GradeExample) -> dict[str, Any]:
    stored = example.stored
    return {
        "replies_of": example.title,
        "row_id": stored.row_id,
        "replica": stored.replica,
        "prompt": example.prompt,
        "reply": stored.text,
        "finish_reason": stored.finish_reason,
        **vars(example.grade),
        "kept": stored.other and vars(stored.other),
    }
