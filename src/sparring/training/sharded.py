"""Weights that FSDP2 shards. They go from rank 0 into the shards and back to it by torch.distributed.checkpoint.state_dict."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from sparring.config import OptimSection
from sparring.policy.compute import COMPUTE_DTYPES
from sparring.policy.ranks import is_main, rank_count
from sparring.policy.score import Scorer
from sparring.training.checkpoint import Saveable, flat_state, read_optimizer
from sparring.training.masters import AdapterWeights, Weights, weights_to_shard
from sparring.training.optimizers import make_optimizer, require_shardable

TO_MAIN = StateDictOptions(full_state_dict=True, cpu_offload=True)
FROM_MAIN = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


class Fsdp2Shards:
    """Float32 shards of every layer; a pass gathers a layer at a time, in the compute format, and its gradient is reduced in float32.

    Implements `RankedWeights` (training/ranked.py).
    """

    needs_all_ranks = True
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(self, folder: Path, settings: OptimSection, accelerator: Accelerator, seed: int) -> None:
        require_shardable(settings, "train")
        self.accelerator = accelerator
        self.weights = weights_to_shard(folder, settings, seed)
        self.model = self.weights.master_model
        self.scorer = Scorer(self.weights.model)

    def prepare(self, settings: OptimSection) -> None:
        self.wrapped = shard(self.scorer, settings, self.accelerator)
        self.optimizer = make_optimizer(self.model, settings)

    def backward(self, loss: Tensor, is_last: bool) -> None:
        # torch takes the mean over the ranks, and the step's loss is the sum of their parts
        self.accelerator.backward(loss * rank_count())

    def clip(self, limit: float | None) -> float:
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), math.inf if limit is None else limit)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def sync_compute_weights(self) -> None:
        """Nothing to do: a pass gathers the updated shards."""

    def saveable(self) -> Saveable:
        return WholeWeights(self.weights, _whole_state(self.weights))

    def optimizer_tensors(self) -> dict[str, Tensor]:
        found: dict[str, Any] = get_optimizer_state_dict(self.wrapped, self.optimizer, options=TO_MAIN)
        if not is_main():
            return {}
        return flat_state({number: found["state"][name] for number, name in enumerate(_names(found)) if name in found["state"]})

    def restore_optimizer(self, folder: Path) -> None:
        found: dict[str, Any] = get_optimizer_state_dict(self.wrapped, self.optimizer)  # for the names and the groups
        if is_main():
            names = _names(found)
            found["state"] = {names[number]: values for number, values in read_optimizer(folder).items()}
        set_optimizer_state_dict(self.wrapped, self.optimizer, found if is_main() else {}, options=FROM_MAIN)


def shard(scorer: Scorer, settings: OptimSection, accelerator: Accelerator) -> nn.Module:
    """The scorer under FSDP2, with the weights of rank 0's. All ranks must call it."""
    # under adapters the base is in the format that computes already, and the adapters compute in their own float32
    compute = None if settings.lora is not None else COMPUTE_DTYPES[settings.precision]
    plugin = accelerator.state.fsdp_plugin
    plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    whole = scorer.state_dict() if is_main() else {}
    wrapped = fsdp2_prepare_model(accelerator, scorer)
    if not is_main():
        _allocate(wrapped, torch.device("cpu") if isinstance(plugin.cpu_offload, CPUOffloadPolicy) else accelerator.device)
    set_model_state_dict(wrapped, whole, options=FROM_MAIN)
    return wrapped


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


def _whole_state(weights: Weights) -> dict[str, Tensor]:
    """The trained weights, gathered in rank 0's memory; {} on the other ranks. Tied weights stay tied, which torch would separate."""
    options = replace(TO_MAIN, ignore_frozen_params=isinstance(weights, AdapterWeights))
    whole: dict[str, Any] = get_model_state_dict(weights.master_model, options=options)
    first: dict[int, str] = {}
    return {name: whole[first.setdefault(id(tensor), name)] for name, tensor in weights.trained().items()} if is_main() else {}


def _allocate(model: nn.Module, device: torch.device) -> None:
    """Memory for the shards of a model on the meta device; its buffers have their values already."""
    buffers = [(module, name, buffer) for module in model.modules() for name, buffer in module.named_buffers(recurse=False)]
    model.to_empty(device=device)
    for module, name, buffer in buffers:
        setattr(module, name, buffer)


def _names(optimizer: dict[str, Any]) -> list[str]:
    """The names of an optimizer's parameters in its own order, by which one process numbers them."""
    return [name for group in optimizer["param_groups"] for name in group["params"]]
