"""Scores and samples from what was measured: cheap, so another answer pattern or confidence costs no replies and no training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparring.config import Recipe
from sparring.console import log
from sparring.data.chat import Chat
from sparring.data.records import Example, Reply
from sparring.data.tables import write_table
from sparring.data.window import is_empty
from sparring.errors import UserError
from sparring.evaluation.measure import Measured
from sparring.evaluation.metrics import Score, accuracy_score, auc_score, find_answer, is_exact_match, mean_score, ratio_score
from sparring.rundir import write_json
from sparring.stage_names import SCORES

SAMPLES = "samples.parquet"


class Evaluator:
    """Scores players on the held-out rows of one run."""

    def __init__(self, recipe: Recipe, chat: Chat, held_out: Sequence[Example]) -> None:
        self.recipe, self.chat, self.held_out = recipe, chat, held_out

    def check_pattern(self) -> None:
        """Raise UserError when the answer pattern finds nothing in any human reply: every exact match would be 0. Some misses are told."""
        text = self.recipe.evaluate.answer_pattern
        if text is None:
            return
        pattern = re.compile(text)
        missed = sum(find_answer(pattern, example.conversation.reply) is None for example in self.held_out)
        if missed == len(self.held_out):
            raise UserError(
                f"{text!r} finds no answer in any of the {missed} held-out human replies",
                where="evaluate.answer_pattern",
                remedy=f"one of them is {self.held_out[0].conversation.reply[:200]!r}",
            )
        if missed:
            log.warning(
                f"evaluate.answer_pattern finds no answer in {missed} of {len(self.held_out)} held-out human replies: never a match"
            )

    def evaluate(self, stage: Path, measured: Measured) -> None:
        """Write scores.json and samples.parquet to `stage`."""
        write_json(stage / SCORES, self.scores(measured))
        write_table(stage / SAMPLES, self._samples(measured))

    def scores(self, measured: Measured) -> dict[str, Score]:
        lengths = [len(example.reply_ids) for example in self.held_out]
        real = [row["real"] for row in measured.logps]
        return {
            **{name: mean_score(matches, True) for name, matches in self._matches(measured).items()},
            "nll_per_token": ratio_score([-logp for logp in real], lengths, False),
            "nll_per_reply": mean_score([-logp for logp in real], False),
            **_duel_scores(measured.logps, self.recipe.stop.confidence),
            "real_logp": mean_score(real, True),
            "generated_logp": mean_score([row["own"] for row in measured.logps]),
            **self._reply_scores(measured.replies, lengths),
        }

    def _matches(self, measured: Measured) -> dict[str, list[float]]:
        """Per score that the recipe's pattern gives: 1 for every row whose reply has the human one's answer, else 0."""
        if self.recipe.evaluate.answer_pattern is None:
            return {}
        pattern = re.compile(self.recipe.evaluate.answer_pattern)
        human = {example.row_id: example.conversation.reply for example in self.held_out}
        named = {"exact_match": measured.replies, "exact_match_greedy": measured.greedy}
        return {
            name: [float(is_exact_match(pattern, self.chat.decode(r.token_ids), human[r.row_id])) for r in those]
            for name, those in named.items()
            if those is not None
        }

    def _reply_scores(self, replies: Sequence[Reply], lengths: Sequence[int]) -> dict[str, Score]:
        real = {example.row_id: example.reply_ids for example in self.held_out}
        own = [len(reply.token_ids) for reply in replies]
        return {
            "reply_tokens": mean_score(own),
            "human_reply_tokens": mean_score(lengths),
            "truncated": mean_score([float(reply.finish_reason == "length") for reply in replies], False),
            "identical": mean_score([float(reply.token_ids == real[reply.row_id]) for reply in replies]),
            "empty": mean_score([float(is_empty(reply.token_ids, self.chat.stop_ids)) for reply in replies], False),
            "length_auc": auc_score(lengths, own),
        }

    def _samples(self, measured: Measured) -> dict[str, list[Any]]:
        """Every sample behind the scores, as text, for people and for the report."""
        greedy = {reply.row_id: self.chat.decode(reply.token_ids) for reply in measured.greedy or ()}
        scored = {row["row_id"]: row for row in measured.logps}
        replies = measured.replies
        return {
            "row_id": [reply.row_id for reply in replies],
            "prompt": [example.conversation.prompt[-1]["content"] for example in self.held_out],
            "human": [example.conversation.reply for example in self.held_out],
            "reply": [self.chat.decode(reply.token_ids) for reply in replies],
            "greedy": [greedy.get(reply.row_id) for reply in replies],
            "finish_reason": [reply.finish_reason for reply in replies],
            "human_logp": [scored[reply.row_id]["real"] for reply in replies],
            "reply_logp": [scored[reply.row_id]["own"] for reply in replies],
            "human_tokens": [len(example.reply_ids) for example in self.held_out],
            "reply_tokens": [len(reply.token_ids) for reply in replies],
            "identical": [reply.token_ids == example.reply_ids for reply, example in zip(replies, self.held_out, strict=True)],
            **({"duel_margin": margins} if (margins := _duel_margins(measured.logps)) else {}),
            **self._matches(measured),
        }


def _duel_margins(logps: Sequence[dict[str, Any]]) -> list[float]:
    """Margin r(y) - r(y') in nats of the player on every row, against a fresh reply of its opponent; none without an opponent."""
    if "player_real" not in logps[0]:
        return []
    return [(row["player_real"] - row["opponent_real"]) - (row["player_generated"] - row["opponent_generated"]) for row in logps]


def _duel_scores(logps: Sequence[dict[str, Any]], confidence: float) -> dict[str, Score]:
    margins = _duel_margins(logps)
    return {"duel_margin": mean_score(margins, True), "duel_accuracy": accuracy_score(margins, confidence)} if margins else {}
