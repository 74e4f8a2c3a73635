"""Measurements that need a player's weights: replies to the held-out prompts, likelihoods, duels with its opponent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sparring.config import SamplerSettings
from sparring.console import log
from sparring.data.chat import Chat
from sparring.data.records import Example, Reply
from sparring.data.tables import read_rows, write_table
from sparring.opponent.engines import Sampler
from sparring.opponent.protocol import Stream
from sparring.opponent.replies import checked_facts, read_replies, sample_examples
from sparring.policy.batches import Branches
from sparring.policy.player import Player
from sparring.policy.ranks import from_main

REPLIES, GREEDY, LOGPS = "replies", "greedy", "logps.parquet"
# (folder of a player, batches of trees) -> per batch, log-probs of each tree's replies; equal batches give equal micro-batches
ScoreTrees = Callable[[Path, Sequence[Sequence[Branches]]], list[list[list[float]]]]


@dataclass(frozen=True)
class Measured:
    """Per held-out row: `evaluate.samples` sampled replies and (with evaluate.greedy) a greedy one, and log-probs.

    `logps`: of the human reply ("real") and the player's own first reply ("own") under the player; with an opponent also those of the duel,
    "player_real", "player_generated", "opponent_real", "opponent_generated".
    """

    replies: list[Reply]
    greedy: list[Reply] | None
    logps: list[dict[str, Any]]

    @property
    def first(self) -> list[Reply]:
        """One sampled reply of every row."""
        return [reply for reply in self.replies if reply.replica == 0]


def read_measured(stage: Path) -> Measured:
    """What a finished `measure` stage stored."""
    greedy = read_replies(stage / GREEDY) if (stage / GREEDY).exists() else None
    return Measured(read_replies(stage / REPLIES), greedy, read_rows(stage / LOGPS))


class Measurer:
    """Measures players on the held-out rows of one run."""

    def __init__(
        self,
        settings: SamplerSettings,
        chat: Chat,
        held_out: Sequence[Example],
        score: ScoreTrees,
        *,
        seed: int,
        samples: int = 1,
        greedy: bool = False,
    ) -> None:
        """samples: replies to every prompt; greedy: whether each is also answered greedily."""
        self.settings, self.chat, self.held_out, self.score = settings, chat, held_out, score
        self.seed, self.samples, self.greedy = seed, samples, greedy

    def measure(self, stage: Path, player: Path, opponent: Player | None, sampling_round: int, phase: str) -> dict[str, Any]:
        """Write replies and log-probs of the model in folder `player` to `stage`, resuming from finished files; returns the stage's facts.

        `sampling_round` selects the random streams: the *next* iteration's player is evaluated in duels against these replies.
        """
        replies = self.sample_all(stage, player, sampling_round, phase)
        if not from_main((stage / LOGPS).exists):
            log.info(f"{phase}: log-probs of {len(self.held_out)} held-out rows")
            logps = self._logps(player, opponent, replies)
            from_main(lambda: write_table(stage / LOGPS, logps))
        return {"rows": len(self.held_out), **from_main(lambda: checked_facts(stage / REPLIES))}

    def sample_all(self, stage: Path, player: Path, sampling_round: int, phase: str) -> list[Reply]:
        """The first part of `measure`: sample all replies; returns those that are not greedy."""
        stream = Stream(self.seed, sampling_round)
        with Sampler(self.settings, self.chat, player) as sampler:
            temperature = self.settings.sampling.temperature
            replies = self.sample(stage / REPLIES, sampler, temperature, self.samples, stream, f"{phase}: replies")
            if self.greedy:
                self.sample(stage / GREEDY, sampler, 0.0, 1, stream, f"{phase}: greedy replies")
        return replies

    def sample(self, folder: Path, sampler: Sampler, temperature: float, count: int, stream: Stream, phase: str) -> list[Reply]:
        """`count` replies to every held-out prompt, in the order of the rows, those of one prompt together."""
        from_main(lambda: folder.mkdir(exist_ok=True))
        rows = self.settings.sampling.shard_rows
        check = partial(sampler.check, temperature)
        engine = partial(sampler.engine, temperature)
        return sample_examples(folder, self.held_out, engine, stream, count, rows, phase, check, self.chat.decode)

    def _logps(self, player: Path, opponent: Player | None, replies: Sequence[Reply]) -> dict[str, list[Any]]:
        batches = [self._trees(replies)]
        if opponent is not None:
            assert opponent.measured is not None, "an opponent was measured when it was the player"
            batches.append(self._trees(read_replies(opponent.measured / REPLIES)))
        own, *duels = self.score(player, batches)
        columns: dict[str, list[Any]] = {"row_id": [example.row_id for example in self.held_out], **_columns(("real", "own"), own)}
        if opponent is not None:
            # both models in equal micro-batches: equal models then have margin exactly 0
            by_both = zip(("player", "opponent"), (*duels, *self.score(opponent.folder, batches[1:])), strict=True)
            for who, scored in by_both:
                columns |= _columns((f"{who}_real", f"{who}_generated"), scored)
        return columns

    def _trees(self, replies: Sequence[Reply]) -> list[Branches]:
        by_row = {reply.row_id: reply.token_ids for reply in replies if reply.replica == 0}
        return [Branches(e.prompt_ids, (e.reply_ids, by_row[e.row_id])) for e in self.held_out]


def _columns(names: Sequence[str], rows: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
