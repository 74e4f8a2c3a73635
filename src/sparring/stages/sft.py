"""Fine-tuning on the human replies: the start of the game, and the control that continues it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparring.config import SftSection
from sparring.policy.player import Player
from sparring.stage_names import SFT, title_of
from sparring.stages.context import RunContext
from sparring.stages.fitting import fit_model
from sparring.stages.inputs import training_inputs
from sparring.training.plan import TrainPlan, make_plan
from sparring.training.tasks import SftTask


def sft(context: RunContext) -> Player:
    """The start of the game: the base model, fine-tuned on the human replies if the recipe has an sft section."""
    recipe, settings = context.recipe, context.recipe.sft
    if settings is None:
        return context.base
    plan = make_plan(settings, len(context.train_examples), lr=settings.lr, epochs=settings.epochs, seed=recipe.seed, name="SFT")
    return sft_stage(context, SFT, context.base, plan, settings, {SFT: training_inputs(settings)})


def sft_stage(context: RunContext, name: str, start: Player, plan: TrainPlan, settings: SftSection, inputs: dict[str, Any]) -> Player:
    """`start` trained on the human replies by a plan; `inputs`: what it depends on besides the start, the rows and the seed."""

    def work(stage: Path) -> dict[str, Any]:
        phase = f"{title_of(name.removesuffix('/train'))}: training"
        return fit_model(context, stage, start, SftTask(context.train_examples), plan, settings, phase=phase, labels={"stage": name})

    inputs = {**inputs, "start": start.hash, "data": context.data.outputs["train.parquet"], "seed": context.recipe.seed}
    return Player.of_stage(context.stages.run_stage(name, inputs, work))
