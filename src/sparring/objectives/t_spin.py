"""T-SPIN (arXiv 2601.08198): the human reply is preferred to the opponent's, and the opponent's to that of the start.

Shapes as in shared.py. What the formula implies, and the tests that prove it: docs/theory.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Self

from sparring.objectives.shared import Compared, Comparison, DuelLogps, ItemLosses, accuracy, mean_over_replies
from sparring.objectives.spin import LOSSES, LossName

if TYPE_CHECKING:
    from torch import Tensor


class TripletLoss(NamedTuple):
    """The result of `triplet_loss`. Only `loss_D` carries a gradient; the rest is for the log."""

    loss_D: Tensor  # [D]
    margin_D: Tensor  # [D] mean over the replies of log p(y) - log p(y'), in nats, without the opponent's log-probs
    accuracy_D: Tensor  # [D] share of the replies that are less likely than the human one, ties counting one half
    history_D: Tensor  # [D] mean over the replies of log p(y') - log p(y0), in nats


def triplet_loss(
    player: DuelLogps, start_DK: Tensor, mask_DK: Tensor, *, alpha: float, history_weight: float, loss: LossName = "logistic"
) -> TripletLoss:
    """Equation 7 of T-SPIN, a mean over the replies of ell(alpha * (log p(y) - log p(y'))) + beta * ell(alpha * (log p(y') - log p(y0))).

    player: log p(y) and log p(y'), start_DK: log p(y0) of the start's replies, all under the player. Equal replies have equal entries.
    mask_DK: bool, true where a reply and its reply of the start exist; the other entries may hold anything, NaN included.
    alpha: the paper's, 1 in its experiments. history_weight: the paper's beta, 0 in its first iteration and 0.1 after that.
    loss: a key of LOSSES, the function ell.

    There is no reference model, so the loss at the start is not ell(0) but depends on the likelihoods. A duel without a reply has no mean:
    its loss is NaN.
    """
    assert start_DK.shape == player.generated_DK.shape, (start_DK.shape, player.generated_DK.shape)
    ell = LOSSES[loss]
    margin_DK = (player.real_D[:, None] - player.generated_DK).masked_fill(~mask_DK, 0.0)
    history_DK = (player.generated_DK - start_DK).masked_fill(~mask_DK, 0.0)
    return TripletLoss(
        loss_D=mean_over_replies(ell(alpha * margin_DK) + history_weight * ell(alpha * history_DK), mask_DK),
        margin_D=mean_over_replies(margin_DK.detach(), mask_DK),
        accuracy_D=accuracy(margin_DK.detach(), mask_DK),
        history_D=mean_over_replies(history_DK.detach(), mask_DK),
    )


@dataclass(frozen=True, kw_only=True)
class TSpin(Comparison):
    """T-SPIN; `beta` is its alpha, and `history_weight` weighs the comparison with the replies of the start."""

    names = ("t-spin",)
    about = "needs no opponent log-probs and also prefers the newest replies to those of the start (T-SPIN, arXiv 2601.08198)"
    uses_opponent_logps = False
    uses_start_replies = True
    why_human_alone = "T-SPIN compares the human reply with those of the opponent and of the start; it is defined for human alone"

    beta: float
    history_weight: float

    @property
    def computes_start_replies(self) -> bool:
        return self.history_weight > 0

    def in_iteration(self, iteration: int, replies_per_prompt: int) -> Self:
        """Without the history term in iteration 0, whose replies are those of the start."""
        return self if iteration else replace(self, history_weight=0.0)

    def losses(self, given: Compared) -> ItemLosses:
        """As in `Comparison`. Without replies of the start (iteration 0), whose term has weight 0, the opponent's take their place."""
        player, mask_DK = given.player, given.mask_DK
        start_DK = player.generated_DK if given.start_DK is None else given.start_DK
        found = triplet_loss(player, start_DK, mask_DK, alpha=self.beta, history_weight=self.history_weight)
        numbers = {
            "margin": found.margin_D,
            "accuracy": found.accuracy_D,
            "real_logp": player.real_D.detach(),
            "generated_logp": mean_over_replies(player.generated_DK.detach(), mask_DK),
        }
        return ItemLosses(found.loss_D, numbers | ({"history_margin": found.history_D} if self.history_weight else {}))
