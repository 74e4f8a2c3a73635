"""The objectives over contests, in which several replies to a prompt may win: losses on margins, and likelihood alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sparring.data.records import Contest
from sparring.objectives.likelihood import nll_anchor
from sparring.objectives.shared import Compared, Comparison, DuelLogps, ItemLosses, Logps, Objective
from sparring.policy.batches import Branches, branches_of
from sparring.policy.transfer import tensor_on
from sparring.training.tasks import Task, padded


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
        loss_D = pairs.mean(found.loss_D, of_none=0.0)
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

    def mean(self, value_P: Tensor, of_none: Tensor | float) -> Tensor:
        """Mean [D] over the pairs of each contest; `of_none` for a contest without pairs."""
        sum_D = value_P.new_zeros(len(self.count_D)).index_add(0, self.contest_P, value_P)
        return torch.where(self.count_D > 0, sum_D / self.count_D.clamp(min=1), of_none)


def _numbers(found: ItemLosses, pairs: _Pairs, winners_D: Tensor) -> dict[str, Tensor]:
    """The numbers of each contest for the log: means over its pairs, and the winners' mean log-prob. No pairs count as a tie."""
    of_none: dict[str, Tensor | float] = {"accuracy": 0.5, "generated_logp": winners_D}
    means = {name: pairs.mean(value, of_none.get(name, 0.0)) for name, value in found.numbers.items()}
    return {**means, "real_logp": winners_D}


def _weights_and_winners(contests: Sequence[Contest]) -> tuple[list[float], list[float]]:
    return [contest.weight for contest in contests], [float(len(contest.winners)) for contest in contests]
