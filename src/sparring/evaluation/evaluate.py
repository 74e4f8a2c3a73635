"""Scores and samples from measurements: cheap, so that another answer pattern or confidence needs no sampling or training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparring.checkers.grades import Checker, ask, has_answer, require_few_failures
from sparring.config import Recipe
from sparring.console import log
from sparring.data.chat import Chat
from sparring.data.records import Example
from sparring.data.tables import write_table
from sparring.errors import UserError
from sparring.evaluation.answers import GradedRow, answer_items, grade_rows, graded_columns
from sparring.evaluation.measure import Measured
from sparring.evaluation.metrics import Score, accuracy_score, auc_score, mean_score, ratio_score
from sparring.evaluation.row_metrics import ROW_METRICS, MeasuredRow, higher_is_better
from sparring.own_code import is_own_code
from sparring.rundir import write_json
from sparring.stage_names import SCORES

ITEMS, SAMPLES, GRADES = "items.parquet", "samples.parquet", "grades.parquet"
IN_SAMPLES = ("duel_margin", "exact_match", "exact_match_greedy")  # where they are measured


class Evaluator:
    """Scores players on the held-out rows of one run."""

    def __init__(self, recipe: Recipe, chat: Chat, held_out: Sequence[Example], checker: Checker | None) -> None:
        """checker: decides whether a reply is right; None without one."""
        self.recipe, self.chat, self.held_out, self.checker = recipe, chat, held_out, checker

    def check_answers(self) -> None:
        """Raise UserError if the checker finds no answer in any held-out row: every exact match would be 0. Single misses are logged."""
        checker, pattern = self.checker, self.recipe.evaluate.answer_pattern
        if checker is None or is_own_code(checker.name):
            return
        by = "evaluate.answer_pattern" if pattern is not None else f"target.checker {checker.name}"
        asked = ask(self.held_out, {})
        missed = sum(checker.expected(one) is None for one in asked)
        column = self.recipe.data.answer
        rows = "held-out human replies" if column is None else f"held-out rows (data.answer {column!r})"
        if missed == len(asked):
            raise UserError(
                f"{pattern or checker.name!r} finds no answer in any of the {missed} {rows}",
                where=by,
                remedy=f"one of them is {((asked[0].answer if has_answer(asked[0]) else asked[0].human) or '')[:200]!r}",
            )
        if missed:
            log.warning(f"{by} finds no answer in {missed} of {len(asked)} {rows}: they can never match")

    def evaluate(self, stage: Path, measured: Measured) -> None:
        """Write scores.json, items.parquet and samples.parquet to `stage`, and the grade of every reply if there is a checker."""
        graded = self.grade(measured)
        items = self._items(measured, graded)
        write_json(stage / SCORES, self._scores(items))
        write_table(stage / ITEMS, {"row_id": [example.row_id for example in self.held_out], **items})
        write_table(stage / SAMPLES, self._samples(measured, items))
        if graded:
            write_table(stage / GRADES, graded_columns(graded))

    def scores(self, measured: Measured) -> dict[str, Score]:
        """Every metric with its error."""
        return self._scores(self._items(measured, self.grade(measured)))

    def grade(self, measured: Measured) -> list[GradedRow]:
        """The grades of all replies to every held-out row, and of the greedy one; empty without a checker.

        Raises UserError if the checker fails on many of them.
        """
        if self.checker is None:
            return []
        graded = grade_rows(self.held_out, measured.replies, measured.greedy, self.checker, self.chat.decode)
        replies = [reply for row in graded for reply in (*row.replies, *([row.greedy] if row.greedy else []))]
        if failures := require_few_failures([one.text for one in replies], [one.grade for one in replies], self.checker.name):
            log.warning(f"target.checker could not grade {failures} of {len(replies)} held-out replies: they count as wrong")
        return graded

    def _scores(self, items: Mapping[str, list[float]]) -> dict[str, Score]:
        """Means of the items, and the three metrics that are not plain means."""
        found = {name: mean_score(values, higher_is_better(name)) for name, values in items.items()}
        lengths = items["human_reply_tokens"]
        found["nll_per_token"] = ratio_score(items["nll_per_reply"], lengths, False)
        found["length_auc"] = auc_score(lengths, items["reply_tokens"])
        if "duel_margin" in items:
            found["duel_accuracy"] = accuracy_score(items["duel_margin"], self.recipe.stop.confidence)
        return found

    def _items(self, measured: Measured, graded: Sequence[GradedRow]) -> dict[str, list[float]]:
        """metric -> its value for every held-out row, in their order. NLL per token is the sum of nll_per_reply over human_reply_tokens."""
        stop_ids, decode = self.chat.stop_ids, self.chat.decode
        triples = zip(self.held_out, measured.first, measured.logps, strict=True)
        rows = [MeasuredRow(example, reply, decode(reply.token_ids), logps, stop_ids) for example, reply, logps in triples]
        values = {name: [metric.of(row) for row in rows] for name, metric in ROW_METRICS.items()}
        own = {name: [float(one) for one in found if one is not None] for name, found in values.items() if None not in found}
        return {**self._of_answers(graded), **own}

    def _of_answers(self, graded: Sequence[GradedRow]) -> dict[str, list[float]]:
        target = self.recipe.target
        if self.checker is None:
            return {}
        return answer_items(graded, target.pass_score, must_end=target.checker is not None, reads_answers=self.checker.reads_answers)

    def _samples(self, measured: Measured, items: Mapping[str, list[float]]) -> dict[str, list[Any]]:
        """Every sample behind the scores, as text, for readers and the report, with the items that they need."""
        greedy = {reply.row_id: self.chat.decode(reply.token_ids) for reply in measured.greedy or ()}
        replies = measured.first
        return {
            "row_id": [reply.row_id for reply in replies],
            "prompt": [example.conversation.prompt[-1]["content"] for example in self.held_out],
            "human": [example.conversation.text for example in self.held_out],
            "reply": [self.chat.decode(reply.token_ids) for reply in replies],
            "greedy": [greedy.get(reply.row_id) for reply in replies],
            "finish_reason": [reply.finish_reason for reply in replies],
            "human_logp": items["real_logp"],
            "reply_logp": items["generated_logp"],
            "human_tokens": list(map(int, items["human_reply_tokens"])),
            "reply_tokens": list(map(int, items["reply_tokens"])),
            "identical": list(map(bool, items["identical"])),
            **{name: items[name] for name in IN_SAMPLES if name in items},
        }
