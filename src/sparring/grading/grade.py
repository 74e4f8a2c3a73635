"""`sparring grade`: stored replies graded again by another checker, or the stored grades themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.checkers.grades import Checker, Grade, ask
from sparring.config import Recipe
from sparring.errors import UserError
from sparring.grading.batches import ReplyBatch, ReplyKey, read_batches
from sparring.grading.outcome import GradeAgreement, GradedBatch, GradeExample, agreement, examples_of, failures_of
from sparring.grading.trial_rows import checker_of, settings_for
from sparring.progress import progress
from sparring.stage_names import recipe_of_game

CHECKER = "--checker"
CHUNK = 256  # prompts that are graded together


@dataclass(frozen=True)
class GradingOutcome:
    """`checker`: the fingerprint of the checker of new grades; it and `agreement` are None if the stored grades are shown."""

    batches: list[GradedBatch]
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
        return _kept(root, recipe, read_batches(root, iterations, limit))
    with checker_of(settings_for(recipe, checker, pattern, CHECKER), CHECKER) as by:
        batches = read_batches(root, iterations, limit)
        graded = [GradedBatch(batch, grade_batch(batch, by), recipe.target.pass_score, by.reads_answers) for batch in batches]
        return _outcome(graded, by.fingerprint, agreement(graded))


def grade_batch(batch: ReplyBatch, checker: Checker) -> dict[ReplyKey, Grade]:
    """The checker's grade of every reply, computed in chunks of CHUNK prompts."""
    asked = ask(batch.examples, {row_id: [one.text for one in stored] for row_id, stored in batch.by_row_id.items()})
    found: dict[ReplyKey, Grade] = {}
    with progress(f"grading: {batch.title}", len(asked), "prompts") as shown:
        for start in range(0, len(asked), CHUNK):
            part = asked[start : start + CHUNK]
            for one, grades in zip(part, checker.grade(part), strict=True):
                found |= {stored.place: grade for stored, grade in zip(batch.by_row_id[one.row_id], grades, strict=True)}
            shown.advance(len(part))
    return found


def as_json(found: GradingOutcome) -> dict[str, Any]:
    """The content of the tables, with whole texts. Scores are named as in scores.json: exact_match is the pass rate."""
    both = found.agreement
    return {
        "checker": found.checker,
        "replies_of": [
            {
                "stage": one.batch.stage,
                "held_out": one.batch.is_held_out,
                **one.counts(),
                "scores": one.scores(),
                **({"kept_scores": one.kept_scores()} if found.checker else {}),
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


def _kept(root: Path, recipe: Recipe, batches: Sequence[ReplyBatch]) -> GradingOutcome:
    if not any(batch.kept for batch in batches):
        what = "these replies were not graded when the run was made"
        raise UserError(what, where=str(root), remedy=f"name a checker that grades them now: {CHECKER} number, for example")
    return _outcome(
        [GradedBatch(batch, batch.kept, recipe.target.pass_score, batch.reads_answers) for batch in batches if batch.kept], None, None
    )


def _outcome(graded: list[GradedBatch], fingerprint: dict[str, Any] | None, both: GradeAgreement | None) -> GradingOutcome:
    return GradingOutcome(graded, fingerprint, both, examples_of(graded, True), examples_of(graded, False), failures_of(graded))


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
        "kept": example.kept and vars(example.kept),
    }
