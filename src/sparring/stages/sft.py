"""Fine-tuning on the human replies: the start of the game, and the control that continues it; `fit_model` trains for any stage."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from sparring.config import OptimSection, SftSection
from sparring.policy.load import copy_extras, merge, name_ends
from sparring.policy.player import Player
from sparring.policy.ranks import from_main
from sparring.rundir import fsync, read_json, write_json
from sparring.stage_names import SFT, iteration_of
from sparring.stages.context import Common, RunContext
from sparring.stages.run_stage import Examples
from sparring.training.checkpoint import remove_checkpoints
from sparring.training.fit import FitResult, fit
from sparring.training.plan import TrainPlan, make_plan, order_seed, steps_plan
from sparring.training.tasks import SftTask, Task


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
