"""Scores and samples from measurements: cheap, so that another answer pattern or confidence needs no sampling or training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sparring.checkers.grades import Checker
from sparring.config import Recipe
from sparring.data.chat import Chat
from sparring.data.records import Example
from sparring.data.tables import write_table
from sparring.evaluation.answers import GradedRow, answer_items, failures_in, grade_rows, graded_columns
from sparring.evaluation.measure import Measured
from sparring.evaluation.metrics import (
    ROW_METRICS,
    MeasuredRow,
    Score,
    accuracy_score,
    auc_score,
    higher_is_better,
    mean_score,
    ratio_score,
)
from sparring.rundir import write_json
from sparring.stage_names import ITEMS, SAMPLES, SCORES

GRADES = "grades.parquet"
IN_SAMPLES = ("duel_margin", "exact_match", "exact_match_greedy")  # where they are measured


@dataclass(frozen=True)
class Grading:
    """How held-out replies are graded. checker: that of the target, else that of the answer pattern; None without both. of_target: whether
    the target has a checker; then only complete replies with a score of at least `pass_score` pass."""

    answer_pattern: str | None
    checker: Checker | None
    of_target: bool
    pass_score: float

    @classmethod
    def of(cls, recipe: Recipe, checker: Checker | None) -> Self:
        """The grading that the recipe describes."""
        return cls(recipe.evaluate.answer_pattern, checker, recipe.target.checker is not None, recipe.target.pass_score)

    def inputs(self) -> dict[str, Any]:
        """For the fingerprint; without a checker of the target, the answer pattern determines the checker."""
        of_target = {"checker": self.checker.fingerprint, "pass_score": self.pass_score} if self.checker and self.of_target else {}
        return {"answer_pattern": self.answer_pattern, **of_target}


def write_scores(
    stage: Path, measured: Measured, chat: Chat, held_out: Sequence[Example], grading: Grading, confidence: float
) -> dict[str, int]:
    """Write scores.json, items.parquet and samples.parquet to `stage`, and the grade of every reply if there is a checker.

    Returns the stage's facts: "failures", how many replies the checker could not grade, if there is one. Raises UserError if they are many.
    """
    checker = grading.checker
    graded = [] if checker is None else grade_rows(held_out, measured.replies, measured.greedy, checker, chat.decode)
    items = _items(measured, graded, chat, held_out, grading)
    write_json(stage / SCORES, _scores(items, confidence))
    write_table(stage / ITEMS, {"row_id": [example.row_id for example in held_out], **items})
    write_table(stage / SAMPLES, _samples(measured, items, chat, held_out))
    if graded:
        write_table(stage / GRADES, graded_columns(graded))
    return {"failures": failures_in(graded)} if graded else {}


def _scores(items: Mapping[str, list[float]], confidence: float) -> dict[str, Score]:
    """Means of the items, and the three metrics that are not plain means."""
    found = {name: mean_score(values, higher_is_better(name)) for name, values in items.items()}
    lengths = items["human_reply_tokens"]
    found["nll_per_token"] = ratio_score(items["nll_per_reply"], lengths, False)
    found["length_auc"] = auc_score(lengths, items["reply_tokens"])
    if "duel_margin" in items:
        found["duel_accuracy"] = accuracy_score(items["duel_margin"], confidence)
    return found


def _items(
    measured: Measured, graded: Sequence[GradedRow], chat: Chat, held_out: Sequence[Example], grading: Grading
) -> dict[str, list[float]]:
    """metric -> its value for every held-out row, in their order. NLL per token is the sum of nll_per_reply over human_reply_tokens."""
    stop_ids, decode = chat.stop_ids, chat.decode
    triples = zip(held_out, measured.first, measured.logps, strict=True)
    rows = [MeasuredRow(example, reply, decode(reply.token_ids), logps, stop_ids) for example, reply, logps in triples]
    values = {name: [metric.of(row) for row in rows] for name, metric in ROW_METRICS.items()}
    own = {name: [float(one) for one in found if one is not None] for name, found in values.items() if None not in found}
    if grading.checker is None:
        return own
    return answer_items(graded, grading.pass_score, grading.of_target, grading.checker.reads_answers) | own


def _samples(measured: Measured, items: Mapping[str, list[float]], chat: Chat, held_out: Sequence[Example]) -> dict[str, list[Any]]:
    """Every sample behind the scores, as text, for readers and the report, with the items that they need."""
    greedy = {reply.row_id: chat.decode(reply.token_ids) for reply in measured.greedy or ()}
    replies = measured.first
    return {
        "row_id": [reply.row_id for reply in replies],
        "prompt": [example.conversation.prompt[-1]["content"] for example in held_out],
        "human": [example.conversation.text for example in held_out],
        "reply": [chat.decode(reply.token_ids) for reply in replies],
        "greedy": [greedy.get(reply.row_id) for reply in replies],
        "finish_reason": [reply.finish_reason for reply in replies],
        "human_logp": items["real_logp"],
        "reply_logp": items["generated_logp"],
        "human_tokens": list(map(int, items["human_reply_tokens"])),
        "reply_tokens": list(map(int, items["reply_tokens"])),
        "identical": list(map(bool, items["identical"])),
        **{name: items[name] for name in IN_SAMPLES if name in items},
    }
