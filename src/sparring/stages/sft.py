"""Fine-tuning on the human replies: the start of the game, and the control that continues it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from sparring.config import SftSection
from sparring.policy.player import Player
from sparring.stage_names import SFT
from sparring.stages.context import Common, RunContext
from sparring.stages.fitting import fit_model
from sparring.stages.inputs import Examples
from sparring.training.plan import make_plan, order_seed, steps_plan
from sparring.training.tasks import SftTask


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

    iterations: of the game that a control continues, whose order of batches is the next iteration's.
    """
    common, sft, data, seed = context.common(name), context.with_budget(settings), context.train_examples, context.recipe.seed
    work = partial(_sft, common, sft=sft, steps=steps, iterations=iterations, start=start, data=data, seed=seed)
    return Player.of_stage(context.stages.run_stage(name, work))


def _sft(
    common: Common, stage: Path, *, sft: SftSection, steps: int | None, iterations: int | None, start: Player, data: Examples, seed: int
) -> dict[str, Any]:
    order = seed if iterations is None else order_seed(seed, iterations)
    if steps is None:
        plan = make_plan(sft, len(data), lr=sft.lr, epochs=sft.epochs, seed=order, name=common.title)
    else:
        plan = steps_plan(sft, len(data), lr=sft.lr, steps=steps, seed=order)
    return fit_model(common, stage, start, SftTask(data), plan, sft)
