"""The stored replies of a run, with the grades that the run gave them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sparring.checkers.grades import Grade
from sparring.data.prepare import PROMPTS, read_examples
from sparring.data.records import Example, FinishReason, Reply
from sparring.data.tables import read_rows
from sparring.errors import UserError
from sparring.evaluation.evaluate import GRADES
from sparring.evaluation.measure import GREEDY, REPLIES
from sparring.opponent.replies import read_replies
from sparring.own_code import is_own_code
from sparring.players import Players
from sparring.stage_names import evaluate_stage, iteration_of, stages_of_game, title_of

ReplyKey = tuple[str, int | None]  # row id and replica; None for the greedy reply


@dataclass(frozen=True)
class StoredReply:
    """A stored reply. `kept`: the grade that the run gave it, None if there is none."""

    row_id: str
    replica: int | None
    text: str
    finish_reason: FinishReason
    kept: Grade | None

    @property
    def place(self) -> ReplyKey:
        """What identifies the reply within its batch."""
        return self.row_id, self.replica


@dataclass(frozen=True)
class ReplyBatch:
    """The replies of one stage: of an iteration's opponent to training prompts, or of a player to held-out ones.

    `examples` are in the order of their row ids, and `by_row_id` holds the replies of each by its row id, a greedy one last. `must_end`: a
    reply that was cut at the limit does not pass, as the run itself counts. `reads_answers`: whether kept grades can have an answer.
    """

    stage: str
    is_held_out: bool
    examples: tuple[Example, ...]
    by_row_id: Mapping[str, tuple[StoredReply, ...]]
    must_end: bool
    reads_answers: bool

    @property
    def title(self) -> str:
        """The player whose stage it is, and the kind of its prompts."""
        return f"{title_of(self.stage.rpartition('/')[0])}, {'held-out' if self.is_held_out else 'training'} prompts"

    @property
    def replies(self) -> list[StoredReply]:
        """All replies, in the order of the examples."""
        return [stored for example in self.examples for stored in self.by_row_id[example.row_id]]

    @property
    def kept(self) -> dict[ReplyKey, Grade]:
        """The grades that the run gave."""
        return {stored.place: stored.kept for stored in self.replies if stored.kept is not None}


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
        names = stages_of_game(self._run.root, self._recipe)
        self.stages = [name for name in names if name.endswith(("/generate", "/measure")) and self._run.finished(name)]

    def read(self, name: str, limit: int | None) -> ReplyBatch:
        folder, is_held_out = self._run.verified(name).path, name.endswith("/measure")
        graded = self._graded(name, is_held_out)
        by_row_id: dict[str, list[StoredReply]] = defaultdict(list)
        for replica, reply in _replies(folder, is_held_out):
            row = graded.get((reply.row_id, replica))
            text, kept = (self._decode(reply), None) if row is None else (row["text"], _grade(row))
            by_row_id[reply.row_id].append(StoredReply(reply.row_id, replica, text, reply.finish_reason, kept))
        files = ["held_out.parquet"] if is_held_out else ["train.parquet", *([PROMPTS] if self._recipe.data.prompts else [])]
        data = self._run.verified("data").path
        examples = sorted((e for file in files for e in read_examples(data / file) if e.row_id in by_row_id), key=lambda e: e.row_id)
        must_end = not is_held_out or self._recipe.target.checker is not None
        own_function = is_own_code(self._recipe.target.grading_checker)
        reads_answers = not own_function or self._recipe.evaluate.answer_pattern is not None
        by_row = {row_id: tuple(own) for row_id, own in by_row_id.items()}
        return ReplyBatch(name, is_held_out, tuple(examples[:limit]), by_row, must_end, reads_answers)

    def _graded(self, name: str, is_held_out: bool) -> dict[ReplyKey, dict[str, Any]]:
        """reply -> its row in the run's own table of grades; empty if there is no such table."""
        owner = name.rpartition("/")[0]
        stage = evaluate_stage(owner) if is_held_out else f"{owner}/grade"
        if stage not in stages_of_game(self._run.root, self._recipe) or not self._run.finished(stage):
            return {}
        folder = self._run.verified(stage).path
        if is_held_out and not (folder / GRADES).exists():
            return {}
        return {(row["row_id"], row["replica"]): row for row in read_rows(folder / GRADES if is_held_out else folder)}

    def _decode(self, reply: Reply) -> str:
        return self._chat.decode(reply.token_ids)

    @cached_property
    def _chat(self) -> Any:
        return self._players.chat()


def _replies(folder: Path, is_held_out: bool) -> Iterator[tuple[int | None, Reply]]:
    replies = read_replies(folder / REPLIES if is_held_out else folder)
    yield from ((reply.replica, reply) for reply in sorted(replies, key=lambda reply: reply.replica))
    if (folder / GREEDY).exists():
        yield from ((None, reply) for reply in read_replies(folder / GREEDY))


def _grade(row: Mapping[str, Any]) -> Grade:
    return Grade(**{name: row[name] for name in Grade.__dataclass_fields__})
