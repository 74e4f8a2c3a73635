"""The stored replies of a run with their grades, and the scores of each stage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sparring.checkers.grades import Grade
from sparring.data.chat import Chat
from sparring.data.prepare import read_examples, read_played
from sparring.data.records import Example, FinishReason, Reply
from sparring.data.tables import read_rows
from sparring.errors import UserError
from sparring.evaluation.answers import GradedReply, GradedRow, answer_items
from sparring.evaluation.evaluate import GRADES
from sparring.evaluation.measure import GREEDY, REPLIES
from sparring.evaluation.metrics import SAMPLED, Score, higher_is_better, mean_score
from sparring.opponent.replies import read_replies
from sparring.own_code import is_own_code
from sparring.players import Players
from sparring.stage_names import iteration_of, stages_of_game, title_of

SHOWN = ("exact_match", *SAMPLED)  # how the names of scores begin


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
