"""Stage 3 of an iteration: training the player."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from sparring.config import TrainSection
from sparring.data.records import Contest
from sparring.objectives.shared import Comparison, Objective
from sparring.policy.player import Player
from sparring.stage_names import iteration_stage
from sparring.stages.context import Common, RunContext
from sparring.stages.score import Scored
from sparring.stages.sft import fit_model
from sparring.training.opponent_pass import joined_logps
from sparring.training.plan import iteration_plan
from sparring.training.tasks import contest_task, duel_task


def train(context: RunContext, opponent: Player, scored: Scored, t: int) -> Player:
    """Train the player, which starts as a copy of the opponent; `scored`: the result of `score`."""
    recipe = context.recipe
    name = iteration_stage(t, "train")
    work = partial(
        _train,
        context.common(name),
        t,
        train=context.with_budget(recipe.train.at(t)),
        objective=recipe.objective.at(t, 1 if recipe.target.uses_grades else recipe.sampling.replies_per_prompt),
        opponent=opponent,
        scored=scored,
        seed=recipe.seed,
    )
    return Player.of_stage(context.stages.run_stage(name, work))


def _train(
    common: Common, t: int, stage: Path, *, train: TrainSection, objective: Objective, opponent: Player, scored: Scored, seed: int
) -> dict[str, Any]:
    window = scored.window
    of_models = [joined_logps(record.path for record in records) for records in (scored.opponent, scored.start)]
    if isinstance(window.duels[0], Contest):
        task = contest_task(window.contests, objective, *of_models)
    else:
        assert isinstance(objective, Comparison), "an objective without comparison is refused for human targets"
        task = duel_task(window.human_duels, objective, *of_models)
    plan = iteration_plan(train, len(window.duels), seed, t)
    facts = fit_model(common, stage, opponent, task, plan, train)
    return {**facts, "counts": window.counts}
