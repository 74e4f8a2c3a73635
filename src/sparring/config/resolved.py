"""What options that are null come to by others of the recipe: what a run uses, and `sparring recipe` prints."""

from __future__ import annotations

from sparring.config.option_types import at_iteration
from sparring.config.recipe import Recipe
from sparring.config.sections.controls import ControlSection

SFT_LR = 1e-5  # of continued SFT after no SFT stage: half of what is usual for the first one


def control_lr(recipe: Recipe, section: ControlSection) -> float:
    """The learning rate of a control."""
    if section.lr is not None:
        return section.lr
    if section.kind != "continued-sft":
        return at_iteration(recipe.train.lr, 0)
    return recipe.sft.lr if recipe.sft else SFT_LR


def control_batch_size(recipe: Recipe, section: ControlSection) -> int:
    """The rows of its optimizer step."""
    inherited = recipe.sft if recipe.sft and section.kind == "continued-sft" else recipe.train
    return section.batch_size or inherited.batch_size


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with everything filled in that follows from it alone: the same game. What hangs on the rows, the model or the machine
    stays null."""
    controls = tuple(
        section.model_copy(update={"lr": control_lr(recipe, section), "batch_size": control_batch_size(recipe, section)})
        for section in recipe.controls
    )
    return recipe.model_copy(
        update={
            "controls": controls,
            "model": recipe.model.model_copy(update={"dtype": recipe.sampling_dtype}),
            "evaluate": recipe.evaluate.model_copy(update={"metric": recipe.metric}),
        }
    )
