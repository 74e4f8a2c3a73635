"""The tables of `sparring grade`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.checkers.grades import MOST_FAILURES
from sparring.console import printable
from sparring.evaluation.metrics import MAJ_AT, PASS_AT, Score
from sparring.files import require_folder_of
from sparring.grading.batches import ReplyBatch
from sparring.grading.grade import GradeAgreement, GradeExample, GradingOutcome, as_json, grade_run
from sparring.grading.print_trial import excerpt, grade_text, print_records
from sparring.grading.trial import described
from sparring.report.tables import Column, TableRow, models_table, print_table, with_error
from sparring.rundir import write_json

KEPT = "kept"  # the pass rate by the kept grades
COUNTS = {"prompts": "prompts", "replies": "replies", "without_answer": "no answer", "cut": "cut"}
RARE = {"without_score": "no score", "failures": "failures"}  # shown where there are any


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
    print_records("Passed, chosen at random", map(_record, found.passed), console)
    print_records("Failed, chosen at random", map(_record, found.failed), console)
    if found.agreement is not None:
        _print_agreement(found.agreement, console)
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
    records = [{"replies": f"{count} such", **_record(example)} for count, example in found.failures]
    print_records("Not graded, by reason", records, console)
    note = f"{counts['failures']} of {counts['replies']} replies could not be graded."
    if counts["failures"] > MOST_FAILURES * counts["replies"]:
        note += f" A run stops if more than {MOST_FAILURES:.0%} cannot be graded."
    console.print(Text(printable(note)))
