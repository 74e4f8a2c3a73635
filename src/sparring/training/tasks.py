"""What a training step minimises: an objective over duels, or the plain likelihood of the human replies. One loop serves both.

The formulas are in objectives/, the tasks of verified and majority targets in contests.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from sparring.data.records import Duel, Example, TokenIds, Triplet
from sparring.objectives.likelihood import nll_anchor
from sparring.objectives.shared import Compared, Comparison, DuelLogps, ItemLosses, Logps
from sparring.objectives.spin import LossName, Spin
from sparring.policy.batches import Branches, branches_of
from sparring.policy.transfer import tensor_on


class Task(Protocol):
    """Items are identified by their index; `unit` is their name in messages, `preferred` names the replies that should become likelier.
    `losses` gets the scorer's log-probs [D, R] of their `branches`."""

    unit: str
    preferred: str

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def branches(self, index: int) -> Branches: ...
    def loss_scale(self, batch: Sequence[int]) -> float: ...
    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses: ...


def duel_task(duels: Sequence[Duel], objective: Comparison, opponent: Logps, start: Logps) -> Task:
    """The task of an iteration whose target is human.

    opponent, start: duel id -> log-probs of its branches under the opponent and under the start of the game; empty if the
    objective does not use them.
    """
    task = DuelTask(duels, objective, objective.against(opponent, start))
    return Anchored(task, objective.nll_weight) if objective.nll_weight else task


class DuelTask:
    """An objective over the duels of an iteration, against opponent log-probs computed once."""

    unit, preferred = "duels", "human replies"

    def __init__(self, duels: Sequence[Duel], objective: Comparison, opponent_logps: Logps) -> None:
        self.duels, self.objective, self.opponent_logps = duels, objective, opponent_logps

    def __len__(self) -> int:
        return len(self.duels)

    def name(self, index: int) -> str:
        return self.duels[index].duel_id

    def branches(self, index: int) -> Branches:
        """For a triplet, each distinct reply is one branch, also if both models gave it."""
        duel = self.duels[index]
        if not isinstance(duel, Triplet):
            return branches_of(duel)
        of_start = duel.start_ids if self.objective.computes_start_replies else ()
        return Branches(duel.prompt_ids, tuple(dict.fromkeys((duel.real_ids, *duel.generated_ids, *of_start))))

    def loss_scale(self, batch: Sequence[int]) -> float:
        """The loss of a step is the mean over its duels."""
        return 1 / len(batch)

    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses:
        """The objective's losses [D]; replies that equal the human one are counted or computed, as it requires."""
        compared = self._counted if self.objective.counts_identical else self._in_columns
        return self.objective.losses(compared(indices, logps_DR))

    def _counted(self, indices: Sequence[int], logps_DR: Tensor) -> Compared:
        """Replies that equal the human one are counted; the others are the columns."""
        opponent_DR, mask_DR = self._opponent(indices, logps_DR)
        duels = [self.duels[index] for index in indices]
        identical_D = tensor_on(logps_DR.device, [sum(ids == duel.real_ids for ids in duel.generated_ids) for duel in duels])
        player, opponent = (DuelLogps(logps[:, 0], logps[:, 1:]) for logps in (logps_DR, opponent_DR))
        return Compared(player, opponent, mask_DR[:, 1:], identical_D)

    def _in_columns(self, indices: Sequence[int], logps_DR: Tensor) -> Compared:
        """Every reply has a column; equal replies share a branch and are computed once."""
        trees, device = [self.branches(index) for index in indices], logps_DR.device
        columns_DK, mask_DK = branch_columns(trees, [self.duels[index].generated_ids for index in indices], device)

        def of(logps_DR: Tensor) -> DuelLogps:
            return DuelLogps(logps_DR[:, 0], logps_DR.gather(1, columns_DK))

        opponent = of(self._opponent(indices, logps_DR)[0]) if self.objective.uses_opponent_logps else None
        if not self.objective.computes_start_replies:
            return Compared(of(logps_DR), opponent, mask_DK)
        triplets = [duel for index in indices if isinstance(duel := self.duels[index], Triplet)]
        assert len(triplets) == len(indices), "such an objective is given triplets"
        start_DK, _ = branch_columns(trees, [triplet.start_ids for triplet in triplets], device)
        return Compared(of(logps_DR), opponent, mask_DK, start_DK=logps_DR.gather(1, start_DK))

    def _opponent(self, indices: Sequence[int], logps_DR: Tensor) -> tuple[Tensor, Tensor]:
        return padded([self.opponent_logps[self.name(index)] for index in indices], logps_DR)


class SpinTask(DuelTask):
    """SPIN without an NLL term; also DPO, whose rejected reply takes the place of the opponent's."""

    def __init__(self, duels: Sequence[Duel], opponent_logps: Logps, beta: float, loss: LossName) -> None:
        super().__init__(duels, Spin(loss=loss, beta=beta), opponent_logps)


def padded(stored: Sequence[Sequence[float]], like_DR: Tensor) -> tuple[Tensor, Tensor]:
    """Stored log-probs of each duel's branches as a tensor [D, R] like `like_DR`, padded with 0, and the mask of its entries."""
    columns, on_device = like_DR.shape[1], partial(tensor_on, like_DR.device)
    values_DR = on_device([[*row, *[0.0] * (columns - len(row))] for row in stored], dtype=like_DR.dtype)
    return values_DR, on_device([[column < len(row) for column in range(columns)] for row in stored])


def branch_columns(trees: Sequence[Branches], replies: Sequence[Sequence[TokenIds]], device: torch.device) -> tuple[Tensor, Tensor]:
    """For the k-th of each tree's `replies` the column [D, K] of its branch, and whether there is a k-th; equal replies share a column."""
    most = max(map(len, replies))
    columns = [[tree.replies.index(ids) for ids in own] for tree, own in zip(trees, replies, strict=True)]
    index_DK = tensor_on(device, [[*row, *[0] * (most - len(row))] for row in columns])
    return index_DK, tensor_on(device, [[k < len(row) for k in range(most)] for row in columns])


class Anchored:
    """Any task over human replies in its first branch, with weight times their negative log-likelihood per token added to its loss."""

    def __init__(self, task: Task, weight: float) -> None:
        self.task, self.nll_weight = task, weight
        self.unit, self.preferred = task.unit, task.preferred
        self.name, self.branches, self.loss_scale = task.name, task.branches, task.loss_scale

    def __len__(self) -> int:
        return len(self.task)

    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses:
        """The losses [D] of the task plus the weighted NLL per token of the human reply."""
        found = self.task.losses(indices, logps_DR)
        tokens_D = tensor_on(logps_DR.device, [len(self.branches(index).replies[0]) for index in indices])
        nll_D = nll_anchor(logps_DR[:, 0], tokens_D)
        return ItemLosses(found.loss_D + self.nll_weight * nll_D, {**found.numbers, "nll": nll_D.detach()})


class SftTask:
    """Negative log-likelihood of the human replies, mean over the reply tokens of a step, as SFT trainers do."""

    unit, preferred = "rows", "human replies"

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def name(self, index: int) -> str:
        return self.examples[index].row_id

    def branches(self, index: int) -> Branches:
        return Branches(self.examples[index].prompt_ids, (self.examples[index].reply_ids,))

    def loss_scale(self, batch: Sequence[int]) -> float:
        """One over the number of reply tokens in a step."""
        return 1 / sum(len(self.examples[index].reply_ids) for index in batch)

    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses:
        return ItemLosses(-logps_DR[:, 0], {"real_logp": logps_DR[:, 0].detach()})
