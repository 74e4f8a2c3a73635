"""SPIN: equation 4.7 of its paper (arXiv 2401.01335) with each of its four functions ell. Pure functions, tensors in, tensors out.

Shapes as in shared.py. What the formula implies, and which test proves it: docs/theory.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from sparring.objectives.shared import Compared, Comparison, DuelLogps, ItemLosses, SpinLoss, accuracy, log_sigmoid, mean_over_replies

if TYPE_CHECKING:
    from torch import Tensor

LossName = Literal["logistic", "hinge", "exponential", "correlation"]


def logistic(t: Tensor) -> Tensor:
    """log(1 + e^-t), the paper's choice; elementwise, finite for every finite t."""
    # Not F.softplus(-t): it turns linear at 20 and is off by 2e-9 there, which float64 sees.
    return -log_sigmoid(t)


def hinge(t: Tensor) -> Tensor:
    """max(0, 1 - t); elementwise. No gradient from t = 1 on."""
    return (1 - t).relu()


def exponential(t: Tensor) -> Tensor:
    """e^-t; elementwise. Overflows to inf below t = -88 in float32."""
    return (-t).exp()


def correlation(t: Tensor) -> Tensor:
    """1 - t; elementwise. Not bounded below."""
    return 1 - t


# ell of equation 4.7: decreasing, convex, ell'(0) < 0 (-1/2 for logistic, -1 for the others).
LOSSES: Mapping[LossName, Callable[[Tensor], Tensor]] = {
    "logistic": logistic,
    "hinge": hinge,
    "exponential": exponential,
    "correlation": correlation,
}


def spin_loss(
    player: DuelLogps,
    opponent: DuelLogps,
    mask_DK: Tensor,
    identical_D: Tensor | None = None,
    *,
    beta: float,
    loss: LossName = "logistic",
) -> SpinLoss:
    """Equation 4.7: mean over a duel's replies y' of ell(beta * (r(y) - r(y'))), r(u) = log p_player(u|x) - log p_opponent(u|x).

    player, opponent: log-probs [D] and [D, K] of the same replies under both models; the opponent's are constants.
    mask_DK: bool, true where a reply exists; the other entries may hold anything, NaN included.
    identical_D: int, replies of the duel that equal the human one token for token and are *not* among the K columns. Their margin
        is 0 whatever the weights, so each adds ell(0) to the sum and 1 to the count without a forward pass. None means none.
    beta: lambda of the paper. loss: a key of LOSSES.

    A duel with neither a reply nor an identical one has no mean: its loss is NaN. The batch's loss is `loss_D.mean()`.
    """
    ell = LOSSES[loss]
    ratio_real_D = player.real_D - opponent.real_D.detach()
    ratio_generated_DK = (player.generated_DK - opponent.generated_DK.detach()).masked_fill(~mask_DK, 0.0)
    # Empty columns become 0 before ell and not after it: the gradient of an overflow there would be inf * 0 = NaN.
    margin_DK = (ratio_real_D[:, None] - ratio_generated_DK).masked_fill(~mask_DK, 0.0)
    ell_of_zero = ell(margin_DK.new_zeros(()))
    detached_DK = margin_DK.detach()
    return SpinLoss(
        loss_D=mean_over_replies(ell(beta * margin_DK), mask_DK, identical_D, value_of_identical=ell_of_zero),
        margin_DK=detached_DK,
        margin_D=mean_over_replies(detached_DK, mask_DK, identical_D, value_of_identical=0.0),
        accuracy_D=accuracy(detached_DK, mask_DK, identical_D),
        reward_real_D=beta * ratio_real_D.detach(),
        reward_generated_DK=beta * ratio_generated_DK.detach(),
    )


def with_spin_metrics(loss_D: Tensor, given: Compared, beta: float) -> ItemLosses:
    """Losses of another formula with the numbers that SPIN logs, which depend on the log-probs only."""
    player, opponent = given.player, given.opponent
    assert opponent is not None
    detached = DuelLogps(player.real_D.detach(), player.generated_DK.detach())
    return spin_loss(detached, opponent, given.mask_DK, beta=beta, loss="correlation")._replace(loss_D=loss_D).of(given)


@dataclass(frozen=True, kw_only=True)
class Spin(Comparison):
    """SPIN; `beta` scales the margins, and `loss` names the function that is applied to them."""

    names = tuple(LOSSES)
    about = "are SPIN, equation 4.7 with that function ell (arXiv 2401.01335)"
    counts_identical = True

    beta: float

    @property
    def ell(self) -> LossName:
        """The name of the loss function of a scaled margin."""
        return cast(LossName, self.loss)

    def losses(self, given: Compared) -> ItemLosses:
        assert given.opponent is not None
        return spin_loss(given.player, given.opponent, given.mask_DK, given.identical_D, beta=self.beta, loss=self.ell).of(given)
