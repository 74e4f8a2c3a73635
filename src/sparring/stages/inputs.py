"""The parts of a recipe that the results of several stages depend on, as parts of their fingerprints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparring.config import OptimSection, Recipe
from sparring.data.records import Contest, Duel
from sparring.policy.player import Player
from sparring.rundir import digest
from sparring.training.plan import TrainPlan

# these change speed, memory or the cost of a kill, and results only by rounding
NOT_FINGERPRINTED = {"checkpoint_every", "micro_batch_tokens", "gradient_checkpointing"}


def training_inputs(settings: OptimSection) -> dict[str, Any]:
    """The options of a training stage that its result depends on."""
    return settings.model_dump(exclude=NOT_FINGERPRINTED)


def base_format(recipe: Recipe) -> dict[str, str]:
    """The format of a quantised base; empty without one, as in runs from before quantisation."""
    return {"quantize": "4bit"} if recipe.train.four_bit else {}


def sampling_inputs(recipe: Recipe, model: Player, sampling_round: int) -> dict[str, Any]:
    """Everything that replies depend on; the batch size is not part of it."""
    sampling = recipe.sampling
    return {
        "sampling": {"engine": sampling.engines, **sampling.model_dump(include={"temperature", "top_p", "max_new_tokens"})},
        "dtype": recipe.sampling_dtype,
        **base_format(recipe),
        "model": model.hash,
        "round": sampling_round,
        "seed": recipe.seed,
    }


def scoring_inputs(recipe: Recipe, opponent: Player, duels: Sequence[Duel | Contest], plan: TrainPlan, precision: str) -> dict[str, Any]:
    """Everything that log-probs of duels depend on."""
    return {
        "opponent": opponent.hash,
        "duels": duels_digest(duels),
        "batches": {
            "first_pass_steps": plan.first_pass_steps(),
            "batch_size": plan.batch_size,
            "seed": plan.seed,
            "precision": precision,
            **base_format(recipe),
        },
    }


def duels_digest(duels: Sequence[Duel | Contest]) -> str:
    """Hash of the whole content of the duels, in their order."""
    return digest([vars(duel) for duel in duels])
