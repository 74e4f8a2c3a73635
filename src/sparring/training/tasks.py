"""The losses that a training step minimises: an objective over duels or contests, or plain likelihood. One training loop serves all.

The formulas are in objectives/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sparring.data.records import Contest, Duel, Example, TokenIds, Triplet
from sparring.objectives.likelihood import nll_anchor
from sparring.objectives.shared import Compared, Comparison, DuelLogps, ItemLosses, Logps, Objective
from sparring.objectives.spin import LossName, Spin
from sparring.policy.batches import Branches, branches_of
from sparring.policy.compute import tensor_on


class Task:
    """What a training minimises over its items, which are identified by their index.

    unit: the items' name in messages; preferred: that of the replies that should become likelier; names: what identifies each item there.
    """

    unit: str
    preferred: str
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def branches(self, index: int) -> Branches:
        """The item's prompt and the replies to score, R at most."""
        raise NotImplementedError

    def loss_scale(self, batch: Sequence[int]) -> float:
        """The loss of a step is the sum of its items' losses times this factor; by default their mean."""
        return 1 / len(batch)

    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses:
        """Losses [D] of the items from the player's log-probs [D, R] of their branches, in nats."""
        raise NotImplementedError


def iteration_task(duels: Sequence[Duel | Contest], objective: Objective, opponent: Logps, start: Logps) -> Task:
    """The task of an iteration over its duels, or over contests if its target is verified or majority.

    opponent, start: duel id -> log-probs of its branches under the opponent and under the start of the game; empty if the objective does
    not use them.
    """
    contests = [duel for duel in duels if isinstance(duel, Contest)]
    if not isinstance(objective, Comparison):
        assert contests, "an objective without comparison is refused for human targets"
        return WinnersTask(contests)
    logps = objective.against(opponent, start)
    if contests:
        return ContestTask(contests, logps, objective)
    return DuelTask([duel for duel in duels if isinstance(duel, Duel)], objective, logps)


class DuelTask(Task):
    """An objective over the duels of an iteration, against opponent log-probs computed once. `nll_weight` adds the human reply's negative
    log-likelihood per token."""

    unit, preferred = "duels", "human replies"

    def __init__(self, duels: Sequence[Duel], objective: Comparison, opponent_logps: Logps) -> None:
        self.names = [duel.duel_id for duel in duels]
        self.duels, self.objective, self.opponent_logps = duels, objective, opponent_logps

    def branches(self, index: int) -> Branches:
        """For a triplet, each distinct reply is one branch, even if both models gave it."""
        duel = self.duels[index]
        if not isinstance(duel, Triplet):
            return branches_of(duel)
        of_start = duel.start_ids if self.objective.computes_start_replies else ()
        return Branches(duel.prompt_ids, tuple(dict.fromkeys((duel.real_ids, *duel.generated_ids, *of_start))))

    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses:
        """Replies that equal the human one are counted, or get a column of their own, as the objective requires."""
        duels = [self.duels[index] for index in indices]
        compared = self._counted(duels, logps_DR) if self.objective.counts_identical else self._in_columns(indices, logps_DR)
        found, weight = self.objective.losses(compared), self.objective.nll_weight
        if not weight:
            return found
        nll_D = nll_anchor(logps_DR[:, 0], tensor_on(logps_DR.device, [len(duel.real_ids) for duel in duels]))
        return ItemLosses(found.loss_D + weight * nll_D, {**found.numbers, "nll": nll_D.detach()})

    def _counted(self, duels: Sequence[Duel], logps_DR: Tensor) -> Compared:
        """Replies that equal the human one are counted; the others are the columns."""
        opponent_DR, mask_DR = _stored(self.opponent_logps, duels, logps_DR)
        identical_D = tensor_on(logps_DR.device, [sum(ids == duel.real_ids for ids in duel.generated_ids) for duel in duels])
        player, opponent = (DuelLogps(logps[:, 0], logps[:, 1:]) for logps in (logps_DR, opponent_DR))
        return Compared(player, opponent, mask_DR[:, 1:], identical_D)

    def _in_columns(self, indices: Sequence[int], logps_DR: Tensor) -> Compared:
        """Every reply has a column; equal replies share a branch and are computed once."""
        duels, trees, device = [self.duels[index] for index in indices], [self.branches(index) for index in indices], logps_DR.device
        columns_DK, mask_DK = branch_columns(trees, [duel.generated_ids for duel in duels], device)

        def of(logps_DR: Tensor) -> DuelLogps:
            return DuelLogps(logps_DR[:, 0], logps_DR.gather(1, columns_DK))

        opponent = of(_stored(self.opponent_logps, duels, logps_DR)[0]) if self.objective.uses_opponent_logps else None
        if not self.objective.computes_start_replies:
            return Compared(of(logps_DR), opponent, mask_DK)
        triplets = [duel for duel in duels if isinstance(duel, Triplet)]
        assert len(triplets) == len(duels), "an objective with replies of the start needs triplets"
        start_DK, _ = branch_columns(trees, [triplet.start_ids for triplet in triplets], device)
        return Compared(of(logps_DR), opponent, mask_DK, start_DK=logps_DR.gather(1, start_DK))


class SpinTask(DuelTask):
    """SPIN without an NLL term; also DPO, whose rejected reply takes the place of the opponent's."""

    def __init__(self, duels: Sequence[Duel], opponent_logps: Logps, beta: float, loss: LossName) -> None:
        super().__init__(duels, Spin(loss=loss, beta=beta), opponent_logps)


class _OverContests(Task):
    """Base of the tasks over contests."""

    unit, preferred = "prompts", "winners"

    def __init__(self, contests: Sequence[Contest]) -> None:
        self.names = [contest.duel_id for contest in contests]
        self.contests = contests

    def branches(self, index: int) -> Branches:
        return branches_of(self.contests[index])


class WinnersTask(_OverContests):
    """Negative log-likelihood of the winners, mean over the winners' tokens of a step, as SFT trainers take it over replies."""

    def loss_scale(self, batch: Sequence[int]) -> float:
        """One over the number of winners' tokens in a step."""
        return 1 / sum(len(reply) for index in batch for reply in self.contests[index].winners)

    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses:
        """Losses [D]: each contest's weight times the negative log-likelihood of its winners."""
        contests = [self.contests[index] for index in indices]
        logp_D, won_D = _over_winners(contests, logps_DR)
        return ItemLosses(-_weights(contests, logps_DR) * logp_D, {"real_logp": (logp_D / won_D).detach()})


class ContestTask(_OverContests):
    """A loss on margins, mean over the pairs of a contest, with stored opponent log-probs; with `nll_weight` also the winners' mean
    negative log-likelihood per token (the anchor of Iterative RPO, arXiv 2404.19733). Every branch is computed once, even if it is in
    several pairs."""

    def __init__(self, contests: Sequence[Contest], opponent_logps: Logps, objective: Comparison) -> None:
        super().__init__(contests)
        self.opponent_logps, self.objective = opponent_logps, objective

    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses:
        """Losses [D]: each contest's weight times its mean over pairs, plus the NLL term."""
        contests = [self.contests[index] for index in indices]
        opponent_DR, _ = _stored(self.opponent_logps, contests, logps_DR)
        pairs = _Pairs.of(contests, logps_DR.device)
        player = pairs.logps(logps_DR)
        found = self.objective.losses(Compared(player, pairs.logps(opponent_DR), torch.ones_like(player.generated_DK, dtype=torch.bool)))
        logp_D, won_D = _over_winners(contests, logps_DR)
        real_logp_D = (logp_D / won_D).detach()
        # a contest without pairs counts as a tie
        without_pairs: dict[str, Tensor | float] = {"accuracy": 0.5, "generated_logp": real_logp_D}
        numbers = {name: pairs.mean(value, without_pairs.get(name, 0.0)) for name, value in found.numbers.items()}
        numbers["real_logp"] = real_logp_D
        loss_D = pairs.mean(found.loss_D, without_pairs=0.0)
        if weight := self.objective.nll_weight:
            lengths = [[len(reply) for reply in branches_of(contest).replies] for contest in contests]
            lengths_DR, _ = padded(lengths, logps_DR.shape[1], logps_DR.device, logps_DR.dtype)
            nll_D = _over_winners(contests, nll_anchor(logps_DR, lengths_DR.clamp(min=1.0)))[0] / won_D
            loss_D, numbers["nll"] = loss_D + weight * nll_D, nll_D.detach()
        return ItemLosses(_weights(contests, logps_DR) * loss_D, numbers)


def _over_winners(contests: Sequence[Contest], values_DR: Tensor) -> tuple[Tensor, Tensor]:
    """Sums [D] of the columns of each contest's winners, and how many winners it has [D]."""
    won_D = tensor_on(values_DR.device, [len(contest.winners) for contest in contests])
    is_winner_DR = torch.arange(values_DR.shape[1], device=values_DR.device) < won_D[:, None]
    return values_DR.masked_fill(~is_winner_DR, 0.0).sum(1), won_D


def _weights(contests: Sequence[Contest], like: Tensor) -> Tensor:
    return tensor_on(like.device, [contest.weight for contest in contests], dtype=like.dtype)


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


class SftTask(Task):
    """Negative log-likelihood of the human replies, mean over the reply tokens of a step, as SFT trainers do."""

    unit, preferred = "rows", "human replies"

    def __init__(self, examples: Sequence[Example]) -> None:
        self.names = [example.row_id for example in examples]
        self.examples = examples

    def branches(self, index: int) -> Branches:
        return Branches(self.examples[index].prompt_ids, (self.examples[index].reply_ids,))

    def loss_scale(self, batch: Sequence[int]) -> float:
        """One over the number of reply tokens in a step."""
        return 1 / sum(len(self.examples[index].reply_ids) for index in batch)

    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses:
        return ItemLosses(-logps_DR[:, 0], {"real_logp": logps_DR[:, 0].detach()})


def padded(rows: Sequence[Sequence[float]], columns: int, device: torch.device, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """The rows as a tensor [D, R] with so many `columns`, padded with 0, and the mask of its entries."""
    values_DR = tensor_on(device, [[*row, *[0] * (columns - len(row))] for row in rows], dtype=dtype)
    return values_DR, tensor_on(device, [[column < len(row) for column in range(columns)] for row in rows])


def _stored(logps: Logps, duels: Sequence[Duel | Contest], like_DR: Tensor) -> tuple[Tensor, Tensor]:
    """Stored log-probs [D, R] of the duels' branches, with the shape and format of `like_DR`, and the mask of those that exist."""
    return padded([logps[duel.duel_id] for duel in duels], like_DR.shape[1], like_DR.device, like_DR.dtype)


def branch_columns(trees: Sequence[Branches], replies: Sequence[Sequence[TokenIds]], device: torch.device) -> tuple[Tensor, Tensor]:
    """For the k-th of each tree's `replies` the column [D, K] of its branch, and whether there is a k-th; equal replies share a column."""
    columns = [[tree.replies.index(ids) for ids in own] for tree, own in zip(trees, replies, strict=True)]
    return padded(columns, max(map(len, replies)), device)
