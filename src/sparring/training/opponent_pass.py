"""Opponent log-probs: constants of an iteration, computed once, in the micro-batches of the first pass of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparring.config import OptimSection
from sparring.data.records import Contest, Duel
from sparring.data.tables import items_done, read_rows, run_shards
from sparring.policy.batches import branches_of
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
        trees = [branches_of(duel) for duel in duels]
        weights = FrozenWeights(opponent, settings, trees, plan.seed)
        with progress(phase, len(steps), "batches", done) as shown:

            def work(part: Sequence[int]) -> dict[str, list[Any]]:
                batches = [plan.batch(step) for step in part]
                logps: list[list[float]] = []
                for batch in batches:  # ranks share a batch as they do in training
                    logps += weights.score([trees[index] for index in batch])
                    shown.advance()
                indices = [index for batch in batches for index in batch]
                tokens = [trees[index].tokens(weights.scorer.row_layout) for index in indices]
                return {"duel_id": [duels[index].duel_id for index in indices], "logps": logps, "tokens": tokens}

            run_shards(stage, steps, STEPS_PER_SHARD, work, from_main)
    return {"scored_tokens": from_main(lambda: sum(row["tokens"] for row in read_rows(stage))), "ranks": rank_count()}


def read_logps(*stages: Path) -> dict[str, list[float]]:
    """duel id -> log-probs of its branches, human reply first; the earliest value counts if a duel was scored twice, as at the end of an
    epoch."""
    logps: dict[str, list[float]] = {}
    for stage in stages:
        for row in read_rows(stage):
            logps.setdefault(row["duel_id"], row["logps"])
    return logps
