"""How a recipe's stages spread over devices: which share of the weights, gradients and optimizer states each of them holds."""

from __future__ import annotations

from dataclasses import dataclass

from sparring.config import Recipe
from sparring.planning.hardware import Hardware

# What of a training's state each strategy cuts into one part per device; what it does not cut, every device holds whole.
CUT = {
    "single": frozenset(),
    "ddp": frozenset(),
    "deepspeed-zero2": frozenset({"masters", "gradients", "optimizer"}),
    "deepspeed-zero3": frozenset({"weights", "masters", "gradients", "optimizer"}),
    "fsdp2": frozenset({"weights", "masters", "gradients", "optimizer"}),
}
# Optimizers whose states can be cut
CUTTABLE = ("rmsprop", "adamw")
# FSDP2 keeps float32 shards alone and gathers them in the format that computes; DeepSpeed has shards of both.
WITHOUT_COPY = frozenset({"fsdp2"})


@dataclass(frozen=True)
class Parallel:
    """`devices` that work on one stage, and how they share it."""

    devices: int = 1
    strategy: str = "single"

    def part(self, what: str) -> float:
        """The share of `what` that one device holds."""
        return 1 / self.devices if what in CUT[self.strategy] else 1.0

    @property
    def keeps_copy(self) -> bool:
        """Whether there are shards in the format that computes beside those of the float32 weights."""
        return self.strategy not in WITHOUT_COPY

    @property
    def gathers(self) -> bool:
        """Whether a layer's weights are put together when it is their turn."""
        return "weights" in CUT[self.strategy]


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
