"""How a recipe's stages spread over devices."""

from __future__ import annotations

from dataclasses import dataclass

from sparring.config import Recipe
from sparring.planning.hardware import Hardware
from sparring.policy.shares import Parallel

# Optimizers whose states can be cut
CUTTABLE = ("rmsprop", "adamw")


@dataclass(frozen=True)
class Samplers:
    """`copies` of the model draw replies side by side, each laid over `split` devices."""

    copies: int = 1
    split: int = 1

    @property
    def devices(self) -> int:
        return self.copies * self.split


def of_training(recipe: Recipe, hardware: Hardware) -> Parallel:
    """Log-probs and training: one device without a launcher, whatever there is; with one, its processes, or all devices."""
    launcher = getattr(recipe, "launcher", None)
    if launcher is None or launcher.kind == "inline":
        return Parallel()
    return Parallel(launcher.processes or hardware.count, launcher.strategy)


def of_sampling(recipe: Recipe, hardware: Hardware) -> Samplers:
    """Replies: every rank has the whole model, unless vLLM lays its layers over several devices."""
    if recipe.sampling.engine == "vllm":
        return Samplers(split=recipe.sampling.vllm.tensor_parallel)
    return Samplers(copies=of_training(recipe, hardware).devices if recipe.sampling.engine == "transformers" else 1)
