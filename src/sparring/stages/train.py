"""The stages that train.

Fine-tuning on the human replies gives the start of the game, and the control that continues it. Stages 2 and 3 of an iteration compute the
log-probs of its duels, under its opponent and under the start of the game, and then the player."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sparring.config import OptimSection, SftSection, TrainSection, recipe_of_run
from sparring.data.records import Contest, Duel
from sparring.errors import UserError
from sparring.objectives.shared import Objective
from sparring.policy.load import copy_extras, merge, name_ends
from sparring.policy.player import Player
from sparring.policy.ranks import from_main
from sparring.rundir import StageRecord, differences, fsync, read_json, write_json
from sparring.stage_names import SFT, iteration_of, iteration_stage
from sparring.stages.context import Common, RunContext
from sparring.stages.run_stage import Examples, Scoring, duels_digest
from sparring.targets.window import Window
from sparring.training.checkpoint import remove_checkpoints
from sparring.training.fit import FitResult, fit
from sparring.training.opponent_pass import read_logps, score_duels
from sparring.training.plan import TrainPlan, iteration_plan, make_plan, order_seed, steps_plan
from sparring.training.tasks import SftTask, Task, iteration_task


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


def fit_model(common: Common, stage: Path, start: Player, task: Task, plan: TrainPlan, settings: OptimSection) -> dict[str, Any]:
    """Train, save the model, then delete the checkpoints; a kill between any two of these steps loses no training."""
    fitted, t = stage / "fit.json", iteration_of(common.name)
    if not from_main(fitted.exists):
        labels = {"stage": common.name} if t is None else {"iteration": t}
        result = fit(stage, start.folder, task, plan, settings, phase=f"{common.title}: training", labels=labels)

        def save() -> None:
            _save_model(common, result, stage / "model", merged=settings.lora is not None and isinstance(task, SftTask))
            write_json(fitted, result.facts)

        from_main(save)

    def finish() -> dict[str, Any]:
        remove_checkpoints(stage)
        return read_json(fitted)

    return from_main(finish)


def _save_model(common: Common, result: FitResult, folder: Path, merged: bool) -> None:
    """Write a plain Hugging Face folder with the chat template and the end-of-turn token of the training.

    An adapter of an SFT stage is merged into the weights: the game's own adapters start from the merged model.
    """
    own = folder.with_name("adapter") if merged else folder
    result.save(own)
    if merged:
        merge(own, folder)
        shutil.rmtree(own)
    copy_extras(common.base, folder)
    common.chat.tokenizer.save_pretrained(folder)
    name_ends(folder, common.chat.stop_ids)
    for file in folder.iterdir():  # on disk before the checkpoints are deleted
        fsync(file)


def sft(context: RunContext) -> Player:
    """The start of the game: the base model, fine-tuned on the human replies if the recipe has an sft section."""
    settings = context.recipe.sft
    if settings is None:
        return context.base
    return sft_stage(context, SFT, context.base, settings)


def sft_stage(
    context: RunContext, name: str, start: Player, settings: SftSection, steps: int | None = None, iterations: int | None = None
) -> Player:
    """`start` trained on the human replies for the epochs of the settings, or for so many `steps`.

    iterations: number of iterations of the game that a control continues; the control has the order of batches of the next iteration.
    """
    common, sft, data, seed = context.common(name), context.with_budget(settings), context.train_examples, context.recipe.seed
    work = partial(_sft, common, sft=sft, steps=steps, iterations=iterations, start=start, data=data, seed=seed)
    return Player.of_stage(context.run_stage(name, work))


def _sft(
    common: Common, stage: Path, *, sft: SftSection, steps: int | None, iterations: int | None, start: Player, data: Examples, seed: int
) -> dict[str, Any]:
    order = seed if iterations is None else order_seed(seed, iterations)
    if steps is None:
        plan = make_plan(sft, len(data), lr=sft.lr, epochs=sft.epochs, seed=order, name=common.title)
    else:
        plan = steps_plan(sft, len(data), lr=sft.lr, steps=steps, seed=order)
    return fit_model(common, stage, start, SftTask(data), plan, sft)
