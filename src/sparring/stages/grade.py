"""Between sampling and scoring: every reply of the opponent graded by the recipe's checker, for targets that move."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparring.checkers.grades import Asked, Checker, Grade
from sparring.console import log
from sparring.data.records import Reply
from sparring.data.tables import items_done, read_rows, run_shards
from sparring.errors import UserError
from sparring.opponent.replies import read_replies
from sparring.progress import progress
from sparring.rundir import StageRecord
from sparring.stage_names import iteration_stage
from sparring.stages.checking import asked_of, open_checker
from sparring.stages.ground import Ground

HUMAN = -1  # replica of the human reply in a table of grades
PROMPTS_PER_SHARD = 256
MOST_FAILURES = 0.05  # share of replies that a function of one's own may fail to score


def grade(ground: Ground, t: int) -> StageRecord:
    """Grades of all replies of iteration t, made anew, and they alone, where the checker has changed."""
    replies_of = ground.run.finished(iteration_stage(t, "generate"))
    assert replies_of is not None, f"iteration {t} has no replies to grade"
    with open_checker(ground.recipe, ground.recipe.target.checker) as checker:

        def work(stage: Path) -> dict[str, Any]:
            replies = read_replies(replies_of.path)
            asked = asked_of(ground.played_examples, replies, ground.chat.decode, with_human=checker.name != "random")
            return grade_all(stage, asked, replies, checker, f"iteration {t}: grading")

        inputs = {
            "replies": replies_of.digest,
            "data": ground.played_inputs,
            "checker": checker.fingerprint,
            "pass_score": ground.recipe.target.pass_score,
        }
        return ground.maker.make(iteration_stage(t, "grade"), inputs, work, derived=True)


def grade_all(stage: Path, asked: Sequence[Asked], replies: Sequence[Reply], checker: Checker, phase: str) -> dict[str, Any]:
    """Write a table of grades into shards under `stage`, each row with its text; shards that are there are kept. Returns facts.

    Raises UserError when a function of one's own fails on more than MOST_FAILURES of the replies.
    """
    per_row: dict[str, int] = defaultdict(int)
    for reply in replies:
        per_row[reply.row_id] += 1
    with progress(phase, len(asked), "prompts", items_done(stage)) as shown:

        def work(part: Sequence[Asked]) -> dict[str, list[Any]]:
            rows = [
                _row(one, place - (len(one.replies) - per_row[one.row_id]), text, graded)
                for one, grades in zip(part, checker.grade(part), strict=True)
                for place, (text, graded) in enumerate(zip(one.replies, grades, strict=True))
            ]
            shown.advance(len(part))
            return {name: [row[name] for row in rows] for name in rows[0]}

        run_shards(stage, asked, PROMPTS_PER_SHARD, work)
    rows = [row for row in read_rows(stage) if row["replica"] != HUMAN]
    failed = [row for row in rows if row["failed"]]
    if len(failed) > MOST_FAILURES * len(rows):
        raise _too_many_failures(failed, len(rows), checker.name)
    facts = {"replies": len(rows), "failures": len(failed)}
    log.info(f"{phase}: {len(rows)} replies, {sum(row['answer'] is None for row in rows)} without an answer, {len(failed)} failures")
    return facts


def _row(asked: Asked, replica: int, text: str, graded: Grade) -> dict[str, Any]:
    return {"row_id": asked.row_id, "replica": replica, "text": text, **vars(graded)}


def _too_many_failures(failed: Sequence[Mapping[str, Any]], count: int, name: str) -> UserError:
    return UserError(
        f"{len(failed)} of {count} replies could not be graded, more than {MOST_FAILURES:.0%}; the first of them: {failed[0]['reason']}",
        where=f"target.checker ({name}), on the reply {failed[0]['text'][:200]!r}",
        remedy="correct the function, or raise target.timeout_seconds or target.memory_mb; nothing has to be sampled again",
    )
