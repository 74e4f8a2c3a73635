"""Stages 2 and 3 of an iteration: log-probs of its duels, under its opponent and under the start of the game; then the player."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sparring.config import OptimSection, TrainSection, recipe_of_run
from sparring.data.records import Contest, Duel
from sparring.errors import UserError
from sparring.objectives.shared import Objective
from sparring.policy.player import Player
from sparring.rundir import StageRecord, differences
from sparring.stage_names import iteration_stage
from sparring.stages.context import Common, RunContext
from sparring.stages.run_stage import Scoring, duels_digest
from sparring.stages.sft import fit_model, sft
from sparring.targets.window import Window
from sparring.training.opponent_pass import read_logps, score_duels
from sparring.training.plan import TrainPlan, iteration_plan, make_plan
from sparring.training.tasks import iteration_task


@dataclass(frozen=True)
class Scored:
    """The duels of an iteration, and the stages with their log-probs under the opponent and the start; empty lists if not needed."""

    window: Window
    opponent: list[StageRecord]
    start: list[StageRecord]

    def inputs(self) -> dict[str, Any]:
        """The duels are inputs of the stages with their log-probs; if there are none, of the training."""
        if not self.opponent:
            return {"duels": duels_digest(self.window.duels)}
        start = [record.digest for record in self.start]
        return {"opponent_logps": self.opponent[0].digest, **({"start_logps": start} if start else {})}


@dataclass(frozen=True)
class Batches:
    """The batches of the first pass of a training, whose micro-batches are scored."""

    plan: TrainPlan
    scoring: Scoring

    def inputs(self) -> dict[str, Any]:
        """What the plan's batches follow from, for given duels."""
        plan = self.plan
        batches = {"first_pass_steps": plan.first_pass_steps(), "batch_size": plan.batch_size, "seed": plan.seed}
        return {"batches": {**batches, **self.scoring.inputs()}}


def score(context: RunContext, opponent: Player, window: Window, t: int) -> Scored:
    """Stage 2 of an iteration: the log-probs of the duels that the objective needs, under the opponent and under the start."""
    require_same_winners(context, window, t)
    needs, settings, name = context.recipe.objective.kind, context.recipe.train, iteration_stage(t, "score")
    of_opponent, of_start = list[StageRecord](), list[StageRecord]()
    if needs.uses_opponent_logps:  # in the micro-batches of the training that follows
        plan = iteration_plan(settings, len(window.duels), context.recipe.seed, t)
        of_opponent.append(score_stage(context, name, opponent, window.duels, plan, settings, f"iteration {t}: opponent log-probs"))
    if needs.uses_start:
        newest = _score_start(context, window, t)
        of_start = [*_of_start(context, t), *([newest] if newest else [])]
    return Scored(window, of_opponent, of_start)


def _score_start(context: RunContext, window: Window, t: int) -> StageRecord | None:
    """Log-probs under the start of the game, of the duels that no earlier iteration has scored under it; None if there are none.

    The opponent of iteration 0 is the start, so duels that iteration 0 has scored are not scored again.
    """
    start, settings = sft(context), context.recipe.train
    known = read_logps(*(record.path for record in _of_start(context, t)))
    plan = iteration_plan(settings, len(window.duels), context.recipe.seed, t)
    used = {index for step in range(plan.first_pass_steps()) for index in plan.batch(step)}
    duels = [duel for index, duel in enumerate(window.duels) if index in used and duel.duel_id not in known]
    if not duels:
        return None
    once = make_plan(settings, len(duels), lr=1.0, epochs=1.0, seed=plan.seed, name=f"iteration {t}: scoring under the start")
    name = iteration_stage(t, "score-start")
    return score_stage(context, name, start, duels, once, settings, f"iteration {t}: log-probs of the start")


def require_same_winners(context: RunContext, window: Window, t: int) -> None:
    """Raise UserError if the iteration was started with other winners. The message lists the changed recipe keys, which the fingerprint,
    a hash of the duels, does not contain."""
    recipe = context.recipe
    name = iteration_stage(t, "score" if recipe.objective.kind.uses_opponent_logps else "train")
    begun = (context.run.inputs_of(name) or {}).get("duels")
    if not recipe.target.uses_grades or begun in (None, duels_digest(window.duels)):
        return
    was, now = (
        {part: getattr(one, part).model_dump() for part in ("target", "evaluate", "objective")}
        for one in (recipe_of_run(context.run.root), recipe)
    )
    changes = "".join(f"\n  {line}" for line in differences(was, now))
    raise UserError(
        f"stage {name} was made from other winners and losers than the recipe now makes{changes}",
        where=str(context.run.root),
        remedy=f"undo the change and run again (the former grades are kept), or redo from there on purpose with --restart-from {name} "
        "(the replies of its iteration are kept), or choose another run_dir",
    )


def _of_start(context: RunContext, t: int) -> list[StageRecord]:
    """The stages before iteration t that hold log-probs under the start of the game."""
    names = [iteration_stage(0, "score"), *(iteration_stage(i, "score-start") for i in range(1, t))]
    return [record for name in names if (record := context.run.finished(name))]


def score_stage(
    context: RunContext, name: str, model: Player, duels: Sequence[Duel | Contest], plan: TrainPlan, settings: OptimSection, phase: str
) -> StageRecord:
    """Log-probs of duels under a model, in the micro-batches of a training by this plan and these settings."""
    batches = Batches(plan, Scoring.of(context.with_budget(settings)))
    return context.run_stage(name, partial(_score, phase, opponent=model, duels=duels, batches=batches))


def _score(phase: str, stage: Path, *, opponent: Player, duels: Sequence[Duel | Contest], batches: Batches) -> dict[str, Any]:
    return score_duels(stage, opponent.folder, duels, batches.plan, batches.scoring.settings, phase)


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
    return Player.of_stage(context.run_stage(name, work))


def _train(
    common: Common, t: int, stage: Path, *, train: TrainSection, objective: Objective, opponent: Player, scored: Scored, seed: int
) -> dict[str, Any]:
    window = scored.window
    opponent_logps, start_logps = (read_logps(*(record.path for record in records)) for records in (scored.opponent, scored.start))
    task = iteration_task(window.duels, objective, opponent_logps, start_logps)
    plan = iteration_plan(train, len(window.duels), seed, t)
    facts = fit_model(common, stage, opponent, task, plan, train)
    return {**facts, "counts": window.counts}
