"""Exact expectations over who wins and who loses: every tuple of replies and every verdict on it is enumerated.

Losses are those of the library (`spin_loss`, `nll_anchor`), and so are the targets (`verified`, `majority`); minimisers are found
numerically from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import product

import torch
from test_tabular import gradient, newton
from torch import Tensor

from sparring.objectives.likelihood import nll_anchor
from sparring.objectives.shared import DuelLogps
from sparring.objectives.spin import LossName, spin_loss
from sparring.targets import Candidate, Candidates, Rules, Target, majority, verified

PASSES = torch.tensor([True, False, True, False, False])  # of the five replies of P_START: pass rate 0.3
CHECKER = PASSES.double()  # a checker is the probability [n] that each reply passes; this one is never wrong

# What k replies come to: (probability, winners, losers), for each way in which they can be judged.
Selector = Callable[[Sequence[int]], Iterable[tuple[float, list[int], list[int]]]]


# --- exact expectations


def draws(p: Tensor, k: int) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Every k-tuple of replies with its probability."""
    share = p.tolist()
    for replies in product(range(len(p)), repeat=k):
        yield math.prod(share[y] for y in replies), replies


def checked(passes: Tensor) -> Selector:
    """Target `verified`, the library's. `passes` is the probability [n] that a reply passes, 0 or 1 without errors."""

    def select(replies: Sequence[int]) -> Iterator[tuple[float, list[int], list[int]]]:
        for verdicts in product((True, False), repeat=len(replies)):
            probability = math.prod(passes[y].item() if v else 1 - passes[y].item() for y, v in zip(replies, verdicts, strict=True))
            if probability:
                won, lost = places(verified, tuple(Candidate((n,), f"{n}", passed=v) for n, v in enumerate(verdicts)))
                yield probability, [replies[n] for n in won], [replies[n] for n in lost]

    return select


def voted(replies: Sequence[int]) -> Iterator[tuple[float, list[int], list[int]]]:
    """Target `majority`, the library's, each reply an answer of its own; nothing where there is a tie, which is no preference."""
    won, lost = places(majority, tuple(Candidate((n,), f"{n}", answer=f"{y}") for n, y in enumerate(replies)))
    if won:
        yield 1.0, [replies[n] for n in won], [replies[n] for n in lost]


@cache
def places(target: Target, replies: tuple[Candidate, ...]) -> tuple[list[int], list[int]]:
    """The places of the winners and of the losers. Each reply is a text of its own, its place, and counts as often as it is drawn; what
    keeping distinct ones does is a test by itself (test_checkers.py)."""
    found = target(Candidates(replies), Rules(max_winners=len(replies), max_losers=len(replies), min_votes=0.0))
    won, lost = ([one.token_ids[0] for one in side] for side in (found.winners, found.losers))
    return won, lost


def pair_weights(p: Tensor, k: int, select: Selector) -> Tensor:
    """How often each (winner, loser) [n, n] is a pair among k replies of p, the mean over the pairs of a prompt."""
    weight_WL = torch.zeros(len(p), len(p), dtype=torch.float64)
    for probability, replies in draws(p, k):
        for share, winners, losers in select(replies):
            for winner, loser in product(winners, losers):
                weight_WL[winner, loser] += probability * share / (len(winners) * len(losers))
    return weight_WL


def outcomes(p: Tensor, k: int, select: Selector) -> Iterator[tuple[float, Tensor]]:
    """Every player that one round of likelihood can end in: the frequencies of its winners, or p where nothing wins."""
    for probability, replies in draws(p, k):
        for share, winners, _ in select(replies):
            counts = torch.bincount(torch.tensor(winners, dtype=torch.long), minlength=len(p)).double()
            yield probability * share, counts / counts.sum() if winners else p


def winner_weights(p: Tensor, k: int, select: Selector, of: Callable[[list[int]], Iterable[int]] = list) -> Tensor:
    """Expected number [n] of times that each reply is among the winners of k."""
    weight = torch.zeros_like(p)
    for probability, replies in draws(p, k):
        for share, winners, _ in select(replies):
            for winner in of(winners):
                weight[winner] += probability * share
    return weight


def pairs_loss(logp: Tensor, opponent_logp: Tensor, weight_WL: Tensor, beta: float, loss: LossName = "logistic") -> Tensor:
    """Exact expectation of the library's loss over pairs (winner, loser) of these weights: a scalar."""
    winner_D, loser_D = weight_WL.nonzero(as_tuple=True)
    player, opponent = (DuelLogps(of[winner_D], of[loser_D, None]) for of in (logp, opponent_logp))
    mask_DK = torch.ones(len(winner_D), 1, dtype=torch.bool)
    return weight_WL[winner_D, loser_D] @ spin_loss(player, opponent, mask_DK, beta=beta, loss=loss).loss_D


def best_of_pairs(p: Tensor, weight_WL: Tensor, beta: float, loss: LossName = "logistic") -> Tensor:
    """The exact minimiser, found numerically from p."""
    return newton(lambda z: pairs_loss(z.log_softmax(0), p.log(), weight_WL, beta, loss), p.log()).softmax(0)


def likelihood_loss(logp: Tensor, weight: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Exact expectation of the library's anchor over winners of these weights; without lengths, of one token each."""
    reply_D = weight.nonzero()[:, 0]
    lengths_D = torch.ones_like(weight)[reply_D] if tokens is None else tokens[reply_D]
    return weight[reply_D] @ nll_anchor(logp[reply_D], lengths_D)


def most_likely(weight: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Its minimiser, found numerically: over the winners, as mass elsewhere only costs likelihood."""
    wins = weight > 0
    lengths = None if tokens is None else tokens[wins]
    found = torch.zeros_like(weight)
    found[wins] = newton(lambda z: likelihood_loss(z.log_softmax(0), weight[wins], lengths), torch.zeros_like(weight[wins])).softmax(0)
    return found


def given(p: Tensor, chosen: Tensor) -> Tensor:
    """p, given that the reply is one of the chosen."""
    return p * chosen / (p * chosen).sum()


def closed_form(p: Tensor, p_w: Tensor, p_l: Tensor, beta: float) -> Tensor:
    """p * (p_w / p_l) ** (1 / beta), normalised; 0 where p is."""
    raised = torch.where(p > 0, p * (p_w / p_l) ** (1 / beta), 0.0)
    return raised / raised.sum()


def descend(function: Callable[[Tensor], Tensor], start: Tensor, rate: float, steps: int) -> Iterator[Tensor]:
    """The logits before the first and after each step of plain gradient descent."""
    logits = start
    yield logits
    for _ in range(steps):
        logits = logits - rate * gradient(function, logits)
        yield logits


def entropy(p: Tensor) -> float:
    return -torch.special.xlogy(p, p).sum().item()
