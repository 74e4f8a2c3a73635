"""SPACE (arXiv 2512.07175): each reply is told from the opponent's by itself, and not by a gap. Pure functions.

Shapes as in objectives.py: D duels, K opponent replies per prompt. What the formula implies, and the tests that prove it: docs/theory.md.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from sparring.policy.objectives import DuelLogps, SpinLoss, accuracy, mean_over_replies


def space_loss(player: DuelLogps, opponent: DuelLogps, mask_DK: Tensor, *, mu: float) -> SpinLoss:
    """-log sigma_mu(r(y)) - mu * mean over the replies of log sigma_{1/mu}(-r(y')), sigma_m(z) = 1 / (1 + m e^-z).

    This is noise-contrastive estimation with the opponent as the noise: of one human reply and mu of the opponent's, a reply u is human
    with log-odds r(u) - log mu, r(u) = log p_player(u|x) - log p_opponent(u|x), and the loss is the cross-entropy of that guess.

    player, opponent: log-probs [D] and [D, K] under both models; the opponent's are constants. A reply that equals the human one has the
        human one's log-prob in its column: its term has a gradient of its own, unlike in a loss of gaps.
    mask_DK: bool, true where a reply exists; the other entries may hold anything, NaN included.
    mu: the noise ratio. With mu = K every reply weighs as much as the human one.

    At the start, where r = 0, the loss is log(1 + mu) + mu log(1 + 1/mu), and its gradient -mu / (1 + mu) in r(y) and mu / (1 + mu),
    shared by the replies, in the r(y'). A duel without a reply has no mean: its loss is NaN.
    """
    reward_real_D = player.real_D - opponent.real_D.detach()
    reward_DK = (player.generated_DK - opponent.generated_DK.detach()).masked_fill(~mask_DK, 0.0)
    taken_for_human_DK = -F.logsigmoid(math.log(mu) - reward_DK)
    margin_DK = (reward_real_D[:, None] - reward_DK).masked_fill(~mask_DK, 0.0).detach()
    return SpinLoss(
        loss_D=-F.logsigmoid(reward_real_D - math.log(mu)) + mu * mean_over_replies(taken_for_human_DK, mask_DK),
        margin_DK=margin_DK,
        margin_D=mean_over_replies(margin_DK, mask_DK),
        accuracy_D=accuracy(margin_DK, mask_DK),
        reward_real_D=reward_real_D.detach(),
        reward_generated_DK=reward_DK.detach(),
    )
