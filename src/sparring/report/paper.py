"""Where a recipe differs from the experiment of the paper (arXiv 2401.01335, its section 6 and the released configs)."""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

from sparring.config import Recipe

PAPER: dict[str, Any] = {
    "model.path": "alignment-handbook/zephyr-7b-sft-full",
    "data.path": "UCLA-AGI/SPIN_iter0",
    "data.max_examples": 50_000,
    "data.max_prompt_tokens": 512,
    "data.max_reply_tokens": 512,
    "sft": None,
    "iterations": 4,
    "sampling.temperature": 1.0,
    "sampling.top_p": 1.0,
    "sampling.max_new_tokens": 256,
    "sampling.replies_per_prompt": 1,
    "target.kind": "human",
    "objective.loss": "logistic",
    "objective.beta": (0.1, 0.1, 0.1, 5.0),
    "objective.window": 2,
    "train.optimizer": "rmsprop",
    "train.lr": (5e-7, 5e-7, 1e-7, 1e-7),
    "train.schedule": "linear",
    "train.warmup": 0.1,
    "train.epochs": 2.0,
    "train.horizon_epochs": 6.0,
    "train.batch_size": 64,
    "train.weight_decay": 0.0,
    "train.precision": "bf16",
    "train.lora": None,
}


class Difference(NamedTuple):
    """A key that the recipe sets to another value than the paper."""

    key: str
    ours: Any
    papers: Any


def differences_from_paper(recipe: Recipe) -> list[Difference]:
    """The settings of PAPER that this recipe sets to something else."""
    found = [Difference(key, reduce(getattr, key.split("."), recipe), value) for key, value in PAPER.items()]
    return [one for one in found if _plain(one.ours) != _plain(one.papers)]


def _plain(value: Any) -> Any:
    """One value per iteration that are all the same are one value."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value
