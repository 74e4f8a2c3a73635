"""The losses that a training step minimises: an objective over duels or contests, or plain likelihood. One training loop serves all.

The formulas are in objectives/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from sparring.data.records import Contest, Duel, Example, TokenIds, Triplet
from sparring.objectives.likelihood import nll_anchor
from sparring.objectives.shared import Compared, Comparison, DuelLogps, ItemLosses, Logps, Objective
from sparring.objectives.spin import LossName, Spin
from sparring.policy.batches import Branches, branches_of
from sparring.policy.compute import tensor_on


def contest_task(contests: Sequence[Contest], objective: Objective, opponent: Logps, start: Logps) -> Task:
    """The task of an iteration with a verified or majority target; opponent, start: as in `duel_task`."""
    if not isinstance(objective, Comparison):
        return WinnersTask(contests)
    return ContestTask(contests, objective.against(opponent, start), objective)


class _OverContests:
    """Base of the tasks over contests."""

    unit, preferred = "prompts", "winners"

    def __init__(self, contests: Sequence[Contest]) -> None:
        self.contests = contests

    def __len__(self) -> int:
        return len(self.contests)

    def name(self, index: int) -> str:
        return self.contests[index].duel_id

    def branches(self, index: int) -> Branches:
        return branches_of(self.contests[index])

    def _over_winners(self, indices: Sequence[int], values_DR: Tensor) -> Tensor:
        """Sum [D] of the columns of each contest's winners, weighed by `values_DR`."""
        won = tensor_on(values_DR.device, [len(self.contests[index].winners) for index in indices])
        is_winner_DR = torch.arange(values_DR.shape[1], device=values_DR.device) < won[:, None]
        return values_DR.masked_fill(~is_winner_DR, 0.0).sum(1)


class WinnersTask(_OverContests):
    """Negative log-likelihood of the winners, mean over the winners' tokens of a step, as SFT trainers take it over replies."""

    def loss_scale(self, batch: Sequence[int]) -> float:
        """One over the number of winners' tokens in a step."""
        return 1 / sum(len(reply) for index in batch for reply in self.contests[index].winners)

    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses:
        """Losses [D]: each contest's weight times the negative log-likelihood of its winners."""
        contests = [self.contests[index] for index in indices]
        logp_D = self._over_winners(indices, logps_DR)
        weight_D, won_D = (tensor_on(logps_DR.device, values, dtype=logps_DR.dtype) for values in _weights_and_winners(contests))
        return ItemLosses(-weight_D * logp_D, {"real_logp": (logp_D / won_D).detach()})


class ContestTask(_OverContests):
    """A loss on margins, mean over the pairs of a contest, with stored opponent log-probs; with `nll_weight` also the winners' mean
    negative log-likelihood per token (the anchor of Iterative RPO, arXiv 2404.19733). Every branch is computed once, even if it is in
    several pairs."""

    def __init__(self, contests: Sequence[Contest], opponent_logps: Logps, objective: Comparison) -> None:
        super().__init__(contests)
        self.opponent_logps, self.objective = opponent_logps, objective

    def loss_scale(self, batch: Sequence[int]) -> float:
        """The loss of a step is the mean over its contests."""
        return 1 / len(batch)

    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses:
        """Losses [D]: each contest's weight times its mean over pairs, plus the NLL term."""
        contests = [self.contests[index] for index in indices]
        opponent_DR, _ = padded([self.opponent_logps[contest.duel_id] for contest in contests], logps_DR)
        pairs = _Pairs.of(contests, logps_DR.device)
        player = pairs.logps(logps_DR)
        exists = torch.ones_like(player.generated_DK, dtype=torch.bool)
        found = self.objective.losses(Compared(player, pairs.logps(opponent_DR), exists))
        won_D = tensor_on(logps_DR.device, [len(contest.winners) for contest in contests], dtype=logps_DR.dtype)
        numbers = _numbers(found, pairs, (self._over_winners(indices, logps_DR) / won_D).detach())
        loss_D = pairs.mean(found.loss_D, without_pairs=0.0)
        if weight := self.objective.nll_weight:
            lengths_DR, _ = padded([[1.0 * len(reply) for reply in self.branches(index).replies] for index in indices], logps_DR)
            nll_D = self._over_winners(indices, nll_anchor(logps_DR, lengths_DR.clamp(min=1.0))) / won_D
            loss_D, numbers = loss_D + weight * nll_D, {**numbers, "nll": nll_D.detach()}
        weight_D = tensor_on(logps_DR.device, [contest.weight for contest in contests], dtype=logps_DR.dtype)
        return ItemLosses(weight_D * loss_D, numbers)


@dataclass(frozen=True)
class _Pairs:
    """The P pairs of some contests: the contest of each, and the columns of its two branches. `count_D`: pairs of every contest."""

    contest_P: Tensor
    winner_P: Tensor
    loser_P: Tensor
    count_D: Tensor

    @classmethod
    def of(cls, contests: Sequence[Contest], device: torch.device) -> _Pairs:
        rows = [(d, i, len(contest.winners) + j) for d, contest in enumerate(contests) for i, j in contest.pairs]
        index = partial(tensor_on, device, dtype=torch.long)
        contest_P, winner_P, loser_P = (index([row[place] for row in rows]) for place in range(3))
        return cls(contest_P, winner_P, loser_P, index([len(contest.pairs) for contest in contests]))

    def logps(self, logps_DR: Tensor) -> DuelLogps:
        """Every pair as a duel with one reply: [P] and [P, 1]."""
        return DuelLogps(logps_DR[self.contest_P, self.winner_P], logps_DR[self.contest_P, self.loser_P][:, None])

    def mean(self, value_P: Tensor, without_pairs: Tensor | float) -> Tensor:
        """Mean [D] over the pairs of each contest; `without_pairs` for a contest that has none."""
        sum_D = value_P.new_zeros(len(self.count_D)).index_add(0, self.contest_P, value_P)
        return torch.where(self.count_D > 0, sum_D / self.count_D.clamp(min=1), without_pairs)


def _numbers(found: ItemLosses, pairs: _Pairs, winners_D: Tensor) -> dict[str, Tensor]:
    """The metrics [D] of each contest: means over its pairs, and the winners' mean log-prob. A contest without pairs counts as a tie."""
    without_pairs: dict[str, Tensor | float] = {"accuracy": 0.5, "generated_logp": winners_D}
    means = {name: pairs.mean(value, without_pairs.get(name, 0.0)) for name, value in found.numbers.items()}
    return {**means, "real_logp": winners_D}


def _weights_and_winners(contests: Sequence[Contest]) -> tuple[list[float], list[float]]:
    return [contest.weight for contest in contests], [float(len(contest.winners)) for contest in contests]


class Task(Protocol):
    """Items are identified by their index; `unit` is their name in messages, `preferred` names the replies that should become likelier."""

    unit: str
    preferred: str

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What identifies the item in messages."""
        ...

    def branches(self, index: int) -> Branches:
        """The item's prompt and the replies to score, R at most."""
        ...

    def loss_scale(self, batch: Sequence[int]) -> float:
        """The loss of a step is the sum of its items' losses times this factor."""
        ...

    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses:
        """Losses [D] of the items from the player's log-probs [D, R] of their branches, in nats."""
        ...


def duel_task(duels: Sequence[Duel], objective: Comparison, opponent: Logps, start: Logps) -> Task:
    """The task of an iteration whose target is human.

    opponent, start: duel id -> log-probs of its branches under the opponent and under the start of the game; empty if the
    objective does not use them.
    """
    task = DuelTask(duels, objective, objective.against(opponent, start))
    return Anchored(task, objective.nll_weight) if objective.nll_weight else task


class DuelTask:
    """A `Task`: an objective over the duels of an iteration, against opponent log-probs computed once."""

    unit, preferred = "duels", "human replies"

    def __init__(self, duels: Sequence[Duel], objective: Comparison, opponent_logps: Logps) -> None:
        self.duels, self.objective, self.opponent_logps = duels, objective, opponent_logps

    def __len__(self) -> int:
        return len(self.duels)

    def name(self, index: int) -> str:
        return self.duels[index].duel_id

    def branches(self, index: int) -> Branches:
        """For a triplet, each distinct reply is one branch, even if both models gave it."""
        duel = self.duels[index]
        if not isinstance(duel, Triplet):
            return branches_of(duel)
        of_start = duel.start_ids if self.objective.computes_start_replies else ()
        return Branches(duel.prompt_ids, tuple(dict.fromkeys((duel.real_ids, *duel.generated_ids, *of_start))))

    def loss_scale(self, batch: Sequence[int]) -> float:
        """The loss of a step is the mean over its duels."""
        return 1 / len(batch)

    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses:
        """The objective's losses [D]. Replies that equal the human one are counted, or get a column of their own, as it requires."""
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
        assert len(triplets) == len(indices), "an objective with replies of the start needs triplets"
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
    """A task whose first branch is the human reply; adds `weight` times that reply's negative log-likelihood per token to its loss."""

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
    """A `Task`: negative log-likelihood of the human replies, mean over the reply tokens of a step, as SFT trainers do."""

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
