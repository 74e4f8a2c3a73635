"""Fine-tuning on the human replies: the start of the game, and the control that goes on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparring.config import SftSection
from sparring.policy.player import Policy
from sparring.stage_names import SFT, title_of
from sparring.stages.fitting import fit_model
from sparring.stages.ground import Ground
from sparring.stages.inputs import training_inputs
from sparring.training.plan import TrainPlan, make_plan
from sparring.training.tasks import SftTask


def sft(ground: Ground) -> Policy:
    """The start of the game: the base model, fine-tuned on the human replies when the recipe asks for it."""
    recipe, settings = ground.recipe, ground.recipe.sft
    if settings is None:
        return ground.base
    plan = make_plan(settings, len(ground.train_examples), lr=settings.lr, epochs=settings.epochs, seed=recipe.seed, name="SFT")
    return sft_stage(ground, SFT, ground.base, plan, settings, {SFT: training_inputs(settings)})


def sft_stage(
    ground: Ground, name: str, start: Policy, plan: TrainPlan, settings: SftSection, inputs: dict[str, Any], derived: bool = False
) -> Policy:
    """`start` trained on the human replies by a plan; `inputs`: what it depends on beside the start, the rows and the seed."""

    def work(stage: Path) -> dict[str, Any]:
        phase = f"{title_of(name.removesuffix('/train'))}: training"
        return fit_model(ground, stage, start, SftTask(ground.train_examples), plan, settings, phase=phase, labels={"stage": name})

    inputs = {**inputs, "start": start.hash, "data": ground.data.outputs["train.parquet"], "seed": ground.recipe.seed}
    return Policy.of_stage(ground.maker.make(name, inputs, work, shared=True, derived=derived))
