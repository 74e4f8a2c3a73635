"""Stage 3 of an iteration: the player."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparring.config import at_iteration
from sparring.objectives.shared import Comparison
from sparring.policy.player import Player
from sparring.stage_names import iteration_stage
from sparring.stages.context import RunContext
from sparring.stages.fitting import fit_model
from sparring.stages.inputs import training_inputs
from sparring.stages.score import Logps, scored_inputs
from sparring.targets.window import Window
from sparring.training.contests import contest_task
from sparring.training.opponent_pass import joined_logps
from sparring.training.plan import iteration_plan
from sparring.training.tasks import duel_task


def train(context: RunContext, opponent: Player, window: Window, records: Logps, t: int) -> Player:
    """Train the player, which starts as a copy of the opponent; `records`: the result of `score`."""
    recipe, settings = context.recipe, context.recipe.train
    by_grades = recipe.target.uses_grades
    objective = recipe.objective.at(t, 1 if by_grades else recipe.sampling.replies_per_prompt)
    plan = iteration_plan(recipe, len(window.duels), t)

    def work(stage: Path) -> dict[str, Any]:
        logps = {name: joined_logps(record.path for record in of_model) for name, of_model in records.items()}
        of_models = logps.get("opponent_logps", {}), logps.get("start_logps", {})
        if by_grades:
            task = contest_task(window.contests, objective, *of_models)
        else:
            assert isinstance(objective, Comparison), "an objective without comparison is refused for human targets"
            task = duel_task(window.human_duels, objective, *of_models)
        facts = fit_model(context, stage, opponent, task, plan, settings, phase=f"iteration {t}: training", labels={"iteration": t})
        return {**facts, "counts": window.counts}

    inputs = {
        "train": {**training_inputs(settings), "lr": plan.lr, "epochs": at_iteration(settings.epochs, t)},
        "objective": objective.fingerprint(),
        "opponent": opponent.hash,
        **scored_inputs(records, window),
        "seed": recipe.seed,
    }
    return Player.of_stage(context.stages.run_stage(iteration_stage(t, "train"), inputs, work))
