"""How ranks share the weights in training and scoring: replicated, or sharded by FSDP2.

A single process uses the replicated kind. Optimizer steps see the same gradient in all kinds, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
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
from transformers import PreTrainedModel

from sparring.config import OptimSection, require_shardable
from sparring.console import log
from sparring.policy.adapters import is_adapter
from sparring.policy.batches import Branches
from sparring.policy.compute import COMPUTE_DTYPES, make_accelerator, model_on
from sparring.policy.load import load_model
from sparring.policy.ranks import is_main, is_sharded, rank_count, sum_over_ranks
from sparring.policy.score import Scorer, score_trees
from sparring.training.checkpoint import flat_state, read_optimizer, restore_optimizer
from sparring.training.masters import AdapterWeights, TrainableWeights, make_optimizer, trainable_weights

PRECISION = {
    "bf16": "float32 masters, passes in bfloat16, gradients summed over the ranks in float32",
    "fp32": "everything in float32",
}

TO_MAIN = StateDictOptions(full_state_dict=True, cpu_offload=True)
FROM_MAIN = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


class Replicas:
    """Every rank holds all weights. Gradients are summed once per step, in float32, by Accelerate.

    Not torch's DistributedDataParallel: it would reduce bfloat16 gradients in bfloat16, and wait forever for parameters that a micro-batch
    of one rank does not use (experts of a mixture).

    `model` is trained and saved, `scorer` computes; `wrapped` is the module that runs it, with its wrapper if there is one.
    """

    needs_all_ranks = False  # every pass, forward or backward, needs all ranks, so all ranks must make equally many
    optimizer: Any

    def __init__(self, folder: Path, settings: OptimSection, seed: int) -> None:
        self.accelerator = make_accelerator()
        self.weights = trainable_weights(folder, settings, self.accelerator.device, seed, on_main=self.needs_all_ranks)
        self.model, self.scorer = self.weights.master_model, Scorer(self.weights.model)
        self.wrapped: nn.Module = self.scorer

    def prepare(self, settings: OptimSection) -> None:
        """Create the optimizer and wrap the modules. Called once, after the scorer's layout was chosen."""
        self.optimizer = self.accelerator.prepare(make_optimizer(self.model, settings))

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this rank's part of a step's loss."""
        self.accelerator.backward(loss)

    def clip(self, limit: float | None) -> float:
        """Scale the gradient of the whole step down to the L2 norm `limit`, None for no limit; returns its norm before that."""
        self._sum_over_ranks()
        return float(self.accelerator.clip_grad_norm_(self.model.parameters(), math.inf if limit is None else limit))

    def sync_compute_weights(self) -> None:
        """Copy the new weights to the computing model; called after every optimizer step."""
        self.weights.sync_compute_weights()

    def model_writer(self) -> Callable[[Path], None]:
        """The function by which rank 0 writes the model's folder, or its adapter's. All ranks must call `model_writer`."""
        return self.weights.save_pretrained

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizer's state as one process would have it, on rank 0. All ranks must call it."""
        return flat_state(self.optimizer.state_dict()["state"])

    def restore_optimizer(self, folder: Path) -> None:
        """Load the optimizer's state from the checkpoint in `folder`. All ranks must call it."""
        restore_optimizer(folder, self.optimizer)

    def _sum_over_ranks(self) -> None:
        if rank_count() == 1:
            return
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        used = torch.tensor([float(parameter.grad is not None) for parameter in trained], device=self.accelerator.device)
        summed = []
        for parameter, users in zip(trained, self.accelerator.reduce(used, "sum").tolist(), strict=True):
            if users:  # a parameter that no rank used gets no gradient, as in one process
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()
                summed.append(parameter.grad)
        sum_over_ranks(summed)


class Fsdp2Shards(Replicas):
    """Float32 shards of every layer in place of replicas; a pass gathers a layer at a time, in the compute format, and its gradient is
    reduced in float32."""

    needs_all_ranks = True

    def __init__(self, folder: Path, settings: OptimSection, seed: int) -> None:
        require_shardable(settings, "train")
        super().__init__(folder, settings, seed)

    def prepare(self, settings: OptimSection) -> None:
        self.wrapped = shard(self.scorer, settings, self.accelerator)
        self.optimizer = make_optimizer(self.model, settings)

    def backward(self, loss: Tensor) -> None:
        # torch takes the mean over the ranks, and the step's loss is the sum of their parts
        self.accelerator.backward(loss * rank_count())

    def clip(self, limit: float | None) -> float:
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), math.inf if limit is None else limit)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def sync_compute_weights(self) -> None:
        """Nothing to do: a pass gathers the updated shards."""

    def model_writer(self) -> Callable[[Path], None]:
        return partial(self.weights.save_pretrained, state=_whole_state(self.weights))

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
    # with adapters, the base is loaded in the compute format, and the adapters compute in float32
    compute = None if settings.lora is not None else COMPUTE_DTYPES[settings.number_format]
    plugin = accelerator.state.fsdp_plugin
    plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    whole = scorer.state_dict() if is_main() else {}
    wrapped = fsdp2_prepare_model(accelerator, scorer)
    if not is_main():
        _allocate(wrapped, torch.device("cpu") if isinstance(plugin.cpu_offload, CPUOffloadPolicy) else accelerator.device)
    set_model_state_dict(wrapped, whole, options=FROM_MAIN)
    return wrapped


def _whole_state(weights: TrainableWeights) -> dict[str, Tensor]:
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
    """The names of an optimizer's parameters, in the order in which a single process numbers them."""
    return [name for group in optimizer["param_groups"] for name in group["params"]]


class FrozenWeights:
    """Weights that only score, shared as in training: the same arithmetic gives a first-step margin of exactly 0."""

    def __init__(self, folder: Path, settings: OptimSection, trees: Sequence[Branches], seed: int | None = None) -> None:
        """trees: like those that will be scored, to choose the layout. seed: initialises the adapter that a model without one gets if
        adapters are trained; None adds no adapter."""
        is_bare = seed is None and not is_adapter(folder)
        self.settings = settings.model_copy(update={"lora": None}) if is_bare else settings
        self.needs_all_ranks, accelerator = is_sharded(), make_accelerator()
        if self.needs_all_ranks:
            require_shardable(settings, "train")
        self.scorer = Scorer(self._load(folder, accelerator.device, seed or 0, settings.four_bit))
        self.scorer.choose_layout_on_main(trees, settings.max_tokens)
        self.wrapped = self._sharded(accelerator) if self.needs_all_ranks else self.scorer

    def score(self, trees: Sequence[Branches]) -> list[list[float]]:
        """Log-probs of each tree's replies, in the order of the trees; ranks share the trees. All ranks must call it."""
        return score_trees(self.scorer, trees, self.settings.max_tokens, self.wrapped, self.needs_all_ranks)

    def _load(self, folder: Path, device: torch.device, seed: int, four_bit: bool) -> PreTrainedModel:
        if self.needs_all_ranks:
            return trainable_weights(folder, self.settings, device, seed, on_main=True).model
        if self.settings.lora is not None:
            # DoRA rounds in bfloat16 even if it changes nothing, so the opponent gets the adapter that its player starts with
            return AdapterWeights(folder, self.settings, device, seed).model
        return model_on(device, load_model(folder, COMPUTE_DTYPES[self.settings.number_format], four_bit))

    def _sharded(self, accelerator: Accelerator) -> nn.Module:
        if self.settings.lora is None:  # in training shards are cast as they are gathered, to the same values
            for parameter in self.scorer.model.parameters():
                parameter.data = parameter.data.to(COMPUTE_DTYPES[self.settings.number_format])
        return shard(self.scorer, self.settings, accelerator)


def score_player(folder: Path, batches: Sequence[Sequence[Branches]], settings: OptimSection) -> list[list[list[float]]]:
    """`FrozenWeights.score` of every batch of trees by the player in `folder`. Its memory is freed afterwards."""
    weights = FrozenWeights(folder, settings, [tree for trees in batches for tree in trees])
    return [weights.score(trees) for trees in batches]


def ranked_weights(folder: Path, settings: OptimSection, seed: int) -> Replicas:
    """The model in `folder`, ready to be trained under this process's strategy. A new adapter is initialised from `seed`."""
    kind = Fsdp2Shards if is_sharded() else Replicas
    if rank_count() > 1 and is_main():
        log.info(f"{rank_count()} ranks, {kind.__name__}: {PRECISION[settings.number_format]}")
    return kind(folder, settings, seed)
