"""Stage 2 of an iteration: the player."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparring.config import at_iteration, recipe_of_run
from sparring.errors import UserError
from sparring.policy.player import Policy
from sparring.rundir import differences
from sparring.stage_names import iteration_stage
from sparring.stages.context import RunContext
from sparring.stages.fitting import fit_model
from sparring.stages.inputs import duels_digest, training_inputs
from sparring.stages.score import scored, scored_inputs
from sparring.targets.window import Window
from sparring.training.contests import contest_task
from sparring.training.opponent_pass import joined_logps
from sparring.training.plan import iteration_plan
from sparring.training.tasks import duel_task


def train(context: RunContext, opponent: Policy, window: Window, t: int) -> Policy:
    """Opponent log-probs first, then the player, who starts as the opponent."""
    recipe, settings = context.recipe, context.recipe.train
    moves = recipe.target.moves
    objective = recipe.objective.at(t, 1 if moves else recipe.sampling.replies_per_prompt)
    _require_same_winners(context, window, t)
    plan = iteration_plan(recipe, len(window.duels), t)
    records = scored(context, opponent, window, t)

    def work(stage: Path) -> dict[str, Any]:
        logps = {name: joined_logps(record.path for record in of_model) for name, of_model in records.items()}
        make_task = contest_task if moves else duel_task
        task = make_task(window.duels, objective, logps.get("opponent_logps", {}), logps.get("start_logps", {}))
        facts = fit_model(context, stage, opponent, task, plan, settings, phase=f"iteration {t}: training", labels={"iteration": t})
        return {**facts, "counts": window.counts}

    inputs = {
        "train": {**training_inputs(settings), "lr": plan.lr, "epochs": at_iteration(settings.epochs, t)},
        "objective": objective.fingerprint(),
        "opponent": opponent.hash,
        **scored_inputs(records, window),
        "seed": recipe.seed,
    }
    return Policy.of_stage(context.stages.run_stage(iteration_stage(t, "train"), inputs, work, shared=True))


def _require_same_winners(context: RunContext, window: Window, t: int) -> None:
    """Raise UserError in the words of the recipe where the iteration has begun with other winners: a fingerprint knows them as a hash."""
    recipe = context.recipe
    name = iteration_stage(t, "score" if recipe.objective.kind.uses_opponent_logps else "train")
    begun = (context.run.inputs_of(name) or {}).get("duels")
    if not recipe.target.moves or begun in (None, duels_digest(window.duels)):
        return
    was, now = (
        {part: getattr(one, part).model_dump() for part in ("target", "evaluate", "objective")}
        for one in (recipe_of_run(context.run.root), recipe)
    )
    changes = "".join(f"\n  {line}" for line in differences(was, now))
    raise UserError(
        f"stage {name} was made from other winners and losers than the recipe now makes{changes}",
        where=str(context.run.root),
        remedy=f"undo the change and run again, or redo from there on purpose with --restart-from {name} (the replies of its iteration "
        "are kept), or keep this run and choose another run_dir",
    )
