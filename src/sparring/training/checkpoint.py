"""Checkpoints of a training stage: float32 weights, optimizer tensors and the step, all in safetensors and JSON, never pickled.

The order of the data and the learning rate are functions of the step (plan.py) and dropout is off, so there is no random state to keep.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from sparring.rundir import fsync, read_json, write_json

FOLDER = "checkpoint"


def save_checkpoint(stage: Path, step: int, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
    """Replace the stage's checkpoint by one after `step` steps; the old one goes when the new one is complete."""
    new = stage / f"{FOLDER}-{step:07d}"
    shutil.rmtree(new, ignore_errors=True)
    model.save_pretrained(new)
    save_file(_flat_state(optimizer), new / "optimizer.safetensors")
    for file in new.iterdir():
        fsync(file)
    write_json(new / "step.json", {"step": step})
    for old in _folders(stage):
        if old != new:
            shutil.rmtree(old)


def latest_checkpoint(stage: Path) -> tuple[int, Path] | None:
    """(steps done, folder) of the newest complete checkpoint; leftovers of a killed save are ignored."""
    complete = [folder for folder in _folders(stage) if (folder / "step.json").exists()]
    return (read_json(complete[-1] / "step.json")["step"], complete[-1]) if complete else None


def restore_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Load the optimizer tensors of a checkpoint, bit for bit."""
    state = optimizer.state_dict()
    state["state"] = {}
    for name, tensor in load_file(folder / "optimizer.safetensors").items():
        index, key = name.split(".", 1)
        state["state"].setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(state)


def remove_checkpoints(stage: Path) -> None:
    for folder in _folders(stage):
        shutil.rmtree(folder)


def _flat_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value.contiguous() for index, values in state.items() for key, value in values.items() if value is not None}


def _folders(stage: Path) -> list[Path]:
    return sorted(stage.glob(f"{FOLDER}-*"))
