"""Scores and samples from what was measured: cheap, so another answer pattern or confidence costs no replies and no training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
from sparring.evaluation.metrics import (
    HIGHER_IS_BETTER,
    Score,
    accuracy_score,
    auc_score,
    find_answer,
    is_exact_match,
    mean_score,
    ratio_score,
    wins,
)
from sparring.rundir import write_json
from sparring.stage_names import SCORES

ITEMS, SAMPLES = "items.parquet", "samples.parquet"
IN_SAMPLES = ("duel_margin", "exact_match", "exact_match_greedy")  # where they are measured


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
        """Write scores.json, items.parquet and samples.parquet to `stage`."""
        items = self.items(measured)
        write_json(stage / SCORES, self._scores(items))
        write_table(stage / ITEMS, {"row_id": [example.row_id for example in self.held_out], **items})
        write_table(stage / SAMPLES, self._samples(measured, items))

    def scores(self, measured: Measured) -> dict[str, Score]:
        """Every metric with its error."""
        return self._scores(self.items(measured))

    def _scores(self, items: Mapping[str, list[float]]) -> dict[str, Score]:
        """Means of the items, and the three that are no plain mean."""
        found = {name: mean_score(values, HIGHER_IS_BETTER[name]) for name, values in items.items()}
        lengths = items["human_reply_tokens"]
        found["nll_per_token"] = ratio_score(items["nll_per_reply"], lengths, False)
        found["length_auc"] = auc_score(lengths, items["reply_tokens"])
        if "duel_margin" in items:
            found["duel_accuracy"] = accuracy_score(items["duel_margin"], self.recipe.stop.confidence)
        return found

    def items(self, measured: Measured) -> dict[str, list[float]]:
        """metric -> its value for every held-out row, in their order. NLL per token is the sum of nll_per_reply over human_reply_tokens."""
        real = [row["real"] for row in measured.logps]
        return {
            **self._matches(measured),
            "nll_per_reply": [-logp for logp in real],
            **_duels(measured.logps),
            "real_logp": real,
            "generated_logp": [row["own"] for row in measured.logps],
            **self._of_replies(measured.replies),
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

    def _of_replies(self, replies: Sequence[Reply]) -> dict[str, list[float]]:
        real = {example.row_id: example.reply_ids for example in self.held_out}
        return {
            "reply_tokens": [float(len(reply.token_ids)) for reply in replies],
            "human_reply_tokens": [float(len(example.reply_ids)) for example in self.held_out],
            "truncated": [float(reply.finish_reason == "length") for reply in replies],
            "identical": [float(reply.token_ids == real[reply.row_id]) for reply in replies],
            "empty": [float(is_empty(reply.token_ids, self.chat.stop_ids)) for reply in replies],
        }

    def _samples(self, measured: Measured, items: Mapping[str, list[float]]) -> dict[str, list[Any]]:
        """Every sample behind the scores, as text, for people and for the report, with those of its items that they look for."""
        greedy = {reply.row_id: self.chat.decode(reply.token_ids) for reply in measured.greedy or ()}
        replies = measured.replies
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


def _duels(logps: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Margin r(y) - r(y') in nats of the player against fresh replies of its opponent, and whether it is positive, ties counting half."""
    if "player_real" not in logps[0]:
        return {}
    margins = [(row["player_real"] - row["opponent_real"]) - (row["player_generated"] - row["opponent_generated"]) for row in logps]
    return {"duel_margin": margins, "duel_accuracy": wins(margins)}
