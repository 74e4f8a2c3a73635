"""The interface of the objectives, the log-probs that they receive, and means over a duel's replies.

Shapes: D = duels (one prompt with its human reply each), K = opponent replies per prompt; `loss_D` is a tensor of shape [D].
A log-prob of a reply is the sum over its tokens in nats, the end-of-turn token included when the model emitted it. Give
float32 or float64: bfloat16 rounds a sum near -150 to whole nats.

The recipe imports the files of this folder and must start fast: they import torch only inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

if TYPE_CHECKING:
    from torch import Tensor

# duel id -> log-probs of its branches
Logps = Mapping[str, Sequence[float]]
READ_IN_PART = "implemented from a partial reading of its paper: docs/theory.md"


@dataclass(frozen=True)
class DuelLogps:
    """log p(y|x) of the human replies, `real_D` [D], and of the opponent's replies, `generated_DK` [D, K], under one model."""

    real_D: Tensor
    generated_DK: Tensor

    def __post_init__(self) -> None:
        # A swapped or squeezed axis would broadcast silently.
        assert self.real_D.dim() == 1 and self.generated_DK.dim() == 2, (self.real_D.shape, self.generated_DK.shape)
        assert self.real_D.shape[0] == self.generated_DK.shape[0], (self.real_D.shape, self.generated_DK.shape)


@dataclass(frozen=True)
class Compared:
    """The input of an objective: some duels, or some pairs of winner and loser, each of which is a duel with one reply.

    player, opponent: log-probs of the same replies under both models; opponent is None for an objective that does not use it.
    mask_DK: bool, true where a reply exists. identical_D: as `spin_loss` takes it, for objectives with `counts_identical`.
    start_DK: log-probs of the start's replies under the player, for objectives with `computes_start_replies`.
    """

    player: DuelLogps
    opponent: DuelLogps | None
    mask_DK: Tensor
    identical_D: Tensor | None = None
    start_DK: Tensor | None = None


@dataclass(frozen=True)
class ItemLosses:
    """Losses [D] of a micro-batch, with their gradient, and detached numbers [D] for the log."""

    loss_D: Tensor
    numbers: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """An objective with its option values in an iteration: the dataclass fields are the recipe options that it takes.

    names: the values of `objective.loss` that select it; about: its description, for docs/recipe.md and --help.
    """

    names: ClassVar[tuple[str, ...]]
    about: ClassVar[str]
    uses_margins: ClassVar[bool] = False  # compares winners with losers
    uses_opponent_logps: ClassVar[bool] = False
    uses_start: ClassVar[bool] = False  # log-probs under the start of the game
    uses_start_replies: ClassVar[bool] = False  # the start's replies to the same prompts
    learns_from_identical: ClassVar[bool] = False  # has a gradient where all replies equal the human one
    counts_identical: ClassVar[bool] = False  # such replies have margin 0 for any weights: they are counted instead of computed
    why_human_alone: ClassVar[str | None] = None  # why it does not support verified and majority targets

    loss: str

    @classmethod
    def takes(cls, option: str) -> bool:
        """Whether an option of the recipe's section has an effect on this objective."""
        return option in cls.__dataclass_fields__

    @property
    def computes_start_replies(self) -> bool:
        """Whether the start's replies have a gradient, so that the player's log-probs of them are needed."""
        return False

    def in_iteration(self, iteration: int, replies_per_prompt: int) -> Self:
        """A copy with the values that depend on the iteration (from 0) and the number of replies."""
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Everything that the result depends on, for the fingerprint of a training stage."""
        values = asdict(self)
        nll_weight = values.pop("nll_weight", 0.0)
        return {**values, "nll_weight": nll_weight} if nll_weight else values

    def check(self) -> None:
        """Raise UserError if the objective cannot be computed; called before anything is loaded."""


@dataclass(frozen=True, kw_only=True)
class Comparison(Objective):
    """An objective that compares human replies with the opponent's, or winners with losers, optionally with an NLL term."""

    uses_margins = True
    uses_opponent_logps = True

    nll_weight: float = 0.0

    def against(self, opponent: Logps, start: Logps) -> Logps:
        """The log-probs used as the opponent's, computed from those under the opponent and under the start of the game."""
        return opponent

    def losses(self, given: Compared) -> ItemLosses:
        """The losses [D] of duels, averaged over the replies of each, and numbers for the log."""
        raise NotImplementedError


class SpinLoss(NamedTuple):
    """The losses of duels with the values for the log. Only `loss_D` carries a gradient."""

    loss_D: Tensor  # [D] of each duel, averaged over its replies
    margin_DK: Tensor  # [D, K] r(y) - r(y') in nats, not scaled by beta; 0 where there is no reply
    margin_D: Tensor  # [D] its mean over the duel's replies, identical ones counting 0
    accuracy_D: Tensor  # [D] share of the duel's replies with margin > 0, ties and identical ones counting one half
    reward_real_D: Tensor  # [D] beta * r(y)
    reward_generated_DK: Tensor  # [D, K] beta * r(y'); 0 where there is no reply

    def of(self, given: Compared) -> ItemLosses:
        """As ItemLosses, with means over the columns. A duel whose replies all equal the human one has no column; it uses the human one."""
        real_D, has_reply_D = given.player.real_D.detach(), given.mask_DK.any(1)

        def mean(value_DK: Tensor, identical_D: Tensor) -> Tensor:
            return mean_over_replies(value_DK, given.mask_DK).where(has_reply_D, identical_D)

        numbers = {
            "margin": self.margin_D,
            "accuracy": self.accuracy_D,
            "reward_real": self.reward_real_D,
            "reward_generated": mean(self.reward_generated_DK, self.reward_real_D),
            "real_logp": real_D,
            "generated_logp": mean(given.player.generated_DK.detach(), real_D),
        }
        return ItemLosses(self.loss_D, numbers)


def log_sigmoid(t: Tensor) -> Tensor:
    """log(1 / (1 + e^-t)); elementwise, finite for every finite t."""
    from torch.nn.functional import logsigmoid

    return logsigmoid(t)


def accuracy(margin_DK: Tensor, mask_DK: Tensor, identical_D: Tensor | None = None) -> Tensor:
    """Share [D] of each duel's replies that the player ranks below the human one: margin > 0, ties and identical replies count 1/2."""
    won_DK = (1 + margin_DK.sign()) / 2
    return mean_over_replies(won_DK, mask_DK, identical_D, value_of_identical=0.5)


def mean_over_replies(
    value_DK: Tensor, mask_DK: Tensor, identical_D: Tensor | None = None, *, value_of_identical: Tensor | float = 0.0
) -> Tensor:
    """Mean [D] of a value over all replies of each duel: its columns under the mask, and `identical_D` times `value_of_identical`.

    This is the mean over everything that the opponent sampled: without the identical replies the others would have too much weight.
    """
    total_D = value_DK.masked_fill(~mask_DK, 0.0).sum(dim=1)
    count_D = mask_DK.sum(dim=1)
    if identical_D is not None:
        total_D = total_D + identical_D * value_of_identical
        count_D = count_D + identical_D
    return total_D / count_D
