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
from sparring.stage_names import iteration_of
from sparring.stages.context import Common
from sparring.training.checkpoint import remove_checkpoints
from sparring.training.fit import FitResult, fit
from sparring.training.plan import TrainPlan
from sparring.training.tasks import SftTask, Task


def fit_model(common: Common, stage: Path, start: Player, task: Task, plan: TrainPlan, settings: OptimSection) -> dict[str, Any]:
    """Train, save the model, then drop the checkpoints; a kill between any two of these steps loses no training."""
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

    An adapter of an SFT stage is added to the weights: the game's own adapters start from there.
    """
    own = folder.with_name("adapter") if merged else folder
    result.weights.save_pretrained(own)
    if merged:
        merge(own, folder)
        shutil.rmtree(own)
    copy_extras(common.base, folder)
    common.chat.tokenizer.save_pretrained(folder)
    name_ends(folder, common.chat.stop_ids)
    for file in folder.iterdir():  # on the disk before the checkpoints go
        fsync(file)
