"""The objectives that followed SPIN, over the duels of an iteration: SPACE, T-SPIN, alpha-SPIN, and an anchor beside any of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparring.data.records import Duel, TokenIds, Triplet
from sparring.policy.batches import Branches
from sparring.policy.objectives import DuelLogps, mixed_logp, nll_anchor
from sparring.policy.space import space_loss
from sparring.policy.transfer import tensor_on
from sparring.policy.triplets import TripletLogps, triplet_loss
from sparring.training.tasks import DuelTask, ItemLosses, Logps, SpinTask, Task, duel_numbers, padded


def objective_task(duels: Sequence[Duel], objective: Mapping[str, Any], opponent: Logps, start: Logps) -> Task:
    """The task of an iteration from what `ObjectiveSection.at` gives for it.

    opponent, start: duel id -> log-probs of its branches under the opponent and under the start of the game; empty where the
    objective has no use for them.
    """
    task = _without_anchor(duels, objective, opponent, start)
    return Anchored(task, objective["nll_weight"]) if "nll_weight" in objective else task


def _without_anchor(duels: Sequence[Duel], objective: Mapping[str, Any], opponent: Logps, start: Logps) -> Task:
    loss = objective["loss"]
    if loss == "space":
        return SpaceTask(duels, opponent, objective["mu"])
    if loss == "t-spin":
        return TripletTask(duels, objective["beta"], objective["history_weight"])
    if loss == "alpha-spin":
        return SpinTask(duels, dict(mixed_opponent(opponent, start, objective["alpha"])), objective["beta"], "logistic")
    return SpinTask(duels, opponent, objective["beta"], loss)


def mixed_opponent(opponent: Logps, start: Logps, alpha: float) -> Iterator[tuple[str, list[float]]]:
    """The log-probs of alpha-SPIN's opponent, duel by duel."""
    for name, row in opponent.items():
        yield name, [mixed_logp(ours, theirs, alpha) for ours, theirs in zip(row, start[name], strict=True)]


class SpaceTask(DuelTask):
    """SPACE over the duels of an iteration. A reply that equals the human one is not computed again: the human branch stands for it."""

    def __init__(self, duels: Sequence[Duel], opponent_logps: Logps, mu: float) -> None:
        super().__init__(duels)
        self.opponent_logps, self.mu = opponent_logps, mu

    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses:
        duels = [self.duels[index] for index in indices]
        opponent_DR, _ = padded([self.opponent_logps[duel.duel_id] for duel in duels], logps_DR)
        trees = [self.branches(index) for index in indices]
        columns_DK, mask_DK = branch_columns(trees, [duel.generated_ids for duel in duels], logps_DR.device)
        player, opponent = (DuelLogps(logps[:, 0], logps.gather(1, columns_DK)) for logps in (logps_DR, opponent_DR))
        result = space_loss(player, opponent, mask_DK, mu=self.mu)
        return ItemLosses(result.loss_D, duel_numbers(result, player, mask_DK))


class TripletTask(DuelTask):
    """T-SPIN over triplets. Each reply is a branch of its own once, whoever has given it; there are no opponent log-probs."""

    duels: Sequence[Triplet]

    def __init__(self, duels: Sequence[Triplet], alpha: float, history_weight: float) -> None:
        super().__init__(duels)
        self.alpha, self.history_weight = alpha, history_weight

    def branches(self, index: int) -> Branches:
        duel = self.duels[index]
        # at weight 0 the replies of the start have no gradient, and nobody looks at them
        others = duel.start_ids if self.history_weight else ()
        return Branches(duel.prompt_ids, tuple(dict.fromkeys((duel.real_ids, *duel.generated_ids, *others))))

    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses:
        duels, trees = [self.duels[index] for index in indices], [self.branches(index) for index in indices]
        of_start = [duel.start_ids if self.history_weight else duel.generated_ids for duel in duels]
        generated_DK, mask_DK = branch_columns(trees, [duel.generated_ids for duel in duels], logps_DR.device)
        start_DK, _ = branch_columns(trees, of_start, logps_DR.device)
        player = TripletLogps(logps_DR[:, 0], logps_DR.gather(1, generated_DK), logps_DR.gather(1, start_DK))
        result = triplet_loss(player, mask_DK, alpha=self.alpha, history_weight=self.history_weight)
        generated = player.generated_DK.detach().masked_fill(~mask_DK, 0.0)
        numbers = {
            "margin": result.margin_D,
            "accuracy": result.accuracy_D,
            "real_logp": player.real_D.detach(),
            "generated_logp": generated.sum(1) / mask_DK.sum(1),
        }
        return ItemLosses(result.loss_D, numbers | ({"history_margin": result.history_D} if self.history_weight else {}))


def branch_columns(trees: Sequence[Branches], replies: Sequence[Sequence[TokenIds]], device: torch.device) -> tuple[Tensor, Tensor]:
    """For the k-th of each tree's `replies` the column [D, K] of its branch, and whether there is a k-th; equal replies share a column."""
    most = max(map(len, replies))
    columns = [[tree.replies.index(ids) for ids in own] for tree, own in zip(trees, replies, strict=True)]
    index_DK = tensor_on(device, [[*row, *[0] * (most - len(row))] for row in columns])
    return index_DK, tensor_on(device, [[k < len(row) for k in range(most)] for row in columns])


class Anchored:
    """Any task over human replies in its first branch, with weight times their negative log-likelihood per token beside its loss."""

    def __init__(self, task: Task, weight: float) -> None:
        self.task, self.nll_weight = task, weight
        self.unit, self.preferred = task.unit, task.preferred
        self.name, self.branches, self.weight = task.name, task.branches, task.loss_scale

    def __len__(self) -> int:
        return len(self.task)

    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses:
        found = self.task.losses(indices, logps_DR)
        tokens_D = tensor_on(logps_DR.device, [len(self.branches(index).replies[0]) for index in indices])
        nll_D = nll_anchor(logps_DR[:, 0], tokens_D)
        return ItemLosses(found.loss_D + self.nll_weight * nll_D, {**found.numbers, "nll": nll_D.detach()})
