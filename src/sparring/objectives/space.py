"""SPACE (arXiv 2512.07175): each reply is classified by itself as human or the opponent's, without a margin.

Shapes as in shared.py. Implemented from a partial reading: docs/theory.md says what the formula implies, and which tests prove it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from sparring.objectives.shared import (
    READ_IN_PART,
    Compared,
    Comparison,
    DuelLogps,
    ItemLosses,
    SpinLoss,
    accuracy,
    log_sigmoid,
    mean_over_replies,
)

if TYPE_CHECKING:
    from torch import Tensor


def space_loss(player: DuelLogps, opponent: DuelLogps, mask_DK: Tensor, *, mu: float) -> SpinLoss:
    """-log sigma_mu(r(y)) - mu * mean over the replies of log sigma_{1/mu}(-r(y')), sigma_m(z) = 1 / (1 + m e^-z).

    This is noise-contrastive estimation with the opponent as the noise: of one human reply and mu of the opponent's, a reply u is human
    with log-odds r(u) - log mu, r(u) = log p_player(u|x) - log p_opponent(u|x), and the loss is the cross-entropy of that prediction.

    player, opponent: log-probs [D] and [D, K] under both models; the opponent's are constants. A reply that equals the human one has the
        human one's log-prob in its column: its term has a separate gradient, unlike in a loss on margins.
    mask_DK: bool, true where a reply exists; the other entries may hold anything, NaN included.
    mu: the noise ratio. With mu = K every reply has the weight of the human one.

    At the start, where r = 0, the loss is log(1 + mu) + mu log(1 + 1/mu), and its gradient -mu / (1 + mu) in r(y) and mu / (1 + mu),
    shared by the replies, in the r(y'). A duel without a reply has no mean: its loss is NaN.
    """
    reward_real_D = player.real_D - opponent.real_D.detach()
    reward_DK = (player.generated_DK - opponent.generated_DK.detach()).masked_fill(~mask_DK, 0.0)
    taken_for_human_DK = -log_sigmoid(math.log(mu) - reward_DK)
    margin_DK = (reward_real_D[:, None] - reward_DK).masked_fill(~mask_DK, 0.0).detach()
    return SpinLoss(
        loss_D=-log_sigmoid(reward_real_D - math.log(mu)) + mu * mean_over_replies(taken_for_human_DK, mask_DK),
        margin_DK=margin_DK,
        margin_D=mean_over_replies(margin_DK, mask_DK),
        accuracy_D=accuracy(margin_DK, mask_DK),
        reward_real_D=reward_real_D.detach(),
        reward_generated_DK=reward_DK.detach(),
    )


@dataclass(frozen=True, kw_only=True)
class Space(Comparison):
    """SPACE; `mu` is its noise ratio, the number of replies per prompt if None."""

    names = ("space",)
    about = f"classifies each reply by itself as human or the opponent's (SPACE, arXiv 2512.07175; {READ_IN_PART})"
    learns_from_identical = True

    mu: float | None = None

    def in_iteration(self, iteration: int, replies_per_prompt: int) -> Self:
        return replace(self, mu=self.mu or float(replies_per_prompt))

    def losses(self, given: Compared) -> ItemLosses:
        assert given.opponent is not None and self.mu is not None
        return space_loss(given.player, given.opponent, given.mask_DK, mu=self.mu).of(given)
