"""`sparring grade`: stored replies graded again by another checker, or the stored grades: tables, disagreements, examples to read."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.checkers.grades import MOST_FAILURES, Checker, Grade, ask
from sparring.console import printable
from sparring.errors import UserError
from sparring.evaluation.metrics import MAJ_AT, PASS_AT, Score
from sparring.files import require_folder_of
from sparring.grading.batches import ReplyBatch, StoredReply, read_batches
from sparring.grading.trial import checker_of, described, excerpt, grade_text, print_records, settings_for
from sparring.progress import progress
from sparring.report.tables import Column, TableRow, models_table, print_table, with_error
from sparring.rundir import write_json
from sparring.stage_names import recipe_of_game

CHECKER = "--checker"
CHUNK = 256  # prompts that are graded together
EXAMPLES = 3
KEPT = "kept"  # the pass rate by the kept grades
COUNTS = {"prompts": "prompts", "replies": "replies", "without_answer": "no answer", "cut": "cut"}
RARE = {"without_score": "no score", "failures": "failures"}  # shown where there are any
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
    """`checker`: the fingerprint of the checker of new grades; None if the stored grades are shown."""

    batches: list[ReplyBatch]
    checker: dict[str, Any] | None


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
        return GradingOutcome(kept, None)
    with checker_of(settings_for(recipe, checker, pattern, CHECKER), CHECKER) as by:
        return GradingOutcome([graded_again(batch, by) for batch in read_batches(root, iterations, limit)], by.fingerprint)


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
    both = agreement(found.batches) if found.checker else None
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
        "examples": {name: [_as_json(one) for one in examples_of(found.batches, name == "passed")] for name in ("passed", "failed")},
        "failures": [{"replies": count, **_as_json(example)} for count, example in failures_of(found.batches)],
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


def show_grades(
    root: Path,
    checker: str | None,
    pattern: str | None,
    iterations: Sequence[int],
    limit: int | None,
    json_file: Path | None,
    console: Console,
) -> None:
    """Print the grades of a run's replies, and write them as JSON if a file is given."""
    require_folder_of(json_file, "--json")
    found = grade_run(root, checker, pattern, iterations, limit)
    if json_file is not None:
        write_json(json_file, as_json(found))
    print_grades(found, console)


def print_grades(found: GradingOutcome, console: Console) -> None:
    """Print the scores of each batch, examples that passed and failed, and the agreement if replies were graded again."""
    by = f"graded again by {described(found.checker)}" if found.checker else "as the run graded them"
    rows = [_row(one, has_kept=found.checker is not None) for one in found.batches]
    print_table(models_table(f"Replies, {by} (± standard error over prompts)", _columns(rows), rows, "replies of"), console)
    print_records("Passed, chosen at random", map(_record, examples_of(found.batches, True)), console)
    print_records("Failed, chosen at random", map(_record, examples_of(found.batches, False)), console)
    if found.checker is not None:
        _print_agreement(agreement(found.batches), console)
    _print_failures(found, console)


def _row(one: ReplyBatch, has_kept: bool) -> TableRow:
    counts = {name: Score(value=count, n=1, stderr=None) for name, count in one.counts().items()}
    kept = one.scores(kept=True).get("exact_match") if has_kept else None
    return TableRow(one.title, {**one.scores(), **counts, **({KEPT: kept} if kept else {})})


def _columns(rows: Sequence[TableRow]) -> list[Column]:
    """The columns of all scores that any row has, of pass@k only the largest k."""
    names = dict.fromkeys(name for row in rows for name in row.scores)
    many = [name for name in names if name.startswith(PASS_AT)][-1:] + [name for name in names if name.startswith(MAJ_AT)]
    headers = {"exact_match": "pass rate", KEPT: "kept", "exact_match_greedy": "greedy"}
    headers |= {name: name.replace("_at_", "@") for name in many}
    scores = [Column(header, with_error(name, 3)) for name, header in headers.items() if name in names]
    rare = {name: header for name, header in RARE.items() if any(row.scores[name]["value"] for row in rows)}
    return [*scores, *(Column(header, with_error(name, 0)) for name, header in {**COUNTS, **rare}.items())]


def _record(example: GradeExample) -> dict[str, str]:
    stored = example.stored
    place = "greedy" if stored.replica is None else f"reply {stored.replica}"
    return {
        "of": f"{example.title}, row {stored.row_id}, {place}",
        "prompt": excerpt(example.prompt),
        "reply": excerpt(stored.text) + (" [cut at the limit of tokens]" if stored.finish_reason == "length" else ""),
        "grade": grade_text(example.grade),
        **({"kept": grade_text(stored.other)} if stored.other else {}),
    }


def _print_agreement(both: GradeAgreement, console: Console) -> None:
    if not both.replies:
        console.print("No reply has both a stored and a new score: there is nothing to compare.")
        return
    console.print(f"Stored and new grades of {both.replies} replies: they differ on {both.differ}")
    table = Table()
    for header in ("kept grade", "passes now", "fails now"):
        table.add_column(header, justify="right")
    for kept in (True, False):
        table.add_row("passed" if kept else "failed", str(both.counts[kept, True]), str(both.counts[kept, False]))
    console.print(table)
    print_records("Passed before, fail now", map(_record, both.examples[True, False]), console)
    print_records("Failed before, pass now", map(_record, both.examples[False, True]), console)


def _print_failures(found: GradingOutcome, console: Console) -> None:
    counts: Mapping[str, int] = {name: sum(one.counts()[name] for one in found.batches) for name in ("failures", "replies")}
    if not counts["failures"]:
        return
    records = [{"replies": f"{count} such", **_record(example)} for count, example in failures_of(found.batches)]
    print_records("Not graded, by reason", records, console)
    note = f"{counts['failures']} of {counts['replies']} replies could not be graded."
    if counts["failures"] > MOST_FAILURES * counts["replies"]:
        note += f" A run stops if more than {MOST_FAILURES:.0%} cannot be graded."
    console.print(Text(printable(note)))
