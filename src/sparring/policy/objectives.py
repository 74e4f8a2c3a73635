"""What the player minimises: equation 4.7 of SPIN (arXiv 2401.01335), and what goes with it. Pure functions, tensors in, tensors out.

Shapes: D = duels (one prompt with its human reply each), K = opponent replies per prompt; `loss_D` is a tensor of shape [D].
A log-prob of a reply is the sum over its tokens in nats, the end-of-turn token included when the model emitted it. Give
float32 or float64: bfloat16 rounds a sum near -150 to whole nats. What the formulas imply, and which test proves it: docs/theory.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

LossName = Literal["logistic", "hinge", "exponential", "correlation"]
Number = TypeVar("Number", float, Tensor)


def logistic(t: Tensor) -> Tensor:
    """log(1 + e^-t), the paper's choice; elementwise, finite for every finite t."""
    # Not F.softplus(-t): it turns linear at 20 and is off by 2e-9 there, which float64 sees.
    return -F.logsigmoid(t)


def hinge(t: Tensor) -> Tensor:
    """max(0, 1 - t); elementwise. No gradient from t = 1 on."""
    return torch.relu(1 - t)


def exponential(t: Tensor) -> Tensor:
    """e^-t; elementwise. Overflows to inf below t = -88 in float32."""
    return torch.exp(-t)


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


@dataclass(frozen=True)
class DuelLogps:
    """log p(y|x) of the human replies, `real_D` [D], and of the opponent's replies, `generated_DK` [D, K], under one model."""

    real_D: Tensor
    generated_DK: Tensor

    def __post_init__(self) -> None:
        # A swapped or squeezed axis would broadcast in silence.
        assert self.real_D.dim() == 1 and self.generated_DK.dim() == 2, (self.real_D.shape, self.generated_DK.shape)
        assert self.real_D.shape[0] == self.generated_DK.shape[0], (self.real_D.shape, self.generated_DK.shape)


class SpinLoss(NamedTuple):
    """What `spin_loss` returns. Only `loss_D` carries a gradient; the rest is for the log."""

    loss_D: Tensor  # [D] equation 4.7 of each duel, averaged over its replies
    margin_DK: Tensor  # [D, K] r(y) - r(y') in nats, not scaled by beta; 0 where there is no reply
    margin_D: Tensor  # [D] its mean over the duel's replies, identical ones counting 0
    accuracy_D: Tensor  # [D] share of the duel's replies with margin > 0, ties and identical ones counting one half
    reward_real_D: Tensor  # [D] beta * r(y)
    reward_generated_DK: Tensor  # [D, K] beta * r(y'); 0 where there is no reply


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


def nll_anchor(real_D: Tensor, tokens_D: Tensor) -> Tensor:
    """Negative log-likelihood [D] of the human replies per token, -log p(y|x) / |y|: to be added to a loss with a weight.

    real_D: log p(y|x) [D]; tokens_D: |y| [D], the end-of-turn token included where the reply has one.
    """
    return -real_D / tokens_D


def mixed_logp(opponent: Number, start: Number, alpha: float) -> Number:
    """alpha * log p_opponent + (1 - alpha) * log p_start of a reply: alpha-SPIN's opponent (arXiv 2404.04291, there the base policy).

    The geometric mixture of the two policies, without its normaliser, which is one number per prompt and cancels in a margin.
    """
    return start + alpha * (opponent - start)  # in this form exactly both where they are equal


def accuracy(margin_DK: Tensor, mask_DK: Tensor, identical_D: Tensor | None = None) -> Tensor:
    """Share [D] of each duel's replies that the player tells from the human one: margin > 0, ties and identical replies count one half."""
    won_DK = (1 + torch.sign(margin_DK)) / 2
    return mean_over_replies(won_DK, mask_DK, identical_D, value_of_identical=0.5)


def mean_over_replies(
    value_DK: Tensor, mask_DK: Tensor, identical_D: Tensor | None = None, *, value_of_identical: Tensor | float = 0.0
) -> Tensor:
    """Mean [D] of a value over all replies of each duel: its columns under the mask, and `identical_D` times `value_of_identical`.

    This is the mean over what the opponent sampled: leaving the identical replies out would weigh the other ones too much.
    """
    total_D = value_DK.masked_fill(~mask_DK, 0.0).sum(dim=1)
    count_D = mask_DK.sum(dim=1)
    if identical_D is not None:
        total_D = total_D + identical_D * value_of_identical
        count_D = count_D + identical_D
    return total_D / count_D
