"""What the weights of a player are needed for: replies to the held-out prompts, likelihoods, duels with its opponent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sparring.config import Recipe
from sparring.console import log
from sparring.data.chat import Chat
from sparring.data.records import Example, Reply
from sparring.data.tables import read_rows, write_table
from sparring.opponent.engines import Sampler
from sparring.opponent.protocol import Stream
from sparring.opponent.replies import checked_facts, read_replies, sample_examples
from sparring.policy.batches import Branches, hardest, longest_row
from sparring.policy.compute import COMPUTE_DTYPES, make_accelerator
from sparring.policy.load import load_model
from sparring.policy.ranks import from_main
from sparring.policy.score import Scorer, score_trees

REPLIES, GREEDY, LOGPS = "replies", "greedy", "logps.parquet"


@dataclass(frozen=True)
class Opponent:
    """The opponent of the measured player: its weights, and the folder with its own measurements (its fresh held-out replies)."""

    model: Path
    measured: Path


@dataclass(frozen=True)
class Measured:
    """Per held-out row: sampled and (when the recipe asks) greedy replies, and log-probs.

    `logps`: of the human reply ("real") and the player's own reply ("own") under the player; with an opponent also those of the duel,
    "player_real", "player_generated", "opponent_real", "opponent_generated".
    """

    replies: list[Reply]
    greedy: list[Reply] | None
    logps: list[dict[str, Any]]


def read_measured(stage: Path) -> Measured:
    greedy = read_replies(stage / GREEDY) if (stage / GREEDY).exists() else None
    return Measured(read_replies(stage / REPLIES), greedy, read_rows(stage / LOGPS))


class Measurer:
    """Measures players on the held-out rows of one run."""

    def __init__(self, recipe: Recipe, chat: Chat, held_out: Sequence[Example]) -> None:
        self.recipe, self.chat, self.held_out = recipe, chat, held_out

    def measure(self, stage: Path, player: Path, opponent: Opponent | None, round_index: int, phase: str) -> dict[str, Any]:
        """Write replies and log-probs of the model in folder `player` to `stage`, going on from what is there; returns the stage's facts.

        `round_index` names the random streams: the replies drawn here are those that the *next* iteration's player is judged on.
        """
        stream = Stream(self.recipe.seed, round_index)
        with Sampler(self.recipe, self.chat, player) as sampler:
            replies = self._sample(stage / REPLIES, sampler, self.recipe.sampling.temperature, stream, f"{phase}: replies")
            if self.recipe.evaluate.greedy:
                self._sample(stage / GREEDY, sampler, 0.0, stream, f"{phase}: greedy replies")
        if not from_main((stage / LOGPS).exists):
            log.info(f"{phase}: log-probs of {len(self.held_out)} held-out rows")
            logps = self._logps(player, opponent, replies)
            from_main(lambda: write_table(stage / LOGPS, logps))
        return {"rows": len(self.held_out), **from_main(lambda: checked_facts(stage / REPLIES))}

    def _sample(self, folder: Path, sampler: Sampler, temperature: float, stream: Stream, phase: str) -> list[Reply]:
        from_main(lambda: folder.mkdir(exist_ok=True))
        rows = self.recipe.sampling.shard_rows
        check = partial(sampler.check, temperature)
        engine = partial(sampler.engine, temperature)
        return sample_examples(folder, self.held_out, engine, stream, 1, rows, phase, check, self.chat.decode)

    def _logps(self, player: Path, opponent: Opponent | None, replies: Sequence[Reply]) -> dict[str, list[Any]]:
        own = {reply.row_id: reply.token_ids for reply in replies}
        scored = self._score(player, [Branches(e.prompt_ids, (e.reply_ids, own[e.row_id])) for e in self.held_out])
        return {
            "row_id": [example.row_id for example in self.held_out],
            "real": [row[0] for row in scored],
            "own": [row[1] for row in scored],
            **(self._duel_columns(player, opponent) if opponent is not None else {}),
        }

    def _duel_columns(self, player: Path, opponent: Opponent) -> dict[str, list[float]]:
        fresh = {reply.row_id: reply.token_ids for reply in read_replies(opponent.measured / REPLIES)}
        trees = [Branches(e.prompt_ids, (e.reply_ids, fresh[e.row_id])) for e in self.held_out]
        # both models in equal micro-batches: equal models then have margin exactly 0
        names = ("player", self._score(player, trees)), ("opponent", self._score(opponent.model, trees))
        return {f"{who}_{side}": [row[column] for row in rows] for who, rows in names for column, side in enumerate(("real", "generated"))}

    def _score(self, folder: Path, trees: Sequence[Branches]) -> list[list[float]]:
        train = self.recipe.train
        model = load_model(folder, COMPUTE_DTYPES[train.precision], train.four_bit)
        scorer = Scorer(model.to(make_accelerator().device))
        scorer.choose_layout(*hardest(trees), row_tokens=longest_row(trees, train.max_tokens))
        return score_trees(scorer, trees, train.max_tokens)
