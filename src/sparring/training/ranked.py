"""How ranks share the weights in training and scoring: replicated, or sharded by FSDP2 (sharded.py).

A single process uses the replicated kind. Optimizer steps see the same gradient in all kinds, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparring.config import OptimSection
from sparring.console import log
from sparring.policy import strategies
from sparring.policy.adapters import is_adapter
from sparring.policy.batches import Branches, layout_probe_trees, longest_row
from sparring.policy.compute import COMPUTE_DTYPES, make_accelerator
from sparring.policy.load import load_model
from sparring.policy.ranks import is_main, rank_count, sum_over_ranks
from sparring.policy.score import Scorer, score_trees
from sparring.training.checkpoint import Saveable, flat_state, restore_optimizer
from sparring.training.masters import AdapterWeights, trainable_weights, weights_to_shard
from sparring.training.optimizers import make_optimizer, require_shardable
from sparring.training.sharded import Fsdp2Shards, shard

PRECISION = {
    "bf16": "float32 masters, passes in bfloat16, gradients summed over the ranks in float32",
    "fp32": "everything in float32",
}


class RankedWeights(Protocol):
    """`model` is trained and saved, `scorer` computes; `wrapped` is the module that runs it, with its wrapper if there is one.

    `needs_all_ranks`: every pass, forward or backward, needs all ranks, so all ranks must make equally many passes.
    """

    model: PreTrainedModel
    scorer: Scorer
    wrapped: nn.Module
    optimizer: Any
    needs_all_ranks: bool

    def prepare(self, settings: OptimSection) -> None:
        """Create the optimizer and wrap the modules. Called once, after the scorer's layout was chosen."""
        ...

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Add the gradient of this rank's part of a step's loss; `is_last`: no further part follows on this rank."""
        ...

    def clip(self, limit: float | None) -> float:
        """Scale the gradient of the whole step down to `limit`; returns its norm before that."""
        ...

    def sync_compute_weights(self) -> None:
        """Copy the new weights to the computing model; called after every optimizer step."""
        ...

    def saveable(self) -> Saveable:
        """The weights that rank 0 can write as a model folder. All ranks must call it."""
        ...

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizer's state as one process would have it, on rank 0. All ranks must call it."""
        ...

    def restore_optimizer(self, folder: Path) -> None: ...


class Replicas:
    """Every rank holds all weights. Gradients are summed once per step, in float32, by Accelerate.

    Not torch's DistributedDataParallel: it would reduce bfloat16 gradients in bfloat16, and wait forever for parameters that a micro-batch
    of one rank does not use (experts of a mixture).
    """

    needs_all_ranks = False

    def __init__(self, folder: Path, settings: OptimSection, accelerator: Accelerator, seed: int) -> None:
        self.accelerator = accelerator
        self.master_model = trainable_weights(folder, settings, accelerator.device, seed)
        self.model = self.master_model.master_model
        self.wrapped = self.scorer = Scorer(self.master_model.model)

    def prepare(self, settings: OptimSection) -> None:
        self.optimizer = self.accelerator.prepare(make_optimizer(self.model, settings))

    def backward(self, loss: Tensor, is_last: bool) -> None:
        self.accelerator.backward(loss)

    def clip(self, limit: float | None) -> float:
        self._sum_over_ranks()
        return float(self.accelerator.clip_grad_norm_(self.model.parameters(), math.inf if limit is None else limit))

    def sync_compute_weights(self) -> None:
        self.master_model.sync_compute_weights()

    def saveable(self) -> Saveable:
        return self.master_model

    def optimizer_tensors(self) -> dict[str, Tensor]:
        return flat_state(self.optimizer.state_dict()["state"])

    def restore_optimizer(self, folder: Path) -> None:
        restore_optimizer(folder, self.optimizer)

    def _sum_over_ranks(self) -> None:
        if rank_count() == 1:
            return
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        used = torch.tensor([float(parameter.grad is not None) for parameter in trained], device=self.accelerator.device)
        summed = []
        for parameter, users in zip(trained, self.accelerator.reduce(used, "sum").tolist(), strict=True):
            if users:  # by any rank; a parameter that no rank used keeps no gradient, as in one process
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()
                summed.append(parameter.grad)
        sum_over_ranks(summed)


class FrozenWeights:
    """Weights that only score, shared as in training: the same arithmetic gives a first-step margin of exactly 0."""

    def __init__(self, folder: Path, settings: OptimSection, accelerator: Accelerator, seed: int | None = None) -> None:
        """seed: initialises the adapter that a model without one gets if adapters are trained; None adds no adapter."""
        self.accelerator, self.four_bit = accelerator, settings.four_bit
        is_bare = seed is None and not is_adapter(folder)
        self.settings = settings.model_copy(update={"lora": None}) if is_bare else settings
        self.needs_all_ranks = strategies.is_sharded()
        if self.needs_all_ranks:
            require_shardable(settings, "train")
        self.model = self._load(folder, seed or 0)
        self.scorer = Scorer(self.model)
        self.wrapped: nn.Module = self.scorer

    def prepare(self, trees: Sequence[Branches]) -> None:
        """Choose the layout for trees like these, then share the weights."""
        self.scorer.choose_layout_on_main(*layout_probe_trees(trees), row_tokens=longest_row(trees, self.settings.max_tokens))
        if self.needs_all_ranks:
            if self.settings.lora is None:  # in training shards are cast as they are gathered, to the same values
                for parameter in self.model.parameters():
                    parameter.data = parameter.data.to(COMPUTE_DTYPES[self.settings.precision])
            self.wrapped = shard(self.scorer, self.settings, self.accelerator)

    def score(self, trees: Sequence[Branches]) -> list[list[float]]:
        """Log-probs of each tree's replies, in the order of the trees; ranks share the trees. All ranks must call it."""
        return score_trees(self.scorer, trees, self.settings.max_tokens, self.wrapped, self.needs_all_ranks)

    def _load(self, folder: Path, seed: int) -> PreTrainedModel:
        if self.needs_all_ranks:
            return weights_to_shard(folder, self.settings, seed).model
        if self.settings.lora is not None:
            # DoRA rounds in bfloat16 even if it changes nothing, so the opponent gets the adapter that its player starts with
            return AdapterWeights(folder, self.settings, self.accelerator.device, seed).model
        return load_model(folder, COMPUTE_DTYPES[self.settings.precision], self.four_bit).to(self.accelerator.device)


def score_player(folder: Path, batches: Sequence[Sequence[Branches]], settings: OptimSection) -> list[list[list[float]]]:
    """`FrozenWeights.score` of every batch of trees by the player in `folder`. Its memory is freed afterwards."""
    weights = FrozenWeights(folder, settings, make_accelerator())
    weights.prepare([tree for trees in batches for tree in trees])
    return [weights.score(trees) for trees in batches]


def ranked_weights(folder: Path, settings: OptimSection, accelerator: Accelerator, seed: int) -> RankedWeights:
    """The model in `folder`, ready to be trained under this process's strategy. A new adapter is initialised from `seed`."""
    kind: type[Any] = Fsdp2Shards if strategies.is_sharded() else Replicas
    if rank_count() > 1 and is_main():
        log.info(f"{rank_count()} ranks, {kind.__name__}: {PRECISION[settings.precision]}")
    return kind(folder, settings, accelerator, seed)
