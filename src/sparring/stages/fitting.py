"""Train a model and write it into the folder of a stage."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sparring.config import OptimSection
from sparring.policy.load import copy_extras, merge, name_ends
from sparring.policy.player import Player
from sparring.policy.ranks import from_main
from sparring.rundir import fsync, read_json, write_json
from sparring.stages.context import RunContext
from sparring.training.checkpoint import remove_checkpoints
from sparring.training.fit import FitResult, fit
from sparring.training.plan import TrainPlan
from sparring.training.tasks import SftTask, Task


def fit_model(
    context: RunContext, stage: Path, start: Player, task: Task, plan: TrainPlan, settings: OptimSection, **shown: Any
) -> dict[str, Any]:
    """Train, save the model, then drop the checkpoints; a kill between any two of these steps loses no training."""
    fitted = stage / "fit.json"
    if not from_main(fitted.exists):
        result = fit(stage, start.folder, task, plan, context.with_budget(settings), **shown)

        def save() -> None:
            _save_model(context, result, stage / "model", merged=settings.lora is not None and isinstance(task, SftTask))
            write_json(fitted, result.facts)

        from_main(save)

    def finish() -> dict[str, Any]:
        remove_checkpoints(stage)
        return read_json(fitted)

    return from_main(finish)


def _save_model(context: RunContext, result: FitResult, folder: Path, merged: bool) -> None:
    """Write a plain Hugging Face folder with the chat template and the end-of-turn token of the training.

    An adapter of an SFT stage is added to the weights: the game's own adapters start from there.
    """
    own = folder.with_name("adapter") if merged else folder
    result.weights.save_pretrained(own)
    if merged:
        merge(own, folder)
        shutil.rmtree(own)
    copy_extras(context.base.folder, folder)
    context.chat.tokenizer.save_pretrained(folder)
    name_ends(folder, context.chat.stop_ids)
    for file in folder.iterdir():  # on the disk before the checkpoints go
        fsync(file)
