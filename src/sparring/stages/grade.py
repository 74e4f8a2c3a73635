"""Grades every reply of the opponent by the recipe's checker, between sampling and scoring; for verified and majority targets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from sparring.checkers.grades import Checker, Grade, GradingRequest, require_few_failures
from sparring.checkers.make import asked_of, open_checker
from sparring.checkers.probe import FALSE_POSITIVES, share_of_wrong_winners
from sparring.console import log
from sparring.data.records import Reply
from sparring.data.tables import items_done, read_rows, run_shards
from sparring.errors import UserError
from sparring.evaluation.metrics import Score, mean_score
from sparring.opponent.replies import read_replies
from sparring.progress import progress
from sparring.rundir import StageRecord
from sparring.stage_names import iteration_of, iteration_stage
from sparring.stages.context import Common, RunContext, counts_text
from sparring.stages.run_stage import PromptRows, StageWork
from sparring.targets import Candidates
from sparring.targets.builtin import vote_share
from sparring.targets.select import HUMAN, candidates_of

PROMPTS_PER_SHARD = 256
PROMPTS_PER_CALL = 64  # after each call of the checker its failures are counted
LOW_PASS_RATE = 0.05  # about the lowest pass rate at which a game was seen to gain anything (docs/targets.md)


def grade(context: RunContext, t: int) -> StageRecord | None:
    """Grades of all replies of iteration t; only they are recomputed if the checker changes. None for the human target."""
    recipe = context.recipe
    if not recipe.target.uses_grades:
        return None
    name = iteration_stage(t, "grade")
    if context.is_rank:
        return context.computed(name)
    with open_checker(recipe, recipe.target.checker) as checker:
        return context.run_stage(name, grading(context, t, checker))


def grading(context: RunContext, t: int, checker: Checker) -> StageWork:
    """The work of the stage that grades the replies of iteration t."""
    replies_of = context.run.finished(iteration_stage(t, "generate"))
    assert replies_of is not None, f"iteration {t} has no replies to grade"
    target, common, prompt_rows = context.recipe.target, context.common(iteration_stage(t, "grade")), context.prompt_rows
    # an input only where it is not the default, which runs of earlier versions were made with
    own: dict[str, Any] = {"with_human": False} if target.counts_votes and target.human == "never" else {}
    own |= {"replies": replies_of, "prompt_rows": prompt_rows, "checker": checker, "pass_score": target.pass_score}
    return partial(_grade, common, target.counts_votes, **own)


def _grade(
    common: Common,
    by_votes: bool,
    stage: Path,
    *,
    replies: StageRecord,
    prompt_rows: PromptRows,
    checker: Checker,
    pass_score: float,
    with_human: bool = True,
) -> dict[str, Any]:
    """by_votes: the most frequent answer wins, which a warning of a low pass rate takes into account. with_human: grade the human replies
    too, which with a tolerance also affect which answers vote together."""
    sampled = read_replies(replies.path)
    asked = asked_of(prompt_rows, sampled, common.chat.decode, with_human=with_human and not checker.shuffles)
    facts = grade_all(stage, asked, sampled, checker, f"{common.title}: grading")
    found = candidates_of(read_rows(stage), sampled, prompt_rows, pass_score)
    scores = rate_scores(rates(found))
    _log_scores(scores, by_votes, common)
    return {**facts, "rates": scores}


def candidates_at(context: RunContext, t: int, regraded: Mapping[int, Path] | None = None) -> dict[str, Candidates]:
    """row id -> the graded replies of iteration t. regraded: iteration -> the folder with grades that are to replace those of the run."""
    generated, graded = (context.run.root / iteration_stage(t, part) for part in ("generate", "grade"))
    graded = (regraded or {}).get(t, graded)
    return candidates_of(read_rows(graded), read_replies(generated), context.prompt_rows, context.recipe.target.pass_score)


def graded_vote_shares(context: RunContext, iterations: int) -> list[float]:
    """The mean share of votes for the leading answer, over the training prompts, in each of the first `iterations`, 0 where no answer was
    found. Empty if nothing was graded, or if the next iteration is trained already: a version without this rule has played on."""
    if context.run.finished(iteration_stage(iterations, "train")):
        return []
    records = [context.run.finished(iteration_stage(t, "grade")) for t in range(iterations)]
    return [record.facts["rates"].get("vote_share", {"value": 0.0})["value"] for record in records if record]


def _log_scores(scores: Mapping[str, Score], by_votes: bool, common: Common) -> None:
    shown = [f"{name.replace('_', ' ')} {score['value']:.3f} ({score['n']} prompts)" for name, score in scores.items()]
    log.info(f"{common.title}: {', '.join(shown) or 'no reply has a score or an answer'}")
    rate = scores.get("pass_rate")
    if iteration_of(common.name) == 0 and rate is not None and rate["value"] < LOW_PASS_RATE:
        log.warning(f"target.checker: {_few_pass(rate['value'], by_votes)}: try easier prompts, a better start or more SFT first")


def _few_pass(rate: float, by_votes: bool) -> str:
    if by_votes:
        return f"only {rate:.1%} of the replies to prompts with a known answer are right, so most majorities agree on wrong answers"
    wrong = share_of_wrong_winners(rate, FALSE_POSITIVES)
    return (
        f"only {rate:.1%} of the replies pass; if it passes {FALSE_POSITIVES:.0%} of wrong replies, {wrong:.0%} of the winners are wrong "
        "(`sparring check-checker` measures how many it passes)"
    )


def grade_all(stage: Path, asked: Sequence[GradingRequest], replies: Sequence[Reply], checker: Checker, phase: str) -> dict[str, Any]:
    """Write a table of grades into shards under `stage`, each row with its text; finished shards are kept. Returns the stage's facts.

    Raises UserError as soon as the checker has failed on more than MOST_FAILURES of all replies. All shards are deleted then, because
    failures may depend on things outside the fingerprint: time limits, memory, files that the checker reads.
    """
    per_row: dict[str, int] = defaultdict(int)
    for reply in replies:
        per_row[reply.row_id] += 1
    kept = read_rows(stage)
    failed = _failures(kept)
    checker.works = checker.works or any(not row["failed"] for row in kept)
    calls = PROMPTS_PER_SHARD if checker.shuffles else PROMPTS_PER_CALL
    with progress(phase, len(asked), "prompts", items_done(stage)) as shown:

        def work(part: Sequence[GradingRequest]) -> dict[str, list[Any]]:
            rows: list[dict[str, Any]] = []
            for start in range(0, len(part), calls):
                group = part[start : start + calls]
                graded = _graded(group, checker, per_row)
                failed.extend(_failures(graded))
                _require_few(failed, checker, len(replies))
                rows.extend(graded)
                shown.advance(len(group))
            return {name: [row[name] for row in rows] for name in rows[0]}

        try:
            run_shards(stage, asked, PROMPTS_PER_SHARD, work)
            facts = _facts(stage, checker)
        except UserError:
            for shard in stage.glob("shard-*.parquet"):
                shard.unlink()
            raise
    log.info(f"{phase}: {counts_text(facts)}")
    return facts


def _facts(stage: Path, checker: Checker) -> dict[str, int]:
    rows = [row for row in read_rows(stage) if row["replica"] != HUMAN]
    failures = _require_few(_failures(rows), checker, len(rows))
    return {"replies": len(rows), "without_answer": sum(row["answer"] is None for row in rows), "failures": failures}


def _graded(asked: Sequence[GradingRequest], checker: Checker, per_row: Mapping[str, int]) -> list[dict[str, Any]]:
    """per_row: row id -> its number of sampled replies; a human reply comes before them and has the replica HUMAN."""
    return [
        {"row_id": one.row_id, "replica": place - (len(one.replies) - per_row[one.row_id]), "text": text, **vars(graded)}
        for one, grades in zip(asked, checker.grade(asked), strict=True)
        for place, (text, graded) in enumerate(zip(one.replies, grades, strict=True))
    ]


def _failures(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["failed"] and row["replica"] != HUMAN]


def _require_few(failed: Sequence[Mapping[str, Any]], checker: Checker, total: int) -> int:
    grades = [Grade(*(row[name] for name in ("score", "answer", "reason", "failed"))) for row in failed]
    return require_few_failures([row["text"] for row in failed], grades, checker.name, total)


def rates(found: Mapping[str, Candidates]) -> dict[str, dict[str, float]]:
    """Rate -> row id -> value. `pass_rate`: share of replies that passed, for prompts with a judged reply; `vote_share`: share of votes
    for the leading answer; `distinct_answers`: number of different answers."""
    judged = {row_id: one for row_id, one in found.items() if any(reply.passed is not None for reply in one.replies)}
    values = {"pass_rate": {row_id: fmean(reply.has_passed for reply in one.replies) for row_id, one in judged.items()}} if judged else {}
    if any(reply.answer is not None for one in found.values() for reply in one.replies):
        values["vote_share"] = {row_id: vote_share(one.replies) for row_id, one in found.items()}
        answers = {row_id: {reply.answer for reply in one.replies if reply.has_vote} for row_id, one in found.items()}
        values["distinct_answers"] = {row_id: float(len(distinct)) for row_id, distinct in answers.items()}
    return values


def rate_scores(values: Mapping[str, Mapping[str, float]]) -> dict[str, Score]:
    """Means over prompts with their standard errors."""
    return {name: mean_score(list(found.values()), True if name == "pass_rate" else None) for name, found in values.items()}
