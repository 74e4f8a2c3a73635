"""Sharded weights: loaded in shards, and gathered to be written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor, nn

from sparring.config import OptimSection
from sparring.policy.ranks import is_main
from sparring.policy.score import Scorer
from sparring.training.masters import Weights, weights_to_shard
from sparring.training.optimizers import require_shardable


class Sharded:
    """The part of `RankedWeights` that all sharding strategies share."""

    needs_all_ranks = True

    def __init__(self, folder: Path, settings: OptimSection, accelerator: Accelerator, seed: int) -> None:
        require_shardable(settings, "train")
        self.accelerator = accelerator
        self.weights = weights_to_shard(folder, settings, seed)
        self.model = self.weights.master_model
        self.scorer = Scorer(self.weights.model)


@dataclass(frozen=True)
class WholeWeights:
    """`state`: the state dict of the trained weights on rank 0, empty on other ranks. `weights`: the sharded ones."""

    weights: Weights
    state: dict[str, Tensor]

    @property
    def master_model(self) -> nn.Module:
        return self.weights.master_model

    def save_pretrained(self, folder: Path) -> None:
        """Write the model folder from the gathered state."""
        self.weights.save_pretrained(folder, self.state)


def gathered_weights(weights: Weights, whole: Callable[[nn.Parameter], Tensor]) -> WholeWeights:
    """`whole` gathers one parameter; all ranks take part in every call, and rank 0 keeps the values."""
    kept: dict[int, Tensor] = {}  # tied weights stay tied
    state = {}
    for name, tensor in weights.trained().items():
        if id(tensor) not in kept:
            full = whole(tensor) if isinstance(tensor, nn.Parameter) else tensor
            kept[id(tensor)] = full.detach().cpu() if is_main() else full.new_empty(0)
        if is_main():
            state[name] = kept[id(tensor)]
    return WholeWeights(weights, state)
