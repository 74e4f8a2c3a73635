"""What is measured of a player, always on the same held-out rows: its replies, its likelihoods, and its duels with its opponent."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sparring.config import Recipe
from sparring.console import log
from sparring.data.chat import Chat
from sparring.data.records import Example, Message, Reply
from sparring.data.tables import read_rows, write_table
from sparring.data.window import is_empty
from sparring.evaluation.metrics import Score, accuracy_score, is_exact_match, length_auc, mean_score, ratio_score
from sparring.opponent.hf import TransformersEngine
from sparring.opponent.protocol import Engine, Prompt, Stream
from sparring.opponent.replies import read_replies, sample_examples
from sparring.policy.batches import Branches, hardest
from sparring.policy.compute import accelerator_for
from sparring.policy.load import DTYPES, load_model
from sparring.policy.score import Scorer, score_trees
from sparring.rundir import write_json

REPLIES, GREEDY, LOGPS, SAMPLES = "replies", "greedy", "logps.parquet", "samples.parquet"


@dataclass(frozen=True)
class Opponent:
    """The opponent of the evaluated player: its weights, and the folder with its own evaluation (its fresh held-out replies)."""

    model: Path
    evaluation: Path


class Evaluator:
    """Evaluates players on the held-out rows of one run."""

    def __init__(self, recipe: Recipe, chat: Chat, held_out: Sequence[Example]) -> None:
        self.recipe, self.chat, self.held_out = recipe, chat, held_out

    def evaluate(self, stage: Path, player: Path, opponent: Opponent | None, round_index: int, phase: str) -> dict[str, Any]:
        """Write replies, log-probs, samples and scores.json of the model in folder `player` to `stage`; returns the stage's facts.

        `round_index` names the random streams: the replies drawn here are those that the *next* iteration's player is judged on.
        """
        replies, greedy = self._answers(stage, player, Stream(self.recipe.seed, round_index), phase)
        logps = self._logps(stage, player, opponent, replies)
        write_json(stage / "scores.json", self._scores(replies, greedy, logps))
        self._write_samples(stage, replies, greedy, logps)
        return {"rows": len(self.held_out)}

    def _answers(self, stage: Path, player: Path, stream: Stream, phase: str) -> tuple[list[Reply], list[Reply] | None]:
        """Sampled and (when the recipe asks) greedy replies to the held-out prompts, and the showcase; the weights are loaded once."""
        load = cache(lambda: load_sampler(self.recipe, player))
        temperature = self.recipe.sampling.temperature
        replies = self._sample(stage / REPLIES, load, temperature, stream, f"{phase}: replies")
        greedy = self._sample(stage / GREEDY, load, 0.0, stream, f"{phase}: greedy replies") if self.recipe.evaluate.greedy else None
        texts, shown = self.recipe.showcase, stage / "showcase.json"
        if texts and not shown.exists():
            answers = answer(make_engine(self.recipe, self.chat, load(), temperature), self.chat, texts, self.recipe.seed)
            write_json(shown, [{"prompt": text, "reply": reply} for text, reply in zip(texts, answers, strict=True)])
        return replies, greedy

    def _sample(self, folder: Path, load: Callable[[], PreTrainedModel], temperature: float, stream: Stream, phase: str) -> list[Reply]:
        folder.mkdir(exist_ok=True)
        rows = self.recipe.sampling.shard_rows
        return sample_examples(
            folder, self.held_out, lambda: make_engine(self.recipe, self.chat, load(), temperature), stream, 1, rows, phase
        )

    def _logps(self, stage: Path, player: Path, opponent: Opponent | None, replies: Sequence[Reply]) -> list[dict[str, Any]]:
        """One row per held-out row: the player's log-probs of the human and its own reply, and those of the duel under both models."""
        if not (stage / LOGPS).exists():
            own = {reply.row_id: reply.token_ids for reply in replies}
            columns: dict[str, list[Any]] = {"row_id": [example.row_id for example in self.held_out]}
            trees = [Branches(e.prompt_ids, (e.reply_ids, own[e.row_id])) for e in self.held_out]
            log.info(f"scoring {len(trees)} held-out rows")
            scored = self._score(player, trees)
            columns |= {"real": [row[0] for row in scored], "own": [row[1] for row in scored]}
            if opponent is not None:
                columns |= self._duel_columns(player, opponent)
            write_table(stage / LOGPS, columns)
        return read_rows(stage / LOGPS)

    def _duel_columns(self, player: Path, opponent: Opponent) -> dict[str, list[float]]:
        fresh = {reply.row_id: reply.token_ids for reply in read_replies(opponent.evaluation / REPLIES)}
        trees = [Branches(e.prompt_ids, (e.reply_ids, fresh[e.row_id])) for e in self.held_out]
        # both models in equal micro-batches: equal models then have margin exactly 0
        names = ("player", self._score(player, trees)), ("opponent", self._score(opponent.model, trees))
        return {f"{who}_{side}": [row[column] for row in rows] for who, rows in names for column, side in enumerate(("real", "generated"))}

    def _score(self, folder: Path, trees: Sequence[Branches]) -> list[list[float]]:
        accelerator = accelerator_for(self.recipe.train.precision)
        scorer = Scorer(load_model(folder).to(accelerator.device))
        scorer.choose_layout(*hardest(trees))
        return score_trees(scorer, trees, self.recipe.train.micro_batch_tokens, accelerator)

    def _scores(self, replies: Sequence[Reply], greedy: Sequence[Reply] | None, logps: Sequence[dict[str, Any]]) -> dict[str, Score]:
        lengths = [len(example.reply_ids) for example in self.held_out]
        scores = {
            **self._exact_matches(replies, greedy),
            "nll_per_token": ratio_score([-row["real"] for row in logps], lengths, False),
            "nll_per_reply": mean_score([-row["real"] for row in logps], False),
            **_duel_scores(logps, self.recipe.stop.confidence),
            "real_logp": mean_score([row["real"] for row in logps], True),
            "generated_logp": mean_score([row["own"] for row in logps]),
            **self._reply_scores(replies, lengths),
        }
        return scores

    def _exact_matches(self, replies: Sequence[Reply], greedy: Sequence[Reply] | None) -> dict[str, Score]:
        if self.recipe.evaluate.answer_pattern is None:
            return {}
        pattern = re.compile(self.recipe.evaluate.answer_pattern)
        human = {example.row_id: example.conversation.reply for example in self.held_out}
        named = {"exact_match": replies} | ({"exact_match_greedy": greedy} if greedy is not None else {})
        return {
            name: mean_score([float(is_exact_match(pattern, self.chat.decode(r.token_ids), human[r.row_id])) for r in those], True)
            for name, those in named.items()
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
            "length_auc": Score(value=length_auc(lengths, own), n=len(own), higher_is_better=False),
        }

    def _write_samples(
        self, stage: Path, replies: Sequence[Reply], greedy: Sequence[Reply] | None, logps: Sequence[dict[str, Any]]
    ) -> None:
        """Every sample behind the scores, as text, for people and for the report."""
        greedy_text = {r.row_id: self.chat.decode(r.token_ids) for r in greedy or ()}
        scored = {row["row_id"]: row for row in logps}
        columns: dict[str, list[Any]] = {
            "row_id": [reply.row_id for reply in replies],
            "prompt": [example.conversation.prompt[-1]["content"] for example in self.held_out],
            "human": [example.conversation.reply for example in self.held_out],
            "reply": [self.chat.decode(reply.token_ids) for reply in replies],
            "greedy": [greedy_text.get(reply.row_id) for reply in replies],
            "finish_reason": [reply.finish_reason for reply in replies],
            "human_logp": [scored[reply.row_id]["real"] for reply in replies],
            "reply_logp": [scored[reply.row_id]["own"] for reply in replies],
        }
        write_table(stage / SAMPLES, columns)


def load_sampler(recipe: Recipe, folder: Path) -> PreTrainedModel:
    """The model that samples: the weights of `folder` in the recipe's sampling dtype, on this process's device."""
    return load_model(folder, DTYPES[recipe.model.dtype]).to(accelerator_for(recipe.train.precision).device)


def make_engine(recipe: Recipe, chat: Chat, model: PreTrainedModel, temperature: float) -> Engine:
    """The recipe's sampling engine around a loaded model."""
    return TransformersEngine(model, recipe.sampling.model_copy(update={"temperature": temperature}), chat.stop_ids)


def answer(engine: Engine, chat: Chat, texts: Sequence[str], seed: int) -> list[str]:
    """One reply to each text as a first user turn; the random stream depends on the seed and the place in the list alone."""
    prompts = [Prompt(f"showcase-{i}", 0, chat.prompt_ids([Message(role="user", content=text)])) for i, text in enumerate(texts)]
    return [chat.decode(reply.token_ids) for reply in engine.sample(prompts, Stream(seed, 0))]


def _duel_scores(logps: Sequence[dict[str, Any]], confidence: float) -> dict[str, Score]:
    """Margin r(y) - r(y') in nats and accuracy of the player against fresh replies of its opponent."""
    if "player_real" not in logps[0]:
        return {}
    margins = [(row["player_real"] - row["opponent_real"]) - (row["player_generated"] - row["opponent_generated"]) for row in logps]
    return {"duel_margin": mean_score(margins, True), "duel_accuracy": accuracy_score(margins, confidence)}
