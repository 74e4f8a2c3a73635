"""How a recipe's stages spread over devices."""

from __future__ import annotations

import math
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
    launcher = recipe.launcher
    if launcher.kind == "inline":
        return Parallel()
    return Parallel(launcher.processes or hardware.count, launcher.strategy)


def of_sampling(recipe: Recipe, hardware: Hardware) -> Samplers:
    """Replies: every rank has the whole model, unless vLLM lays its layers over several devices. Ray's workers take all the devices that
    there are, and a server of every URL is taken for one more of them."""
    sampling = recipe.sampling
    split = sampling.vllm.tensor_parallel if sampling.inner_engine == "vllm" else 1
    if sampling.engine == "ray":
        room = hardware.count // max(split, math.ceil(sampling.ray.gpus_per_worker or 1))
        return Samplers(max(1, min(room, sampling.ray.max_workers or room)), split)
    if sampling.engine == "server":
        return Samplers(copies=len(sampling.server.urls))
    return Samplers(copies=of_training(recipe, hardware).devices if sampling.engine == "transformers" else 1, split=split)


def devices_wanted(recipe: Recipe, hardware: Hardware) -> tuple[int, str]:
    """The most devices that an option asks for by number, and that option. On a CPU all share the one."""
    sampling = recipe.sampling
    if hardware.kind == "cpu":
        return 1, "a run"
    wanted = [(of_training(recipe, hardware).devices, "launcher.processes")]
    if sampling.inner_engine == "vllm":  # all of them in one machine, of which there are as many as the launcher says
        wanted.append((sampling.vllm.tensor_parallel * recipe.launcher.machines, "sampling.vllm.tensor_parallel"))
    return max(wanted)
