"""Checkpoints of a training stage: float32 weights, optimizer tensors and the step, all in safetensors and JSON, never pickled.

The order of the data and the learning rate are functions of the step (plan.py) and dropout is off, so there is no random state to keep.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sparring.rundir import fsync, read_object, write_json

FOLDER, OPTIMIZER = "checkpoint", "optimizer.safetensors"


def save_checkpoint(stage: Path, step: int, save_model: Callable[[Path], None], optimizer: dict[str, torch.Tensor]) -> None:
    """Replace the stage's checkpoint by one after `step` steps; the old one is deleted when the new one is complete.

    save_model: writes the model, or its adapter, to a folder; optimizer: the result of `flat_state`. Only rank 0 writes: the format is that
    of one process; any number of ranks can resume from it.
    """
    new = stage / f"{FOLDER}-{step:07d}"
    shutil.rmtree(new, ignore_errors=True)
    save_model(new)
    save_file(optimizer, new / OPTIMIZER)
    for file in new.iterdir():
        fsync(file)
    write_json(new / "step.json", {"step": step})
    for old in _folders(stage):
        if old != new:
            shutil.rmtree(old)


def latest_checkpoint(stage: Path) -> tuple[int, Path] | None:
    """(steps done, folder) of the newest complete checkpoint; leftovers of a killed save are ignored."""
    complete = [folder for folder in _folders(stage) if (folder / "step.json").exists()]
    return (read_object(complete[-1] / "step.json", "step")["step"], complete[-1]) if complete else None


def restore_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Load the optimizer tensors of a checkpoint, bit for bit."""
    optimizer.load_state_dict({**optimizer.state_dict(), "state": read_optimizer(folder)})


def read_optimizer(folder: Path) -> dict[int, dict[str, Any]]:
    """The optimizer's state in a checkpoint: parameter's number -> name -> value."""
    found: dict[int, dict[str, Any]] = {}
    for name, tensor in load_file(folder / OPTIMIZER).items():
        index, key = name.split(".", 1)
        # whole numbers are bitsandbytes' steps; torch's are float32 tensors
        is_number = tensor.ndim == 0 and tensor.dtype == torch.int64
        found.setdefault(int(index), {})[key] = int(tensor) if is_number else tensor
    return found


def remove_checkpoints(stage: Path) -> None:
    """Delete all checkpoints of a stage."""
    for folder in _folders(stage):
        shutil.rmtree(folder)


def flat_state(state: dict[int, dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The tensors of an optimizer's state (`state_dict()["state"]`) by "parameter's number.name"."""
    found: dict[str, Any] = {}
    for index, values in state.items():
        for key, value in values.items():
            # bitsandbytes wraps the quantisation state, and also reads it unwrapped
            found.update({f"{index}.{name}": part for name, part in (value.items() if isinstance(value, dict) else [(key, value)])})
    tensors = {name: torch.as_tensor(value).contiguous() for name, value in found.items() if value is not None}
    # bitsandbytes shares one quantisation map among all parameters, and safetensors cannot save shared memory
    return {name: tensor.clone() if name.split(".")[1].startswith("qmap") else tensor for name, tensor in tensors.items()}


def _folders(stage: Path) -> list[Path]:
    return sorted(stage.glob(f"{FOLDER}-*"))
