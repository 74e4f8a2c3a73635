"""What a training step minimises: SPIN over duels, or the plain likelihood of the human replies. One loop serves both.

The successors of SPIN are in successors.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from sparring.data.records import Duel, Example
from sparring.policy.batches import Branches, branches_of
from sparring.policy.objectives import DuelLogps, LossName, SpinLoss, spin_loss
from sparring.policy.transfer import tensor_on

# duel id -> log-probs of its branches
Logps = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class ItemLosses:
    """Losses [D] of a micro-batch, with their gradient, and detached numbers [D] for the log."""

    loss_D: Tensor
    numbers: dict[str, Tensor]


class Task(Protocol):
    """Items are known by their index; `unit` is what to call them, `preferred` the replies that should become likelier. `losses` gets the
    scorer's log-probs [D, R] of their `branches`."""

    unit: str
    preferred: str

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def branches(self, index: int) -> Branches: ...
    def loss_scale(self, batch: Sequence[int]) -> float: ...
    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses: ...


class DuelTask:
    """What the objectives over the duels of an iteration have in common."""

    unit, preferred = "duels", "human replies"

    def __init__(self, duels: Sequence[Duel]) -> None:
        self.duels = duels

    def __len__(self) -> int:
        return len(self.duels)

    def name(self, index: int) -> str:
        return self.duels[index].duel_id

    def branches(self, index: int) -> Branches:
        return branches_of(self.duels[index])

    def loss_scale(self, batch: Sequence[int]) -> float:
        """The loss of a step is the mean over its duels."""
        return 1 / len(batch)


class SpinTask(DuelTask):
    """Equation 4.7 over the duels of an iteration, against opponent log-probs computed once."""

    def __init__(self, duels: Sequence[Duel], opponent_logps: Mapping[str, Sequence[float]], beta: float, loss: LossName) -> None:
        super().__init__(duels)
        self.opponent_logps, self.beta, self.loss = opponent_logps, beta, loss

    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses:
        duels = [self.duels[index] for index in indices]
        stored = [self.opponent_logps[duel.duel_id] for duel in duels]
        opponent_DR, mask_DR = padded(stored, logps_DR)
        identical_D = tensor_on(logps_DR.device, [sum(ids == duel.real_ids for ids in duel.generated_ids) for duel in duels])
        player, opponent = (DuelLogps(logps[:, 0], logps[:, 1:]) for logps in (logps_DR, opponent_DR))
        result = spin_loss(player, opponent, mask_DR[:, 1:], identical_D, beta=self.beta, loss=self.loss)
        return ItemLosses(result.loss_D, duel_numbers(result, player, mask_DR[:, 1:]))


def padded(stored: Sequence[Sequence[float]], like_DR: Tensor) -> tuple[Tensor, Tensor]:
    """Stored log-probs of each duel's branches as a tensor [D, R] beside `like_DR`, and where it holds one; 0 elsewhere."""
    columns, on_device = like_DR.shape[1], partial(tensor_on, like_DR.device)
    values_DR = on_device([[*row, *[0.0] * (columns - len(row))] for row in stored], dtype=like_DR.dtype)
    return values_DR, on_device([[column < len(row) for column in range(columns)] for row in stored])


def duel_numbers(result: SpinLoss, player: DuelLogps, mask_DK: Tensor) -> dict[str, Tensor]:
    """What the log tells of each duel. Means over the columns; without one all replies equal the human one, and it stands for them."""
    real_D, replies_D = player.real_D.detach(), mask_DK.sum(1)

    def mean(value_DK: Tensor, identical_D: Tensor) -> Tensor:
        return torch.where(replies_D > 0, value_DK.masked_fill(~mask_DK, 0.0).sum(1) / replies_D, identical_D)

    return {
        "margin": result.margin_D,
        "accuracy": result.accuracy_D,
        "reward_real": result.reward_real_D,
        "reward_generated": mean(result.reward_generated_DK, result.reward_real_D),
        "real_logp": real_D,
        "generated_logp": mean(player.generated_DK.detach(), real_D),
    }


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
        return 1 / sum(len(self.examples[index].reply_ids) for index in batch)

    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses:
        return ItemLosses(-logps_DR[:, 0], {"real_logp": logps_DR[:, 0].detach()})
