"""Opponent log-probs: constants of an iteration, computed once, in the micro-batches of the first pass of training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sparring.config import OptimSection
from sparring.data.records import Contest, Duel
from sparring.data.tables import items_done, read_rows, run_shards
from sparring.policy.batches import branches_of
from sparring.policy.compute import make_accelerator
from sparring.policy.ranks import from_main, rank_count
from sparring.progress import progress
from sparring.training.plan import TrainPlan
from sparring.training.ranked import FrozenWeights

STEPS_PER_SHARD = 8


def score_duels(
    stage: Path, opponent: Path, duels: Sequence[Duel | Contest], plan: TrainPlan, settings: OptimSection, phase: str
) -> dict[str, Any]:
    """Write the opponent's log-probs of every duel that `plan` uses into shards under `stage`; finished shards are kept.

    Same weights, same micro-batches, same arithmetic as the first pass of training: that makes the first-step margin exactly 0.
    Returns the stage's facts.
    """
    steps = list(range(plan.first_pass_steps()))
    done = from_main(lambda: items_done(stage))
    if done < len(steps):
        scoring = _Scoring(opponent, duels, settings, plan.seed)
        with progress(phase, len(steps), "batches", done) as shown:

            def work(part: Sequence[int]) -> dict[str, list[Any]]:
                rows = []
                for step in part:
                    rows += scoring.rows(plan.batch(step))
                    shown.advance()
                return {name: [row[name] for row in rows] for name in ("duel_id", "logps", "tokens")}

            run_shards(stage, steps, STEPS_PER_SHARD, work, from_main)
    return {"scored_tokens": from_main(lambda: sum(row["tokens"] for row in read_rows(stage))), "ranks": rank_count()}


def read_logps(stage: Path) -> dict[str, list[float]]:
    """duel id -> log-probs of its branches, human reply first; the earliest value counts if the end of an epoch scored a duel twice."""
    logps: dict[str, list[float]] = {}
    for row in read_rows(stage):
        logps.setdefault(row["duel_id"], row["logps"])
    return logps


def joined_logps(stages: Iterable[Path]) -> dict[str, list[float]]:
    """The log-probs of several stages; the earliest value counts."""
    logps: dict[str, list[float]] = {}
    for stage in stages:
        logps = {**read_logps(stage), **logps}
    return logps


class _Scoring:
    def __init__(self, folder: Path, duels: Sequence[Duel | Contest], settings: OptimSection, seed: int) -> None:
        self.trees = [branches_of(duel) for duel in duels]
        self.names = [duel.duel_id for duel in duels]
        self.weights = FrozenWeights(folder, settings, make_accelerator(), seed)
        self.weights.prepare(self.trees)

    def rows(self, batch: Sequence[int]) -> list[dict[str, Any]]:
        """Name, log-probs and computed tokens of every duel of an optimizer step; ranks share them as they do in training."""
        trees = [self.trees[index] for index in batch]
        scored = self.weights.score(trees)
        names = [self.names[index] for index in batch]
        tokens = [tree.tokens(self.weights.scorer.row_layout) for tree in trees]
        rows = zip(names, scored, tokens, strict=True)
        return [{"duel_id": name, "logps": logps, "tokens": count} for name, logps, count in rows]
