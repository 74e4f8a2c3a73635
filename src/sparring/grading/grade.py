"""`sparring grade`: stored replies graded again by another checker, or the stored grades: tables, disagreements, examples to read."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.checkers.grades import MOST_FAILURES, Checker, Grade, ask
from sparring.console import printable
from sparring.data.chat import Chat
from sparring.data.prepare import read_examples, read_played
from sparring.data.records import Example, FinishReason, Reply
from sparring.data.tables import read_rows
from sparring.errors import UserError
from sparring.evaluation.answers import GradedReply, GradedRow, answer_items
from sparring.evaluation.evaluate import GRADES
from sparring.evaluation.measure import GREEDY, REPLIES
from sparring.evaluation.metrics import MAJ_AT, PASS_AT, SAMPLED, Score, higher_is_better, mean_score
from sparring.files import require_folder_of
from sparring.grading.trial import checker_of, described, excerpt, grade_text, print_records, settings_for
from sparring.opponent.replies import read_replies
from sparring.own_code import is_own_code
from sparring.players import Players
from sparring.progress import progress
from sparring.report.tables import Column, TableRow, models_table, print_table, with_error
from sparring.rundir import write_json
from sparring.stage_names import iteration_of, recipe_of_game, stages_of_game, title_of

CHECKER = "--checker"
CHUNK = 256  # prompts that are graded together
EXAMPLES = 3
KEPT = "kept"  # the pass rate by the kept grades
COUNTS = {"prompts": "prompts", "replies": "replies", "without_answer": "no answer", "cut": "cut"}
RARE = {"without_score": "no score", "failures": "failures"}  # shown where there are any
SHOWN = ("exact_match", *SAMPLED)  # how the names of scores begin
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
    rows = [_batch_row(one, has_kept=found.checker is not None) for one in found.batches]
    print_table(models_table(f"Replies, {by} (± standard error over prompts)", _columns(rows), rows, "replies of"), console)
    print_records("Passed, chosen at random", map(_record, examples_of(found.batches, True)), console)
    print_records("Failed, chosen at random", map(_record, examples_of(found.batches, False)), console)
    if found.checker is not None:
        _print_agreement(agreement(found.batches), console)
    _print_failures(found, console)


def _batch_row(one: ReplyBatch, has_kept: bool) -> TableRow:
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


@dataclass(frozen=True)
class StoredReply:
    """A stored reply and its grades, as far as it has any."""

    row_id: str
    replica: int | None  # None for a greedy reply
    text: str
    finish_reason: FinishReason
    kept: Grade | None  # the one that the run gave it
    grade: Grade | None  # the one to show, the same or that of another checker

    @property
    def other(self) -> Grade | None:
        """The grade that the run gave, if another one is shown."""
        return None if self.kept is self.grade else self.kept


@dataclass(frozen=True)
class ReplyBatch:
    """The replies of one stage: of an iteration's opponent to training prompts, or of a player to held-out ones."""

    stage: str
    is_held_out: bool
    examples: tuple[Example, ...]  # in the order of their row ids
    by_row_id: Mapping[str, tuple[StoredReply, ...]]  # the replies of each, a greedy one last
    must_end: bool  # a reply that was cut at the limit does not pass, as the run itself counts
    pass_score: float
    kept_answers: bool  # whether kept grades can have an answer
    reads_answers: bool  # whether the grades to show can have one

    @property
    def title(self) -> str:
        """The player whose stage it is, and the kind of its prompts."""
        return f"{title_of(self.stage.rpartition('/')[0])}, {'held-out' if self.is_held_out else 'training'} prompts"

    @property
    def replies(self) -> list[StoredReply]:
        """All replies, in the order of the examples."""
        return [stored for example in self.examples for stored in self.by_row_id[example.row_id]]

    def passed(self, stored: StoredReply, grade: Grade | None) -> bool | None:
        """Whether a reply with this grade passes; None if it has no score."""
        if grade is None or grade.score is None:
            return None
        return grade.score >= self.pass_score and (stored.finish_reason == "stop" or not self.must_end)

    def scores(self, kept: bool = False) -> dict[str, Score]:
        """Means over prompts by the grades to show, or by the kept ones, computed and named as in the run: over training prompts that have
        a reply with a score, or over all held-out ones; empty if no reply has a score."""
        rows = [row for example in self.examples if (row := _row(self.by_row_id[example.row_id], kept)) is not None]
        scored = [row for row in rows if any(reply.grade.score is not None for reply in row.replies)]
        counted = rows if self.is_held_out and scored else scored
        reads_answers = self.kept_answers if kept else self.reads_answers
        items = answer_items(counted, self.pass_score, self.must_end, reads_answers) if counted else {}
        return {name: mean_score(values, higher_is_better(name)) for name, values in items.items() if name.startswith(SHOWN)}

    def counts(self) -> dict[str, int]:
        """Numbers of prompts and replies, and of replies without a score or an answer, cut at the limit, or not graded."""
        grades = [stored.grade for stored in self.replies if stored.grade is not None]
        return {
            "prompts": len(self.examples),
            "replies": len(self.replies),
            "without_score": len(self.replies) - sum(grade.score is not None for grade in grades),
            "without_answer": sum(grade.answer is None for grade in grades),
            "cut": sum(stored.finish_reason == "length" for stored in self.replies),
            "failures": sum(grade.failed for grade in grades),
        }


def _row(stored: Sequence[StoredReply], kept: bool) -> GradedRow | None:
    """The replies to one prompt; None if any of them has no grade."""
    graded = [(one, one.kept if kept else one.grade) for one in stored]
    replies = {one.replica: GradedReply(one.text, one.finish_reason, grade) for one, grade in graded if grade is not None}
    if len(replies) < len(stored):
        return None
    greedy = replies.pop(None, None)
    return GradedRow(stored[0].row_id, tuple(replies.values()), greedy)


def read_batches(root: Path, iterations: Sequence[int], limit: int | None) -> list[ReplyBatch]:
    """All finished replies of a run, in the order of its stages.

    iterations: only of these, if any are given; limit: only to so many prompts of each batch, the first by row id, which is a hash. Raises
    UserError if there are none, or none of a given iteration.
    """
    reader = _Reader(Players(root))
    stages = [name for name in reader.stages if not iterations or iteration_of(name) in iterations]
    there = sorted({t for name in reader.stages if (t := iteration_of(name)) is not None})
    if not reader.stages:
        raise UserError("this run has sampled nothing yet", where=str(root), remedy="run its recipe first")
    if missing := sorted(set(iterations) - set(there)):
        has = ", ".join(map(str, there)) or "none yet"
        raise UserError(f"this run has no replies of iteration {missing[0]}", where="--iteration", remedy=f"it has {has}")
    return [reader.read(name, limit) for name in stages]


class _Reader:
    def __init__(self, players: Players) -> None:
        self._players, self._run, self._recipe = players, players.run, players.recipe
        self._finished = [name for name in stages_of_game(self._run.root, self._recipe) if self._run.finished(name)]
        self.stages = [name for name in self._finished if name.endswith(("/generate", "/measure"))]

    def read(self, name: str, limit: int | None) -> ReplyBatch:
        folder, is_held_out, target = self._run.verified(name).path, name.endswith("/measure"), self._recipe.target
        graded = self._graded(name, is_held_out)
        by_row_id: dict[str, list[StoredReply]] = defaultdict(list)
        for replica, reply in _replies(folder, is_held_out):
            row = graded.get((reply.row_id, replica))
            text, kept = (self._chat.decode(reply.token_ids), None) if row is None else (row["text"], _grade(row))
            by_row_id[reply.row_id].append(StoredReply(reply.row_id, replica, text, reply.finish_reason, kept, kept))
        data = self._run.verified("data").path
        examples = read_examples(data / "held_out.parquet", by_row_id) if is_held_out else read_played(data, by_row_id)
        examples.sort(key=lambda example: example.row_id)
        must_end = not is_held_out or target.checker is not None
        reads_answers = not is_own_code(target.grading_checker) or self._recipe.evaluate.answer_pattern is not None
        by_row = {row_id: tuple(own) for row_id, own in by_row_id.items()}
        return ReplyBatch(name, is_held_out, tuple(examples[:limit]), by_row, must_end, target.pass_score, reads_answers, reads_answers)

    def _graded(self, name: str, is_held_out: bool) -> dict[tuple[str, int | None], dict[str, Any]]:
        """Row id and replica of a reply -> its row in the run's own table of grades; empty if there is no such table."""
        owner = name.rpartition("/")[0]
        stage = f"{owner}/evaluate" if is_held_out else f"{owner}/grade"
        if stage not in self._finished:
            return {}
        folder = self._run.verified(stage).path
        if is_held_out and not (folder / GRADES).exists():
            return {}
        return {(row["row_id"], row["replica"]): row for row in read_rows(folder / GRADES if is_held_out else folder)}

    @cached_property
    def _chat(self) -> Chat:
        return self._players.chat()


def _replies(folder: Path, is_held_out: bool) -> Iterator[tuple[int | None, Reply]]:
    replies = read_replies(folder / REPLIES if is_held_out else folder)
    yield from ((reply.replica, reply) for reply in sorted(replies, key=lambda reply: reply.replica))
    if (folder / GREEDY).exists():
        yield from ((None, reply) for reply in read_replies(folder / GREEDY))


def _grade(row: Mapping[str, Any]) -> Grade:
    return Grade(**{name: row[name] for name in Grade.__dataclass_fields__})
